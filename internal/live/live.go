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
	seen    map[string]fs.FileInfo // what the last attempt found
	again   bool                   // the last attempt was overtaken by a change

	mu     sync.Mutex
	status Status
}

// Status is how loading went.
type Status struct {
	Loaded   time.Time // when the one in force was
	Failed   time.Time // when the last attempt since then failed; zero if none did
	Reloads  int       // since the start
	Failures int
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
	l.seen = env.Seen
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
// that a file is not read while it is written; SIGHUP does not wait.
func (l *Configuration) Watch(ctx context.Context, hup <-chan os.Signal, agree func(*config.Config) error, changed func(*config.Config)) {
	var before map[string]fs.FileInfo
	pause := leastPause
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			l.reload(ctx, agree, changed)
			continue
		case <-time.After(pause):
		}
		start := time.Now()
		now := look(l.seen)
		pause = max(leastPause, mostShare*time.Since(start))
		switch {
		case !l.again && maps.EqualFunc(now, l.seen, same):
			before = nil
		case before == nil || !maps.EqualFunc(now, before, same):
			before = now
		default:
			before = nil
			l.reload(ctx, agree, changed)
		}
	}
}

const (
	leastPause = 200 * time.Millisecond
	mostShare  = 500 // of the time is spent otherwise than on looking
)

func (l *Configuration) reload(ctx context.Context, agree func(*config.Config) error, changed func(*config.Config)) {
	start := time.Now()
	l.again = false
	c, found := l.load()
	for _, d := range found {
		level := slog.LevelError
		if d.Warning {
			level = slog.LevelWarn
		}
		l.log.Log(ctx, level, "configuration", "file", d.File, "line", d.Line, "column", d.Column, "key", d.Path, "problem", d.Text)
	}
	if c != nil {
		err := agree(c)
		if errors.Is(err, ErrChanged) {
			l.again = true
			return
		}
		if err != nil {
			l.log.Error("configuration", "file", l.name, "problem", err.Error())
			c = nil
		}
	}
	l.mu.Lock()
	l.status.Reloads++
	if c == nil {
		l.status.Failures++
		l.status.Failed = time.Now()
	}
	l.mu.Unlock()
	if c == nil {
		l.log.Error("not reloaded: the configuration in force stays", "file", l.name)
		return
	}
	l.adopt(c)
	changed(c)
	l.log.Info("reloaded", "file", l.name, "took_ms", time.Since(start).Milliseconds())
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
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode() && owner(a) == owner(b)
}

func owner(i fs.FileInfo) uint32 {
	if s, ok := i.Sys().(*syscall.Stat_t); ok {
		return s.Uid
	}
	return 0
}
