package store_test

import (
	"errors"
	"testing"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// TestGroup_PolicyConcernsOwnRuns queues runs of several hooks in one flight, by the policy of each.
func TestGroup_PolicyConcernsOwnRuns(t *testing.T) {
	s := openStore(t)
	const flight = "group:db"
	queue, join, replace := hook.Policy{Kind: hook.Queue, Depth: 1}, hook.Policy{Kind: hook.Join}, hook.Policy{Kind: hook.Replace}
	admit := func(name string, p hook.Policy, position int) runner.Admission {
		t.Helper()
		a := admitRun(t, s, newRun(t, name, flight), p)
		if a.Position != position || a.Run.Hook != name {
			t.Errorf("%s: %+v, want position %d", name, a, position)
		}
		return a
	}
	first := admit("replace", replace, 0)
	queued := admit("queue", queue, 1)
	joined := admit("join", join, 2)
	if joined.Joined {
		t.Error("a run joined that of another hook")
	}
	var busy *runner.Busy
	_, err := s.Admit(t.Context(), newRun(t, "reject", flight), runner.Claim{}, hook.Policy{}, runner.Feed{})
	if !errors.As(err, &busy) || busy.Run.ID != first.Run.ID {
		t.Errorf("reject: %v", err)
	}
	_, err = s.Admit(t.Context(), newRun(t, "queue", flight), runner.Claim{}, queue, runner.Feed{})
	if !errors.As(err, &busy) {
		t.Errorf("a full queue: %v", err)
	}
	second := admit("replace", replace, 3)
	if second.Stop == nil || second.Stop.ID != first.Run.ID || len(second.Superseded) > 0 {
		t.Errorf("replace: %+v", second)
	}
	if again := admit("join", join, 2); !again.Joined || again.Run.ID != joined.Run.ID {
		t.Errorf("join: %+v", again)
	}
	third := admit("replace", replace, 3)
	if len(third.Superseded) != 1 || third.Superseded[0].ID != second.Run.ID {
		t.Errorf("replace again: %+v", third)
	}
	next := finishRun(t, s, first.Run.ID)
	for _, want := range []runner.Run{queued.Run, joined.Run, third.Run} {
		if next == nil || next.ID != want.ID {
			t.Fatalf("next is %+v, want the run of %s", next, want.Hook)
		}
		next = finishRun(t, s, next.ID)
	}
	if next != nil {
		t.Errorf("one more: %+v", next)
	}
}

// TestGroup_ReplaceLeavesOtherHooks: a delivery does not cancel a run of another hook.
func TestGroup_ReplaceLeavesOtherHooks(t *testing.T) {
	s := openStore(t)
	running := admitRun(t, s, newRun(t, "a", "group:db"), hook.Policy{})
	a := admitRun(t, s, newRun(t, "b", "group:db"), hook.Policy{Kind: hook.Replace})
	if a.Stop != nil || a.Run.State != runner.Queued {
		t.Errorf("%+v", a)
	}
	if r := checkState(t, s, running.Run.ID, runner.Running); r.Wish != "" {
		t.Errorf("asked to end as %s", r.Wish)
	}
}
