package config

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

	"sallyport/runner/hook"
)

// A Watcher holds the configuration in force, and reloads it when its file, or
// any file that it names, changes: when a file is written to, renamed over, or
// replaced by a symlink anywhere on the way to it. A configuration without an
// error replaces the one in force as a whole. One with an error is logged, and
// leaves the one in force as it is.
type Watcher struct {
	name string
	env  Env
	log  *slog.Logger

	current atomic.Pointer[Config]
	last    attempt // of Watch alone

	mu     sync.Mutex
	status ReloadStatus
}

// ReloadStatus is how loading the configuration went so far.
type ReloadStatus struct {
	Loaded   time.Time // when the configuration in force was loaded
	Failed   time.Time // when an attempt since then first failed; zero if none did
	Reloads  int       // since the start, without retries that fail as the attempt before
	Failures int       // of them
}

// attempt is the latest attempt to load the configuration.
type attempt struct {
	seen      map[string]fs.FileInfo // the files that it read
	overtaken int                    // attempts in a row that a change made obsolete
	problems  []Diagnostic           // why it failed; nil if it did not
	retry     retry
}

// ErrChanged says that a file changed while the configuration was adopted, so
// that it must be loaded once more.
var ErrChanged = errors.New("the file has changed again")

// NewWatcher loads the first configuration. The Watcher is nil if any of the
// diagnostics is more than a warning. NewWatcher sets env.Now, env.Serving and env.Seen.
func NewWatcher(name string, env Env, log *slog.Logger) (*Watcher, []Diagnostic) {
	w := &Watcher{name: name, env: env, log: log}
	c, found := w.loadFile()
	if c == nil {
		return nil, found
	}
	w.putInForce(c)
	return w, found
}

// Get returns the configuration in force.
func (w *Watcher) Get() *Config { return w.current.Load() }

// Hook returns a hook of the configuration in force by its name.
func (w *Watcher) Hook(name string) (*hook.Hook, bool) { return w.Get().Hook(name) }

// Status returns how loading went so far.
func (w *Watcher) Status() ReloadStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

func (w *Watcher) loadFile() (*Config, []Diagnostic) {
	env := w.env
	env.Now, env.Serving, env.Seen = time.Now(), w.Get(), map[string]fs.FileInfo{}
	c, found := Load(w.name, env)
	w.last.seen = env.Seen
	return c, found
}

func (w *Watcher) putInForce(c *Config) {
	w.current.Store(c)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Loaded, w.status.Failed = time.Now(), time.Time{}
}

// Watch reloads until ctx is done. It calls agree before a configuration comes
// into force, which may refuse it, and changed afterwards.
//
// Watch reads the state of the files a few times each second instead of asking
// the kernel for events: that notices a changed symlink anywhere on the way to a
// file, and works on every filesystem. A change is loaded once it has settled,
// see debounce; SIGHUP reloads at once. A configuration that was refused is tried
// again even if no file changes, see retry: the reason may be a clock, a full
// disk or a supervisor that is down, and until the reload succeeds the server
// trusts callers that the file no longer has.
func (w *Watcher) Watch(
	ctx context.Context, hup <-chan os.Signal, agree func(*Config) error, changed func(*Config),
) {
	r := reloader{w, agree, changed}
	w.env.Workloads.Until(ctx)
	var changes debounce
	pause := minPause
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			changes = debounce{}
			r.reload(ctx, true)
			continue
		case <-time.After(pause):
		}
		start := time.Now()
		files := statFiles(w.last.seen)
		pause = max(minPause, idleShare*time.Since(start))
		if !w.last.isOvertaken() && maps.EqualFunc(files, w.last.seen, sameFile) {
			changes = debounce{}
			if w.last.retry.isRetryDue(start) {
				r.reload(ctx, false)
			}
			continue
		}
		if settled, late := changes.observe(files, start); settled || late {
			changes = debounce{}
			r.reload(ctx, settled)
		}
	}
}

const (
	minPause  = 200 * time.Millisecond
	idleShare = 500 // times as long as it takes to look at the files, the watcher pauses

	maxOvertaken = 10 // attempts in a row, until that is a failure
)

// isOvertaken reports whether a change that the attempt did not see made it obsolete.
func (a *attempt) isOvertaken() bool { return a.overtaken > 0 && a.overtaken < maxOvertaken }

