package config_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/certs"
	"sallyport/internal/config"
	"sallyport/internal/testenv"
)

// place is a configuration that is watched in a bubble: its files are real, and its clock is simulated.
type place struct {
	*config.Watcher

	t    *testing.T
	dir  string
	logs testenv.Log
	hup  chan os.Signal
	seen time.Time // when the configuration in force at the last check was loaded

	refusal atomic.Pointer[error] // the error that the load returns, set by setRefusal
	asked   atomic.Int64          // calls of the check
}

// startWatching watches a configuration that accepts worker and guest.
func startWatching(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, dir: t.TempDir(), hup: make(chan os.Signal, 1)}
	p.certificates(time.Now())
	p.write("worker", "the worker's token, of thirty-two bytes")
	p.write("guest", "the guest's token, of thirty-two bytes")
	p.configure("worker", "guest")
	p.setRefusal(nil)
	var found []config.Diagnostic
	log := slog.New(slog.NewJSONHandler(&p.logs, nil))
	env := config.Env{Workloads: certs.NewWorkloads(log), Renewals: certs.NewRenewals(log)}
	p.Watcher, found = config.NewWatcher(filepath.Join(p.dir, "sallyport.yaml"), env, log)
	if p.Watcher == nil {
		t.Fatal(found)
	}
	p.seen = p.Status().Loaded
	var watching sync.WaitGroup
	watching.Go(func() {
		p.Watch(t.Context(), p.hup, func(*config.Config) error {
			p.asked.Add(1)
			return *p.refusal.Load()
		}, func(*config.Config) {})
	})
	t.Cleanup(watching.Wait)
	return p
}

func (p *place) setRefusal(err error) { p.refusal.Store(&err) }

// write replaces a file.
func (p *place) write(name, text string) {
	p.t.Helper()
	file := filepath.Join(p.dir, name)
	if err := errors.Join(os.WriteFile(file+".new", []byte(text), 0o600), os.Rename(file+".new", file)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) configure(callers ...string) {
	p.t.Helper()
	p.configureTLS("", callers...)
}

// configureTLS writes a configuration with more settings in its tls section than the pair.
func (p *place) configureTLS(more string, callers ...string) {
	p.t.Helper()
	text := "listen: \"localhost:0\"\nstate: state\ntls: {cert: certs/server.pem, key: certs/server.key" + more + "}\ncallers:\n"
	for _, name := range callers {
		text += fmt.Sprintf("  %s: {token: {keys: [{file: %s}]}}\n", name, name)
	}
	p.write("sallyport.yaml", text+fmt.Sprintf("hooks:\n  work: {callers: [%s], command: [/bin/true]}\n", strings.Join(callers, ", ")))
}

// certificates writes certificates that are valid from then on.
func (p *place) certificates(from time.Time) {
	p.t.Helper()
	const skew = time.Hour // tolerance of Dev
	dir := filepath.Join(p.dir, "certs")
	err := os.RemoveAll(dir)
	if err == nil {
		_, err = certs.Dev(dir, from.Add(skew), false)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// waitFor waits for d.
func (p *place) waitFor(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// trusted returns the number of callers in force.
func (p *place) trusted() int { return len(p.Get().CallerLimits) }

func (p *place) wantStatus(callers int, s config.ReloadStatus) {
	p.t.Helper()
	got := p.Status()
	if p.trusted() != callers || got != s {
		p.t.Errorf("%d callers and %+v, want %d and %+v", p.trusted(), got, callers, s)
	}
	if n := p.logs.Count("not reloaded"); n != s.Failures {
		p.t.Errorf("logged %d failures, want %d:\n%s", n, s.Failures, &p.logs)
	}
}

// adopted checks that the configuration in force was loaded after the last check.
func (p *place) adopted(callers int, s config.ReloadStatus) {
	p.t.Helper()
	s.Loaded = p.checkSince("loaded", p.Status().Loaded)
	p.seen = s.Loaded
	p.wantStatus(callers, s)
}

// failing checks that a newer configuration has been refused after the last check, and returns since when.
func (p *place) failing() time.Time {
	p.t.Helper()
	return p.checkSince("refused", p.Status().Failed)
}

// checkSince returns at, after a check that it is between the load of the configuration at the last check and now.
func (p *place) checkSince(what string, at time.Time) time.Time {
	p.t.Helper()
	if !at.After(p.seen) || at.After(time.Now()) {
		p.t.Errorf("it was %s at %s, and not between %s and now, %s", what, at, p.seen, time.Now())
	}
	return at
}

// TestWatch_RefusedIsRetried: without retries, if the disk was full or the supervisor did not run when the file
// changed, a caller that was removed from the file would be accepted until the next change.
func TestWatch_RefusedIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWatching(t)
		loaded := p.Status().Loaded
		p.setRefusal(errors.New("no room for the audit"))
		p.configure("worker")
		p.waitFor(time.Second)
		failed := p.Status().Failed
		p.wantStatus(2, config.ReloadStatus{Loaded: loaded, Failed: failed, Reloads: 1, Failures: 1})
		if d := time.Since(failed); d < 0 || d > time.Second {
			t.Errorf("it failed %s ago", d)
		}
		p.waitFor(14 * time.Second) // after 2, 4 and 8 more
		if n := p.asked.Load(); n != 4 {
			t.Errorf("%d attempts in 15 seconds", n)
		}
		p.waitFor(time.Hour)
		if n := p.asked.Load(); n < 60 || n > 70 {
			t.Errorf("%d attempts in an hour", n)
		}
		p.wantStatus(2, config.ReloadStatus{Loaded: loaded, Failed: failed, Reloads: 1, Failures: 1})
		p.setRefusal(nil)
		p.waitFor(time.Minute + time.Second)
		p.adopted(1, config.ReloadStatus{Reloads: 2, Failures: 1})
		n := p.asked.Load()
		p.waitFor(time.Hour)
		if p.asked.Load() != n {
			t.Error("it is loaded again though it is in force")
		}
	})
}

func TestWatch_CertificateBecomesValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWatching(t)
		p.certificates(time.Now().Add(5 * time.Second))
		p.waitFor(time.Second)
		if p.logs.Count("is not valid before") != 1 || p.Status().Failures != 1 {
			t.Errorf("%+v\n%s", p.Status(), &p.logs)
		}
		p.waitFor(10 * time.Second)
		p.adopted(2, config.ReloadStatus{Reloads: 2, Failures: 1})
	})
}

