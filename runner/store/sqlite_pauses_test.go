package store_test

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

func pauseHook(t *testing.T, s *store.SQLite, name string, length time.Duration) runner.Pause {
	t.Helper()
	p, err := s.Pause(t.Context(), runner.Pause{Hook: name, Reason: "disk full", By: "uid 0", Length: length})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func resumeHook(t *testing.T, s *store.SQLite, name string) bool {
	t.Helper()
	paused, err := s.Resume(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return paused
}

func promoteAll(t *testing.T, s *store.SQLite) []runner.Run {
	t.Helper()
	runs, err := s.Promote(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return runs
}

// TestPause_EachPolicy admits to a paused hook, with a free flight and with a run in progress.
func TestPause_EachPolicy(t *testing.T) {
	for _, kind := range []hook.PolicyKind{hook.Reject, hook.Queue, hook.Join, hook.Replace} {
		for _, inProgress := range []bool{false, true} {
			s := openStore(t)
			policy := hook.Policy{Kind: kind, Depth: 1}
			current := newRun(t, "build", "f")
			if inProgress {
				admitRun(t, s, current, policy)
			}
			pauseHook(t, s, "build", 0)
			first, second := newRun(t, "build", "f"), newRun(t, "build", "f")
			a, err := s.Admit(t.Context(), first, runner.Claim{Key: "1"}, policy, runner.Feed{})
			var paused *runner.Paused
			if kind == hook.Reject {
				if !errors.As(err, &paused) || paused.Reason != "disk full" || paused.Left != 0 {
					t.Errorf("%s: %+v, %v", kind, a, err)
				}
				continue
			}
			if err != nil || a.Run.State != runner.Queued || a.Stop != nil {
				t.Errorf("%s: %+v, %v", kind, a, err)
			}
			a, err = s.Admit(t.Context(), second, runner.Claim{Key: "2"}, policy, runner.Feed{})
			if full := errors.As(err, &paused); full != (kind == hook.Queue) || a.Joined != (kind == hook.Join) {
				t.Errorf("%s, the second: %+v, %v", kind, a, err)
			}
			if inProgress {
				if next := finishRun(t, s, current.ID); next != nil {
					t.Errorf("%s: %s started", kind, next.ID)
				}
			}
			if runs := promoteAll(t, s); len(runs) > 0 {
				t.Errorf("%s: promoted %v", kind, runs)
			}
			if !resumeHook(t, s, "build") || resumeHook(t, s, "build") {
				t.Error("not resumed once")
			}
			if runs := promoteAll(t, s); len(runs) != 1 {
				t.Errorf("%s: promoted %v", kind, runs)
			}
		}
	}
}

// TestPause_OtherHook starts runs of other hooks, also past a paused one of the same flight.
func TestPause_OtherHook(t *testing.T) {
	s := openStore(t)
	policy := hook.Policy{Kind: hook.Queue, Depth: 9}
	pauseHook(t, s, "build", 0)
	admitRun(t, s, newRun(t, "build", "f"), policy)
	other := newRun(t, "other", "f")
	if a := admitRun(t, s, other, policy); a.Run.State != runner.Running {
		t.Errorf("the other hook: %+v", a)
	}
	third := newRun(t, "other", "f")
	admitRun(t, s, third, policy)
	if next := finishRun(t, s, other.ID); next == nil || next.ID != third.ID {
		t.Errorf("next is %+v", next)
	}
}

// TestPause_InterruptedIsQueued queues the repetition of an interrupted run, by whatever policy: its delivery was
// accepted.
func TestPause_InterruptedIsQueued(t *testing.T) {
	s := openStore(t)
	pauseHook(t, s, "build", 0)
	again := newRun(t, "build", "f")
	again.Attempt = 1
	a := admitRun(t, s, again, hook.Policy{Kind: hook.Queue, Depth: 1})
	if a.Run.State != runner.Queued {
		t.Errorf("it is %s", a.Run.State)
	}
}

// TestPause_Time ends a pause by the uptime, and not by the wall clock, and holds it over a restart of the server. After
// a restart of the machine, its time begins again.
func TestPause_Time(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := reopenStore(t, dir, 0)
	up := setUptime(s)
	p := pauseHook(t, s, "build", 2*time.Hour)
	if d := p.Until.Sub(p.Since); d != 2*time.Hour {
		t.Errorf("it lasts %s", d)
	}
	up.pass(time.Hour)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = reopenStore(t, dir, 24*time.Hour)
	up = setUptime(s)
	up.pass(time.Hour)
	list, err := s.Pauses(t.Context())
	if err != nil || len(list) != 1 || list[0].Reason != "disk full" || list[0].By != "uid 0" || list[0].EndsUp != p.EndsUp {
		t.Fatalf("%+v, %v", list, err)
	}
	if ended, err := s.EndPauses(t.Context()); err != nil || len(ended) > 0 {
		t.Fatalf("ended %v, %v", ended, err)
	}
	_, err = s.Admit(t.Context(), newRun(t, "build", "f"), runner.Claim{}, hook.Policy{Kind: hook.Reject}, runner.Feed{})
	var paused *runner.Paused
	if !errors.As(err, &paused) || paused.Left != time.Hour {
		t.Errorf("got %v, %+v", err, paused)
	}
	up.pass(time.Hour)
	if a := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{}); a.Run.State != runner.Running {
		t.Errorf("after the pause: %+v", a)
	}
	if ended, err := s.EndPauses(t.Context()); err != nil || len(ended) != 1 || ended[0] != "build" {
		t.Errorf("ended %v, %v", ended, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPause_RestartOfMachine counts the time of a pause again from the first start after a restart of the machine.
func TestPause_RestartOfMachine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := reopenStore(t, dir, 0)
	s.Uptime = func() time.Duration { return time.Second }
	pauseHook(t, s, "build", time.Minute)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	executeRaw(t, filepath.Join(dir), "UPDATE opened SET boot = 'an earlier start'")
	s, err := store.Open(t.Context(), dir, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if ended, err := s.EndPauses(t.Context()); err != nil || len(ended) > 0 {
		t.Errorf("ended %v, %v", ended, err)
	}
	if list, err := s.Pauses(t.Context()); err != nil || len(list) != 1 || list[0].EndsUp <= s.Uptime() {
		t.Errorf("%+v, %v", list, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPause_RestartBeforeNoted starts no run of a paused hook in the seconds after a restart of the machine, however
// long the machine was up before it. How long the pause lasts is read as it will be recorded.
func TestPause_RestartBeforeNoted(t *testing.T) {
	policy := hook.Policy{Kind: hook.Queue, Depth: 9}
	for what, start := range map[string]func(*testing.T, *store.SQLite) bool{
		"promoted": func(t *testing.T, s *store.SQLite) bool {
			t.Helper()
			return len(promoteAll(t, s)) > 0
		},
		"after the end of a run": func(t *testing.T, s *store.SQLite) bool {
			t.Helper()
			runs, err := s.Active(t.Context())
			mustSucceed(t, err)
			return finishRun(t, s, runs[0].ID) != nil
		},
		"admitted": func(t *testing.T, s *store.SQLite) bool {
			t.Helper()
			return admitRun(t, s, newRun(t, "build", "free"), policy).Run.State == runner.Running
		},
	} {
		dir := filepath.Join(t.TempDir(), "state")
		s := reopenStore(t, dir, 0)
		s.Uptime = func() time.Duration { return time.Second } // so the pause is over by the uptime of the next start
		if what == "after the end of a run" {
			admitRun(t, s, newRun(t, "other", "f"), policy)
		}
		pauseHook(t, s, "build", time.Second)
		admitRun(t, s, newRun(t, "build", "f"), policy)
		mustSucceed(t, s.Close())
		executeRaw(t, dir, "UPDATE opened SET boot = 'an earlier start'")
		s, err := store.Open(t.Context(), dir, time.Now, slog.New(slog.DiscardHandler))
		mustSucceed(t, err)
		at := s.Uptime()
		s.Uptime = func() time.Duration { return at }
		list, err := s.Pauses(t.Context())
		if err != nil || len(list) != 1 || list[0].EndsUp > at+time.Second || list[0].EndsUp <= at {
			t.Errorf("%s: %+v at %s, %v", what, list, at, err)
		}
		if start(t, s) {
			t.Errorf("%s: a run of a paused hook started", what)
		}
		if again, err := s.Pauses(t.Context()); err != nil || len(again) != 1 || again[0].EndsUp != list[0].EndsUp {
			t.Errorf("%s: %+v, before %+v, %v", what, again, list, err)
		}
		mustSucceed(t, s.Close())
	}
}
