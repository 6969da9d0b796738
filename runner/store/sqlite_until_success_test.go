package store_test

import (
	"errors"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// TestUntilSuccess_ClaimNamesTheNewRun repeats a delivery after each end of its run.
func TestUntilSuccess_ClaimNamesTheNewRun(t *testing.T) {
	one := 1
	cancel := func(t *testing.T, admin runner.Store, id string) {
		t.Helper()
		if _, _, err := admin.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	untouched := func(*testing.T, runner.Store, string) {}
	for name, row := range map[string]struct {
		before func(*testing.T, runner.Store, string)
		end    runner.State
		starts bool
	}{
		"failed":                  {untouched, runner.Failed, true},
		"timed out":               {untouched, runner.TimedOut, true},
		"interrupted":             {untouched, runner.Interrupted, true},
		"cancelled by the server": {untouched, runner.Cancelled, true},
		"cancelled on request":    {cancel, runner.Cancelled, false},
		"succeeded":               {untouched, runner.Succeeded, false},
		"running":                 {untouched, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openIn(t, dir+"/state")
			claim := runner.Claim{Key: "name", Also: []string{"signature"}, Body: [32]byte{1}, UntilSuccess: true}
			first := admitWith(t, s, claim)
			row.before(t, s, first)
			if row.end != "" {
				end := runner.End{Ended: time.Now(), ExitCode: &one}
				if _, _, err := s.Finish(t.Context(), first, row.end, end, runner.KeepClaims,
					runner.PromoteNext); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil { // what decides is in the file
				t.Fatal(err)
			}
			s = openIn(t, dir+"/state")
			_, err := s.Find(t.Context(), "build", claim)
			if starts := errors.Is(err, runner.ErrUnknown); starts != row.starts {
				t.Errorf("looks new: %v, %v", starts, err)
			}
			checked := claim
			checked.UntilSuccess = false
			if run, err := s.Find(t.Context(), "build", checked); err != nil || run.ID != first {
				t.Errorf("with replay: check it is %v, %v", run.ID, err)
			}
			again, want := newRun(t, "build", "again"), first
			if row.starts {
				want = again.ID
			}
			for range 2 { // the new run is running then
				_, _ = s.Admit(t.Context(), again, claim, hook.Policy{}, runner.Feed{})
				again = newRun(t, "build", "again")
			}
			for _, key := range []string{"name", "signature"} {
				if run, err := s.Find(t.Context(), "build", runner.Claim{Key: key}); err != nil || run.ID != want {
					t.Errorf("%s names run %v, %v, not %s", key, run.ID, err, want)
				}
			}
		})
	}
}

// TestUntilSuccess_ReplacedRunStartsNothing repeats a delivery whose queued run was replaced by a newer one.
func TestUntilSuccess_ReplacedRunStartsNothing(t *testing.T) {
	s := openStore(t)
	p := hook.Policy{Kind: hook.Replace}
	admitRun(t, s, newRun(t, "build", "f"), p)
	claim := runner.Claim{Key: "name", UntilSuccess: true}
	old := newRun(t, "build", "f")
	if _, err := s.Admit(t.Context(), old, claim, p, runner.Feed{}); err != nil {
		t.Fatal(err)
	}
	admitRun(t, s, newRun(t, "build", "f"), p)
	checkState(t, s, old.ID, runner.Cancelled)
	var first *runner.Replayed
	if _, err := s.Admit(t.Context(), newRun(t, "build", "f"), claim, p, runner.Feed{}); !errors.As(err, &first) {
		t.Errorf("an older delivery replaced the newer one: %v", err)
	}
}

// TestUntilSuccess_BusyKeepsTheClaim repeats a delivery of a failed run while its flight is busy.
func TestUntilSuccess_BusyKeepsTheClaim(t *testing.T) {
	s := openStore(t)
	claim := runner.Claim{Key: "name", UntilSuccess: true}
	first := admitWith(t, s, claim)
	if _, _, err := s.Finish(t.Context(), first, runner.Failed, runner.End{}, runner.KeepClaims,
		runner.PromoteNext); err != nil {
		t.Fatal(err)
	}
	other := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{})
	_, err := s.Admit(t.Context(), newRun(t, "build", "f"), claim, hook.Policy{}, runner.Feed{})
	if !errors.As(err, new(*runner.Busy)) {
		t.Errorf("a busy flight: %v", err)
	}
	if run, err := s.Find(t.Context(), "build", runner.Claim{Key: "name"}); err != nil || run.ID != first {
		t.Errorf("the claim names %v, %v", run.ID, err)
	}
	finishRun(t, s, other.Run.ID)
	again := newRun(t, "build", "f")
	if _, err := s.Admit(t.Context(), again, claim, hook.Policy{}, runner.Feed{}); err != nil {
		t.Errorf("a free flight: %v", err)
	}
}

// TestUntilSuccess_RerunIsOfTheDelivery repeats a delivery whose interrupted run was queued again without it.
func TestUntilSuccess_RerunIsOfTheDelivery(t *testing.T) {
	s := openStore(t)
	claim := runner.Claim{Key: "name", UntilSuccess: true}
	first := admitWith(t, s, claim)
	again := newRun(t, "build", "again")
	if _, err := s.Admit(t.Context(), again, runner.Claim{Key: runner.RerunKey(first)}, hook.Policy{},
		runner.Feed{}); err != nil {
		t.Fatal(err)
	}
	end := func(id string, state runner.State) {
		t.Helper()
		if _, _, err := s.Finish(t.Context(), id, state, runner.End{}, runner.KeepClaims, runner.PromoteNext); err != nil {
			t.Fatal(err)
		}
	}
	end(first, runner.Interrupted)
	if run, err := s.Find(t.Context(), "build", claim); err != nil || run.ID != again.ID {
		t.Errorf("while it runs again: %v, %v", run.ID, err)
	}
	end(again.ID, runner.Failed)
	if _, err := s.Find(t.Context(), "build", claim); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("after that failed: %v", err)
	}
}