func TestWatch_RepeatedFailureIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWatching(t)
		loaded := p.Status().Loaded
		p.setRefusal(errors.New("one reason"))
		p.configure("worker")
		p.waitFor(time.Hour)
		failed := p.failing()
		p.setRefusal(errors.New("another"))
		p.waitFor(time.Hour)
		p.wantStatus(2, config.ReloadStatus{Loaded: loaded, Failed: failed, Reloads: 2, Failures: 2})
		p.hup <- syscall.SIGHUP
		synctest.Wait()
		p.wantStatus(2, config.ReloadStatus{Loaded: loaded, Failed: failed, Reloads: 3, Failures: 3})
		p.write("sallyport.yaml", "callers: {}") // the third reload
		p.waitFor(time.Second)
		p.wantStatus(2, config.ReloadStatus{Loaded: loaded, Failed: failed, Reloads: 4, Failures: 4})
	})
}

func TestWatch_EndlessChangesFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWatching(t)
		loaded := p.Status().Loaded
		p.setRefusal(config.ErrChanged)
		p.configure("worker")
		p.waitFor(2 * time.Second)
		if n := p.asked.Load(); n < 2 {
			t.Errorf("%d attempts in 2 seconds", n)
		}
		p.wantStatus(2, config.ReloadStatus{Loaded: loaded})
		p.waitFor(time.Hour)
		p.wantStatus(2, config.ReloadStatus{Loaded: loaded, Failed: p.failing(), Reloads: 1, Failures: 1})
		p.setRefusal(nil)
		p.waitFor(time.Minute + time.Second)
		p.adopted(1, config.ReloadStatus{Reloads: 2, Failures: 1})
	})
}

func TestWatch_UnsettledFileHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWatching(t)
		p.configure("worker")
		for n := range 100 {
			if p.trusted() == 1 {
				break
			}
			p.write("worker", "the worker's token, of thirty-two bytes"+strings.Repeat("!", n))
			p.waitFor(100 * time.Millisecond)
		}
		if p.trusted() != 1 {
			t.Error("the guest is let in after 10 seconds")
		}
	})
}

func TestWatch_FileBeingWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWatching(t)
		for n := range 10 {
			p.write("worker", "the worker's token, of thirty-two bytes"+strings.Repeat("!", n))
			p.waitFor(100 * time.Millisecond)
		}
		if p.asked.Load() != 0 {
			t.Error("it was read before that")
		}
		p.waitFor(time.Second)
		p.adopted(2, config.ReloadStatus{Reloads: 1})
	})
}