// A debounce waits until files that change have settled, so that no file is read
// while it is written. Its zero value waits for the first change.
type debounce struct {
	files map[string]fs.FileInfo // as the latest look found them; nil before the first change
	since time.Time              // the first look that found a change
}

const settleTime = 5 * time.Second

// observe takes what a look found. The change has settled when two looks in a row
// find the same. It is late when it has not settled within settleTime, so that one
// file that changes all the time does not hold up the others.
func (d *debounce) observe(files map[string]fs.FileInfo, now time.Time) (settled, late bool) {
	if d.files == nil {
		d.files, d.since = files, now
		return false, false
	}
	settled = maps.EqualFunc(files, d.files, sameFile)
	d.files = files
	return settled, !settled && now.Sub(d.since) >= settleTime
}

// A retry says when a failed attempt is repeated although no file has changed:
// after a pause that doubles from firstRetry to maxRetry. Its zero value has
// nothing to repeat.
type retry struct {
	pause time.Duration
	at    time.Time
}

const (
	firstRetry = 2 * time.Second
	maxRetry   = time.Minute
)

func (r *retry) isRetryDue(now time.Time) bool { return !r.at.IsZero() && !now.Before(r.at) }

// schedule schedules the attempt after one that failed now. A failure that is not
// the same as the one before starts with the shortest pause.
func (r *retry) schedule(now time.Time, same bool) {
	r.pause = min(2*r.pause, maxRetry)
	if !same {
		r.pause = firstRetry
	}
	r.at = now.Add(r.pause)
}

// reloader is a Watcher with the two functions that a reload calls.
type reloader struct {
	*Watcher

	agree   func(*Config) error
	changed func(*Config)
}

// reload makes an attempt. One that neither a signal nor a settled change asked
// for is logged only if it ends in another way than the one before.
func (r *reloader) reload(ctx context.Context, asked bool) {
	start := time.Now()
	c, found := r.loadFile() //nolint:contextcheck // what loading waits for has time limits of its own
	if ctx.Err() != nil {    // which may be why it failed
		return
	}
	var err error
	if c != nil {
		err = r.agree(c)
	}
	if !errors.Is(err, ErrChanged) {
		r.last.overtaken = 0
	} else if r.last.overtaken++; r.last.isOvertaken() {
		return
	}
	if err != nil {
		found, c = append(found, Diagnostic{File: r.name, Text: err.Error()}), nil
	}
	if c == nil {
		r.recordFailure(ctx, asked, found)
		return
	}
	r.last.problems, r.last.retry = nil, retry{}
	r.logDiagnostics(ctx, found)
	r.mu.Lock()
	r.status.Reloads++
	r.mu.Unlock()
	r.putInForce(c)
	r.changed(c)
	r.log.Info("reloaded", "file", r.name, "took_ms", time.Since(start).Milliseconds())
}

func (r *reloader) recordFailure(ctx context.Context, asked bool, found []Diagnostic) {
	now, repeated := time.Now(), !asked && slices.Equal(found, r.last.problems)
	r.last.problems = found
	r.last.retry.schedule(now, repeated)
	r.env.Retain(r.Get()) // which ends what was begun for the one that is refused
	if repeated {
		return
	}
	r.logDiagnostics(ctx, found)
	r.mu.Lock()
	r.status.Reloads++
	r.status.Failures++
	if r.status.Failed.IsZero() {
		r.status.Failed = now
	}
	r.mu.Unlock()
	r.log.Error("not reloaded: the configuration in force stays", "file", r.name)
}

func (r *reloader) logDiagnostics(ctx context.Context, found []Diagnostic) {
	for _, d := range found {
		level := slog.LevelError
		if d.Warning {
			level = slog.LevelWarn
		}
		r.log.Log(ctx, level, "configuration",
			"file", d.File, "line", d.Line, "column", d.Column, "key", d.Path, "problem", d.Text)
	}
}

// statFiles returns what the files are now; nil for one that does not exist.
func statFiles(files map[string]fs.FileInfo) map[string]fs.FileInfo {
	now := make(map[string]fs.FileInfo, len(files))
	for path := range files {
		now[path], _ = os.Stat(path)
	}
	return now
}

// sameFile reports whether a file is unchanged as far as stat can tell.
func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	s, ok := a.Sys().(*syscall.Stat_t)
	o, also := b.Sys().(*syscall.Stat_t)
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode() &&
		// No program can set the change time, but any can set the modification time, as "cp -p" does.
		ok && also && s.Uid == o.Uid && changeTime(s) == changeTime(o)
}
