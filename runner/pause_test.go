package runner_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

func (b *bench) pauseHook(t *testing.T, length time.Duration) {
	t.Helper()
	if _, err := b.Pauses().PauseHook(t.Context(), runner.Pause{Hook: "h", Reason: "disk full", By: "uid 0", Length: length}); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) resumeHook(t *testing.T) {
	t.Helper()
	if paused, err := b.Pauses().ResumeHook(t.Context(), "h"); err != nil || !paused {
		t.Fatal(paused, err)
	}
}

// wantPaused checks that a delivery is refused because its hook is paused.
func wantPaused(t *testing.T, err error) {
	t.Helper()
	var paused *runner.Paused
	if !errors.As(err, &paused) || paused.Hook != "h" || paused.Reason != "disk full" {
		t.Fatalf("got %v, want a pause", err)
	}
}

// TestPause_Refuses refuses deliveries, reruns and dry runs until the hook is resumed, also after a crash. The run in
// progress continues.
func TestPause_Refuses(t *testing.T) {
	h := policy(t, func(*hook.Spec) {})
	b := newBench(t, h)
	run := b.start(t, of(h, "0"))
	b.pauseHook(t, 0)
	_, err := b.Start(of(h, "1"))
	wantPaused(t, err)
	if !b.Pauses().PausedHooks()["h"] {
		t.Error("the metrics do not know of the pause")
	}
	run = b.finish(t, run, 0)
	b.crash(t)
	b.recover(t)
	_, err = b.Start(of(h, "1"))
	wantPaused(t, err)
	_, err = b.Rerun(t.Context(), run, "ci", runner.Claim{})
	wantPaused(t, err)
	_, err = b.DryRun(t.Context(), of(h, "1"))
	wantPaused(t, err)
	b.resumeHook(t)
	b.start(t, of(h, "1"))
}

// TestPause_Queues queues deliveries and starts them once the hook is resumed, also if its flight was free.
func TestPause_Queues(t *testing.T) {
	h := policy(t, queueOf(2))
	b := newBench(t, h)
	b.pauseHook(t, 0)
	if s, err := b.DryRun(t.Context(), of(h, "1")); err != nil || s.Run.State != runner.Queued || s.Position != 1 {
		t.Errorf("a dry run: %+v, %v", s, err)
	}
	first := b.queue(t, of(h, "1"))
	b.crash(t)
	b.recover(t)
	second := b.queue(t, of(h, "2"))
	_, err := b.Start(of(h, "3"))
	wantPaused(t, err)
	_, err = b.DryRun(t.Context(), of(h, "3"))
	wantPaused(t, err)
	b.state(t, first.Run.ID, runner.Queued)
	b.resumeHook(t)
	b.flies(t, first.Run.ID)
	b.finish(t, first.Run, 0)
	b.flies(t, second.Run.ID)
}

// TestPause_RunInProgressEnds leaves the next run queued while the hook is paused.
func TestPause_RunInProgressEnds(t *testing.T) {
	h := policy(t, replace)
	b := newBench(t, h)
	run := b.start(t, of(h, "0"))
	b.pauseHook(t, 0)
	next := b.queue(t, of(h, "1"))
	b.finish(t, run, 0)
	if n := len(b.stopped()); n > 0 {
		t.Errorf("%d runs were stopped", n)
	}
	b.state(t, next.Run.ID, runner.Queued)
	b.resumeHook(t)
	b.flies(t, next.Run.ID)
}

