package config

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"sallyport/runner/hook"
)

// A Watcher holds the configuration in force, and reloads it when its file, or any file that it names, changes: when a
// file is written, renamed over, or replaced by a symlink at any level of its path. A configuration without an error
// replaces the one in force as a whole. One with an error is logged, and the one in force stays.
type Watcher struct {
	name string
	env  Env
	log  *slog.Logger

	current atomic.Pointer[Config]
	status  atomic.Pointer[ReloadStatus] // only Watch replaces it
	last    attempt                      // only used by Watch
}

// ReloadStatus is the result of the attempts to load the configuration.
type ReloadStatus struct {
	Loaded   time.Time // when the configuration in force was loaded
	Failed   time.Time // when an attempt since then first failed; zero if none did
	Reloads  int       // since the start, without retries that fail like the attempt before
	Failures int       // reloads that failed
}

// attempt is the latest attempt to load the configuration.
type attempt struct {
	seen      map[string]fs.FileInfo // the files that it read
	overtaken int                    // consecutive attempts that a change made obsolete
	problems  []Diagnostic           // the reason of the failure; nil if it succeeded
	retry     retry
}

// ErrChanged reports that a file changed while the configuration was adopted, so it must be loaded again.
var ErrChanged = errors.New("the file has changed again")

// NewWatcher loads the first configuration. The Watcher is nil if any of the diagnostics is an error. NewWatcher sets
// env.Now, env.Serving and env.Seen.
func NewWatcher(name string, env Env, log *slog.Logger) (*Watcher, []Diagnostic) {
	w := &Watcher{name: name, env: env, log: log}
	c, found := w.loadFile()
	if c == nil {
		return nil, found
	}
	w.putInForce(c, ReloadStatus{})
	return w, found
}

// Get returns the configuration in force.
func (w *Watcher) Get() *Config { return w.current.Load() }

// Hook returns the hook with this name in the configuration in force.
func (w *Watcher) Hook(name string) (*hook.Hook, bool) { return w.Get().Hook(name) }

// Status returns the result of loading until now.
func (w *Watcher) Status() ReloadStatus { return *w.status.Load() }

func (w *Watcher) loadFile() (*Config, []Diagnostic) {
	env := w.env
	env.Now, env.Serving, env.Seen = time.Now(), w.Get(), map[string]fs.FileInfo{}
	c, found := Load(w.name, env)
	w.last.seen = env.Seen
	return c, found
}

// putInForce replaces the configuration in force, and the status by one that says so.
func (w *Watcher) putInForce(c *Config, status ReloadStatus) {
	w.current.Store(c)
	status.Loaded, status.Failed = time.Now(), time.Time{}
	w.status.Store(&status)
}

// Watch reloads until ctx is done. It calls agree, which may refuse the configuration, before a configuration comes
// into force, and changed after that.
//
// Watch reads the state of the files a few times each second instead of using the kernel's events: so it notices a
// changed symlink at any level of a path, and works on every filesystem. A change is loaded once it has settled, see
// debounce; SIGHUP reloads at once. A configuration that was refused is loaded again even if no file changes, see
// retry: the reason may be the clock, a full disk or a supervisor that does not run, and until the reload succeeds the
// server trusts callers that the file no longer has.
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
			r.reload(ctx, logAlways)
			continue
		case <-time.After(pause):
		}
		start := time.Now()
		files := statFiles(w.last.seen)
		pause = max(minPause, idleShare*time.Since(start))
		if !w.last.isOvertaken() && maps.EqualFunc(files, w.last.seen, sameFile) {
			changes = debounce{}
			if w.last.retry.isRetryDue(start) {
				r.reload(ctx, logNews)
			}
			continue
		}
		if settled, late := changes.observe(files, start); settled || late {
			changes = debounce{}
			if settled {
				r.reload(ctx, logAlways)
			} else {
				r.reload(ctx, logNews)
			}
		}
	}
}

