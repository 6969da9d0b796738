package store_test

import (
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/internal/boot"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// uptime is a time since the start of the machine that a test sets.
type uptime struct{ at atomic.Int64 }

// setUptime has a store measure waiting times with an uptime.
func setUptime(s *store.SQLite) *uptime {
	u := &uptime{}
	u.pass(100 * time.Hour)
	s.Uptime = func() time.Duration { return time.Duration(u.at.Load()) }
	return u
}

func (u *uptime) pass(d time.Duration) { u.at.Add(int64(d)) }

// reopenStore opens a store while the wall clock is off by a duration.
func reopenStore(t *testing.T, dir string, off time.Duration) *store.SQLite {
	t.Helper()
	s, err := store.Open(t.Context(), dir, func() time.Time { return time.Now().Add(off) },
		slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func expireQueued(t *testing.T, s *store.SQLite, longest time.Duration) int {
	t.Helper()
	runs, err := s.ExpireQueued(t.Context(), "build", longest)
	if err != nil {
		t.Fatal(err)
	}
	return len(runs)
}

// TestExpireQueued_ClockSetBetweenStarts sets the wall clock while no server runs: no run expires because of that,
// and the next server knows by how much the clock was set.
func TestExpireQueued_ClockSetBetweenStarts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := reopenStore(t, dir, 0)
	policy := hook.Policy{Kind: hook.Queue, Depth: 9}
	admitRun(t, s, newRun(t, "build", "f"), policy)
	queued := newRun(t, "build", "f")
	admitRun(t, s, queued, policy)
	if n := expireQueued(t, s, time.Minute); n != 0 { // this notes the clocks
		t.Fatalf("%d expired at once", n)
	}
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		mustSucceed(t, s.Close())
		s = reopenStore(t, dir, off)
		if n := expireQueued(t, s, 30*time.Minute); n != 0 {
			t.Errorf("set by %v: %d expired", off, n)
		}
		want := off
		if off < 0 {
			want *= 2 // back from the hour before
		}
		if boot.Uptime() > 0 && (s.Stepped()-want).Abs() > time.Minute {
			t.Errorf("set by %v: Stepped is %v", want, s.Stepped())
		}
		checkState(t, s, queued.ID, runner.Queued)
	}
	mustSucceed(t, s.Close())
}

// TestExpireQueued_OtherStartOfMachine finds runs that an earlier version queued, or a server before the machine was
// started again. How long they have waited is not known, so their wait starts again.
func TestExpireQueued_OtherStartOfMachine(t *testing.T) {
	for name, before := range map[string]string{
		"restarted":       `UPDATE opened SET boot = 'another'`,
		"earlier version": `DELETE FROM opened`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			s := reopenStore(t, dir, 0)
			policy := hook.Policy{Kind: hook.Queue, Depth: 9}
			admitRun(t, s, newRun(t, "build", "f"), policy)
			admitRun(t, s, newRun(t, "build", "f"), policy)
			if n := expireQueued(t, s, time.Hour); n != 0 {
				t.Fatalf("%d expired at once", n)
			}
			mustSucceed(t, s.Close())
			executeRaw(t, dir, `UPDATE runs SET accepted_up = -1000000000000000`) // long before
			executeRaw(t, dir, before)
			s = reopenStore(t, dir, 0)
			if n := expireQueued(t, s, time.Hour); n != 0 {
				t.Errorf("%d expired that may have waited for a moment only", n)
			}
			up := setUptime(s)
			up.pass(boot.Uptime() + 2*time.Hour)
			if n := expireQueued(t, s, time.Hour); n != 1 {
				t.Errorf("%d expired after they were queued again", n)
			}
			mustSucceed(t, s.Close())
		})
	}
}

func mustSucceed(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