// TestPause_EndsByItself starts the queued runs when the time of the pause is over.
func TestPause_EndsByItself(t *testing.T) {
	h := policy(t, queueOf(2))
	b := newBench(t, h)
	b.pauseHook(t, time.Hour)
	run := b.queue(t, of(h, "1"))
	if err := b.Pauses().EndPauses(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.state(t, run.Run.ID, runner.Queued)
	b.pass(2 * time.Hour)
	if err := b.Pauses().EndPauses(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.flies(t, run.Run.ID)
	if list, err := b.Pauses().List(t.Context()); err != nil || len(list) > 0 || b.Pauses().PausedHooks()["h"] {
		t.Errorf("%+v, %v", list, err)
	}
}

// unreadPauses fails to read the pauses while it is set.
type unreadPauses struct {
	runner.Store

	failing atomic.Bool
}

// Pauses implements runner.Store.
func (u *unreadPauses) Pauses(ctx context.Context) ([]runner.Pause, error) {
	if u.failing.Load() {
		return nil, runner.ErrUnavailable
	}
	return u.Store.Pauses(ctx)
}

// TestPause_ResumedUnread: a hook that was resumed starts its queued runs although the pauses could not be read then.
func TestPause_ResumedUnread(t *testing.T) {
	t.Parallel()
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	u := &unreadPauses{Store: b.disk}
	b.Runner = runner.New(u, b.commands, b.hook, b.now, slog.New(slog.DiscardHandler))
	b.pauseHook(t, 0)
	queued := b.queue(t, of(h, "1"))
	u.failing.Store(true)
	b.resumeHook(t)
	b.flies(t, queued.Run.ID)
}

// TestPause_ExtendedAfterItsEnd: the runs of another hook of the group start although the pause of this hook was
// replaced just after its time was over.
func TestPause_ExtendedAfterItsEnd(t *testing.T) {
	t.Parallel()
	spec := func() hook.Spec {
		return hook.Spec{
			Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Group: "db"}, Busy: hook.BusySpec{Queue: 5},
		}
	}
	h, other := newHook(t, spec(), "x"), namedHook(t, "other", spec(), "x")
	b := newBench(t, h, other)
	// Recorded by the store alone: the runner would start queued runs at a time that is not known here.
	if _, err := b.disk.Pause(t.Context(), runner.Pause{Hook: "h", Reason: "r", By: "uid 0", Length: time.Minute}); err != nil {
		t.Fatal(err)
	}
	b.queue(t, of(h, "1"))
	b.pass(time.Minute + time.Second)
	queued := b.queue(t, of(other, "2"))
	b.pauseHook(t, time.Hour)
	b.flies(t, queued.Run.ID)
}

// TestPause_Expectations: while its hook is paused, a run is not expected before the end of the pause. The position
// of a run of another hook of the group does not count it.
func TestPause_Expectations(t *testing.T) {
	t.Parallel()
	for _, kind := range []hook.BusySpec{{Queue: 5}, {Kind: "join"}} {
		spec := func() hook.Spec {
			return hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Group: "db"}, Busy: kind}
		}
		h, other := newHook(t, spec(), "x"), namedHook(t, "other", spec(), "x")
		b := newBench(t, h, other)
		foresee := func(h *hook.Hook, want int) {
			t.Helper()
			if s, err := b.DryRun(t.Context(), of(h, "1")); err != nil || s.Run.State != runner.Queued || s.Position != want {
				t.Errorf("a dry run: %+v, %v; want position %d", s, err, want)
			}
		}
		b.pauseHook(t, time.Hour)
		paused := b.queue(t, of(h, "1"))
		if paused.Expected < time.Hour-time.Minute {
			t.Errorf("expected in %s", paused.Expected)
		}
		b.pauseHook(t, 0)
		if paused = b.queue(t, of(h, "2")); paused.Expected != 0 {
			t.Errorf("expected in %s", paused.Expected)
		}
		run := b.start(t, of(other, "3"))
		foresee(other, 1)
		if next := b.queue(t, of(other, "4")); next.Position != 1 {
			t.Errorf("position %d", next.Position)
		}
		want := 2
		if kind.Kind == "join" {
			want = 1
		}
		foresee(other, want)
		if next := b.queue(t, of(other, "5")); next.Position != want {
			t.Errorf("position %d, want %d", next.Position, want)
		}
		b.finish(t, run, 0)
	}
}
