// Package live keeps the configuration that is in force. It loads the file anew
// at SIGHUP, and when the file or anything that it names has changed: written
// to, renamed over, or swapped by a symlink on the way to it. A configuration
// without a fault takes the place of the old one as a whole; a faulty one
// leaves the old one standing, and the operator is told.
package live

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sallyport/internal/config"
	"sallyport/runner"
)

// Configuration is the one in force.
type Configuration struct {
	name string
	env  config.Env
	log  *slog.Logger

	current atomic.Pointer[config.Config]
	last    attempt

	mu     sync.Mutex
	status Status
}

// Status is how loading went.
type Status struct {
	Loaded   time.Time // when the one in force was
	Failed   time.Time // when an attempt since then first failed; zero if none did
	Reloads  int       // since the start, but for repetitions that end as the time before
	Failures int
}

// attempt is the last one to load the configuration.
type attempt struct {
	seen      map[string]fs.FileInfo // what it found
	overtaken int                    // by changes, so many times in a row
	faults    []config.Diagnostic    // that made it fail; nil if it did not
	wait      time.Duration          // until the next one, though nothing changes
	again     time.Time              // when that is due; zero when the last one did not fail
}

// ErrChanged says that a file changed while the configuration was adopted, so
// that it is to be loaded once more.
var ErrChanged = errors.New("the file has changed again")

// Load loads the first configuration; it is nil if any of the diagnostics is
// more than a warning. Env.Now, Serving and Seen need not be set.
func Load(name string, env config.Env, log *slog.Logger) (*Configuration, []config.Diagnostic) {
	l := &Configuration{name: name, env: env, log: log}
	c, found := l.load()
	if c == nil {
		return nil, found
	}
	l.adopt(c)
	return l, found
}

// Get returns the configuration in force.
func (l *Configuration) Get() *config.Config { return l.current.Load() }

// Hook returns a hook by its name, as it is now.
func (l *Configuration) Hook(name string) (*runner.Hook, bool) { return l.Get().Hook(name) }

// Status tells how loading went so far.
func (l *Configuration) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

func (l *Configuration) load() (*config.Config, []config.Diagnostic) {
	env := l.env
	env.Now, env.Serving, env.Seen = time.Now(), l.Get(), map[string]fs.FileInfo{}
	c, found := config.Load(l.name, env)
	l.last.seen = env.Seen
	return c, found
}

func (l *Configuration) adopt(c *config.Config) {
	l.current.Store(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Loaded, l.status.Failed = time.Now(), time.Time{}
}

// Watch reloads until ctx is done. Before a configuration is in force, agree is
// called, and may refuse it; afterwards, changed.
//
// The files are looked at, a few times each second, rather than watched by the
// kernel: that sees a swap of a symlink anywhere on the way to a file, and works
// on every filesystem. A change is taken up when it has stood for one look, so
// that a file is not read while it is written, but does not wait for ever for a
// file that never stands still; SIGHUP does not wait. What was refused is tried
// again though nothing changes: the reason may be a clock, a full disk or a
// supervisor that is away, and until then those are trusted who should not be.
func (l *Configuration) Watch(ctx context.Context, hup <-chan os.Signal, agree func(*config.Config) error, changed func(*config.Config)) {
	r := reloading{l, agree, changed}
	l.env.Workloads.Until(ctx)
	var before map[string]fs.FileInfo
	var since time.Time
	pause := leastPause
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			before = nil
			r.reload(ctx, true)
			continue
		case <-time.After(pause):
		}
		start := time.Now()
		now := look(l.last.seen)
		pause = max(leastPause, mostShare*time.Since(start))
		standing := !l.last.amid() && maps.EqualFunc(now, l.last.seen, same)
		switch {
		case standing && !l.last.due(start):
			before = nil
		case standing:
			before = nil
			r.reload(ctx, false)
		case before == nil:
			before, since = now, start
		case maps.EqualFunc(now, before, same):
			before = nil
			r.reload(ctx, true)
		case start.Sub(since) >= settleTime:
			before = nil
			r.reload(ctx, false)
		default:
			before = now
		}
	}
}

const (
	leastPause = 200 * time.Millisecond
	mostShare  = 500 // of the time is spent otherwise than on looking
	settleTime = 5 * time.Second

	mostOvertaken   = 10 // times, until that is a failure
	firstAgain      = 2 * time.Second
	mostBetweenThem = time.Minute
)

// amid tells whether an attempt was overtaken by a change that it did not see.
func (a *attempt) amid() bool { return a.overtaken > 0 && a.overtaken < mostOvertaken }

func (a *attempt) due(now time.Time) bool { return !a.again.IsZero() && !now.Before(a.again) }

// reloading is what a reload asks and tells.
type reloading struct {
	*Configuration

	agree   func(*config.Config) error
	changed func(*config.Config)
}

// reload makes an attempt. One that nobody asked for, by a signal or a change,
// is told of only if it ends otherwise than the one before.
func (r *reloading) reload(ctx context.Context, asked bool) {
	start := time.Now()
	c, found := r.load()
	if ctx.Err() != nil { // which may be why it failed
		return
	}
	var err error
	if c != nil {
		err = r.agree(c)
	}
	if !errors.Is(err, ErrChanged) {
		r.last.overtaken = 0
	} else if r.last.overtaken++; r.last.amid() {
		return
	}
	if err != nil {
		found, c = append(found, config.Diagnostic{File: r.name, Text: err.Error()}), nil
	}
	if c == nil {
		r.failed(ctx, asked, found)
		return
	}
	r.last.faults, r.last.again = nil, time.Time{}
	r.tell(ctx, found)
	r.mu.Lock()
	r.status.Reloads++
	r.mu.Unlock()
	r.adopt(c)
	r.changed(c)
	r.log.Info("reloaded", "file", r.name, "took_ms", time.Since(start).Milliseconds())
}

func (r *reloading) failed(ctx context.Context, asked bool, found []config.Diagnostic) {
	now, repeated := time.Now(), slices.Equal(found, r.last.faults)
	r.last.wait = min(2*r.last.wait, mostBetweenThem)
	if asked || !repeated {
		r.last.wait = firstAgain
	}
	r.last.faults, r.last.again = found, now.Add(r.last.wait)
	r.env.Retain(r.Get()) // which ends what was begun for the one that is refused
	if repeated && !asked {
		return
	}
	r.tell(ctx, found)
	r.mu.Lock()
	r.status.Reloads++
	r.status.Failures++
	if r.status.Failed.IsZero() {
		r.status.Failed = now
	}
	r.mu.Unlock()
	r.log.Error("not reloaded: the configuration in force stays", "file", r.name)
}

func (r *reloading) tell(ctx context.Context, found []config.Diagnostic) {
	for _, d := range found {
		level := slog.LevelError
		if d.Warning {
			level = slog.LevelWarn
		}
		r.log.Log(ctx, level, "configuration", "file", d.File, "line", d.Line, "column", d.Column, "key", d.Path, "problem", d.Text)
	}
}

// look returns what the files are now; nil for one that is not there.
func look(files map[string]fs.FileInfo) map[string]fs.FileInfo {
	now := make(map[string]fs.FileInfo, len(files))
	for path := range files {
		now[path], _ = os.Stat(path)
	}
	return now
}

// same tells whether a file is still what it was, as far as a reader could tell.
func same(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	s, ok := a.Sys().(*syscall.Stat_t)
	o, also := b.Sys().(*syscall.Stat_t)
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode() &&
		ok && also && s.Uid == o.Uid && changeTime(s) == changeTime(o) // which nobody can set, as a copy does with the other
}