const (
	minPause  = 200 * time.Millisecond
	idleShare = 500 // the watcher pauses this many times as long as it takes to read the state of the files

	maxOvertaken = 10 // consecutive attempts that changes made obsolete; the last one counts as a failure
)

// isOvertaken reports whether a change that the attempt did not see made it obsolete.
func (a *attempt) isOvertaken() bool { return a.overtaken > 0 && a.overtaken < maxOvertaken }

// A debounce waits until the files that change have settled, so that no file is read while it is written. Its zero
// value waits for the first change.
type debounce struct {
	files map[string]fs.FileInfo // as the latest look found them; nil before the first change
	since time.Time              // the first look that found a change
}

const settleTime = 5 * time.Second

// observe compares the state of the files with the previous one. The change has settled when two consecutive states are
// equal. It is late when it has not settled within settleTime, so that one file that changes all the time does not
// delay the others.
func (d *debounce) observe(files map[string]fs.FileInfo, now time.Time) (settled, late bool) {
	if d.files == nil {
		d.files, d.since = files, now
		return false, false
	}
	settled = maps.EqualFunc(files, d.files, sameFile)
	d.files = files
	return settled, !settled && now.Sub(d.since) >= settleTime
}

// A retry schedules the next attempt after a failure when no file has changed: after a pause that doubles from
// firstRetry to maxRetry. Its zero value schedules none.
type retry struct {
	pause time.Duration
	at    time.Time
}

const (
	firstRetry = 2 * time.Second
	maxRetry   = time.Minute
)

func (r *retry) isRetryDue(now time.Time) bool { return !r.at.IsZero() && !now.Before(r.at) }

// schedule schedules the next attempt after a failure at now. After a failure that differs from the one before, the
// pause is the shortest one.
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

// logMode is which failed attempts are logged and counted.
type logMode int

const (
	logAlways logMode = iota // for an attempt that a signal or a settled change asked for
	logNews                  // only if the result differs from that of the attempt before
)

// reload makes an attempt.
func (r *reloader) reload(ctx context.Context, how logMode) {
	start := time.Now()
	c, found := r.loadFile() //nolint:contextcheck // each wait in loading has a time limit
	if ctx.Err() != nil {    // the end of ctx may be the reason of the failure
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
		r.recordFailure(ctx, how, found)
		return
	}
	r.last.problems, r.last.retry = nil, retry{}
	r.logDiagnostics(ctx, found)
	status := r.Status()
	status.Reloads++
	r.putInForce(c, status)
	r.changed(c)
	r.log.Info("reloaded", "file", r.name, "took_ms", time.Since(start).Milliseconds())
}

func (r *reloader) recordFailure(ctx context.Context, how logMode, found []Diagnostic) {
	now, repeated := time.Now(), how == logNews && slices.Equal(found, r.last.problems)
	r.last.problems = found
	r.last.retry.schedule(now, repeated)
	r.env.Retain(r.Get()) // ends the connections and renewals of the refused configuration
	if repeated {
		return
	}
	r.logDiagnostics(ctx, found)
	status := r.Status()
	status.Reloads++
	status.Failures++
	if status.Failed.IsZero() {
		status.Failed = now
	}
	r.status.Store(&status)
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

// statFiles returns the current state of the files; nil for a file that does not exist.
func statFiles(files map[string]fs.FileInfo) map[string]fs.FileInfo {
	now := make(map[string]fs.FileInfo, len(files))
	for path := range files {
		now[path], _ = os.Stat(path)
	}
	return now
}

// sameFile reports whether stat shows no change of a file.
func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	s, ok := a.Sys().(*syscall.Stat_t)
	o, also := b.Sys().(*syscall.Stat_t)
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode() &&
		// A program can set the modification time, as "cp -p" does, but not the change time.
		ok && also && s.Uid == o.Uid && changeTime(s) == changeTime(o)
}
