package runner_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// retried returns a change of a hook that repeats failed runs.
func retried(times int, codes ...int) func(*hook.Spec) {
	return func(s *hook.Spec) {
		s.Retry = hook.RetrySpec{Times: times, After: time.Minute, Codes: codes}
	}
}

// fail ends a run with an exit code and returns it as it is recorded then.
func (b *bench) fail(t *testing.T, run runner.Run, code int) runner.Run {
	t.Helper()
	b.end(run.ID, runner.End{Ended: b.now(), ExitCode: &code})
	until(t, "run "+run.ID+" ends", func() bool {
		now, err := b.Get(t.Context(), run.ID)
		run = now
		return err == nil && now.State.Ended()
	})
	until(t, "its driver has ended", func() bool { return !b.IsInProgress(run.Flight) })
	return run
}

// becomeDue lets the time pass until a run is due, and wakes the runner.
func (b *bench) becomeDue(t *testing.T, run runner.Run) {
	t.Helper()
	run = b.state(t, run.ID, runner.Queued)
	b.pass(run.Due.Sub(b.now()) + time.Millisecond)
	b.wake(t)
}

// wake has the runner look for runs that may start, as its timers do.
func (b *bench) wake(t *testing.T) {
	t.Helper()
	if _, err := b.Pauses().ResumeHook(t.Context(), "no such hook"); err != nil {
		t.Fatal(err)
	}
}

// attempt returns the attempt that follows a failed run.
func (b *bench) attempt(t *testing.T, failed runner.Run, number int) runner.Run {
	t.Helper()
	if failed.State != runner.Failed || failed.Again == "" {
		t.Fatalf("not repeated: %+v", failed)
	}
	again := b.state(t, failed.Again, runner.Queued)
	if again.RerunOf != failed.ID || again.Attempt != number || again.Caller != failed.Caller || again.Due.IsZero() {
		t.Errorf("attempt %+v", again)
	}
	return again
}

// TestRetry_GivenUp repeats a failed run as often as its hook says, each attempt with the same input, and gives it up with
// the state of the last one. Wait and a repeated delivery follow the attempts.
func TestRetry_GivenUp(t *testing.T) {
	h := newHook(t, hook.Spec{
		Command: []string{"/bin/echo", "--x={x}"}, Stdin: "body", Retry: hook.RetrySpec{Times: 2, After: time.Minute},
	}, "x")
	b := newBench(t, h)
	d := claimed(of(h, "1"), "k")
	d.Body, d.Trace, d.Claim.UntilSuccess = []byte("body"), "00-1", true
	run := b.start(t, d)
	waited := make(chan runner.Run, 1)
	first := run.ID
	go func() {
		last, _ := b.Wait(context.WithoutCancel(t.Context()), first)
		waited <- last
	}()
	for number := 1; number <= 2; number++ {
		run = b.attempt(t, b.fail(t, run, 75), number)
		b.wake(t)
		b.state(t, run.ID, runner.Queued) // its time has not come
		_, err := b.Start(d)
		var replayed *runner.Replayed
		if !errors.As(err, &replayed) || replayed.Run.ID != run.ID {
			t.Errorf("the delivery again: %v", err)
		}
		b.becomeDue(t, run)
		if o := b.flies(t, run.ID); string(o.Stdin) != "body" || o.Trace != "00-1" || o.Values["x"] != "1" {
			t.Errorf("order %+v", o)
		}
	}
	if last := b.fail(t, run, 75); last.Again != "" || last.Attempt != 2 {
		t.Errorf("not given up: %+v", last)
	}
	if last := <-waited; last.ID != run.ID || last.State != runner.Failed {
		t.Errorf("waited for %+v", last)
	}
	b.start(t, d) // replay: until_success
}

// TestRetry_OnlyFailed repeats no run that ended otherwise, and with codes no other exit code.
func TestRetry_OnlyFailed(t *testing.T) {
	h := policy(t, retried(3, 75, 76))
	b := newBench(t, h)
	one, tempFail := 1, 75
	for name, end := range map[string]runner.End{
		"another exit code": {ExitCode: &one},
		"a signal":          {Signal: "SIGKILL"},
		"not started":       {Error: "the command could not be started", ExitCode: &tempFail},
		"timed out":         {ExitCode: &tempFail, Reason: runner.TimedOut},
		"cancelled":         {ExitCode: &tempFail, Reason: runner.Cancelled},
		"interrupted":       {Reason: runner.Interrupted},
	} {
		run := b.start(t, of(h, "1"))
		end.Ended = b.now()
		b.end(run.ID, end)
		if run = b.ended(t, run); run.Again != "" {
			t.Errorf("%s: repeated: %+v", name, run)
		}
	}
	run := b.start(t, of(h, "1"))
	if _, err := b.Cancel(t.Context(), run.ID); err != nil { // its command ends just before it is stopped
		t.Fatal(err)
	}
	if run = b.fail(t, run, 75); run.Again != "" {
		t.Errorf("repeated after a cancellation: %+v", run)
	}
	b.attempt(t, b.fail(t, b.start(t, of(h, "1")), 76), 1)
}

// TestRetry_Signal repeats a run that was ended by a signal, without codes.
func TestRetry_Signal(t *testing.T) {
	h := policy(t, retried(1))
	b := newBench(t, h)
	run := b.start(t, of(h, "1"))
	b.end(run.ID, runner.End{Ended: b.now(), Signal: "SIGSEGV"})
	until(t, "it is repeated", func() bool { now, _ := b.Get(t.Context(), run.ID); return now.Again != "" })
}

// TestRetry_HoldsItsHook has the later deliveries of the hook treated as if the attempt were in progress.
func TestRetry_HoldsItsHook(t *testing.T) {
	for name, change := range map[string]func(*hook.Spec){
		"reject": func(*hook.Spec) {}, "queue": queueOf(2), "join": join, "replace": replace,
	} {
		t.Run(name, func(t *testing.T) {
			h := policy(t, func(s *hook.Spec) { change(s); retried(1)(s) })
			b := newBench(t, h)
			again := b.attempt(t, b.fail(t, b.start(t, of(h, "1")), 1), 1)
			if name == "reject" {
				_, err := b.Start(of(h, "2"))
				if got := busy(t, err, again).RetryAfter; got < time.Minute {
					t.Errorf("retry after %s", got)
				}
				return
			}
			s := b.queue(t, of(h, "2"))
			next := s.Run
			switch name {
			case "queue":
				b.wake(t)
				if b.state(t, next.ID, runner.Queued); s.Position != 2 {
					t.Errorf("position %d", s.Position)
				}
				b.becomeDue(t, again)
				b.flies(t, again.ID)
				b.finish(t, again, 0)
			case "join":
				if next.ID != again.ID || next.Attempt != 0 || next.RerunOf != "" {
					t.Errorf("joined %+v", s)
				}
			case "replace":
				b.state(t, again.ID, runner.Cancelled)
			}
			if o := b.flies(t, next.ID); o.Values["x"] != "2" {
				t.Errorf("order %+v", o)
			}
			b.attempt(t, b.fail(t, next, 1), 1) // with attempts of its own
		})
	}
}

// TestRetry_Group lets runs of other hooks in the group start while an attempt is not due, and starts it first once it is.
func TestRetry_Group(t *testing.T) {
	backup := namedHook(t, "backup", hook.Spec{
		Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Group: "db", Key: "{x}"},
		Retry: hook.RetrySpec{Times: 1, After: time.Minute},
	}, "x")
	migrate := inGroup(t, "migrate", hook.BusySpec{Queue: 5})
	b := newBench(t, backup, migrate)
	again := b.attempt(t, b.fail(t, b.start(t, of(backup, "eu")), 1), 1)
	second := b.start(t, of(migrate, "eu"))
	third := b.queue(t, of(migrate, "eu"))
	b.becomeDue(t, again)
	b.state(t, again.ID, runner.Queued)
	b.finish(t, second, 0)
	b.flies(t, again.ID)
	b.finish(t, again, 0)
	b.flies(t, third.Run.ID)
}

// TestRetry_CancelledWhileQueued ends the attempts with the cancellation of the one that is queued, and starts what is behind it.
func TestRetry_CancelledWhileQueued(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { queueOf(2)(s); retried(3)(s) })
	b := newBench(t, h)
	d := claimed(of(h, "1"), "k")
	d.Claim.UntilSuccess = true
	again := b.attempt(t, b.fail(t, b.start(t, d), 1), 1)
	next := b.queue(t, of(h, "2"))
	if _, err := b.Cancel(t.Context(), again.ID); err != nil {
		t.Fatal(err)
	}
	b.flies(t, next.Run.ID)
	var replayed *runner.Replayed
	if _, err := b.Start(d); !errors.As(err, &replayed) || replayed.Run.State != runner.Cancelled {
		t.Errorf("the delivery again: %v", err)
	}
}

// TestRetry_Crash loses and doubles no attempt when the server ends just after the end is recorded, and keeps its time.
func TestRetry_Crash(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { queueOf(2)(s); retried(2)(s) })
	b := newBench(t, h)
	run := b.start(t, of(h, "1"))
	next := b.queue(t, of(h, "2"))
	b.disk.unfinished(true)
	one := 1
	b.end(run.ID, runner.End{Ended: b.now(), ExitCode: &one}) // nothing of it is recorded
	b.crash(t)
	b.recover(t)
	until(t, "the end is recorded", func() bool { now, _ := b.Get(t.Context(), run.ID); return now.State.Ended() })
	again := b.attempt(t, b.state(t, run.ID, runner.Failed), 1)
	b.crash(t)
	b.pass(30 * time.Second)
	b.recover(t)
	b.state(t, again.ID, runner.Queued)
	b.becomeDue(t, again)
	b.flies(t, again.ID)
	b.crash(t)
	b.recover(t)
	if second := b.attempt(t, b.fail(t, again, 1), 2); second.RerunOf != again.ID {
		t.Errorf("attempt %+v", second)
	}
	b.state(t, next.Run.ID, runner.Queued)
	all, _, err := b.Runner.List(t.Context(), runner.Filter{})
	if err != nil || len(all) != 4 || b.twice+b.overlaps > 0 {
		t.Errorf("%d runs, %v, %d twice, %d overlap", len(all), err, b.twice, b.overlaps)
	}
}

// TestRetry_Reload judges a failed run by the file at its end. An attempt that is queued already starts without the rule.
func TestRetry_Reload(t *testing.T) {
	h, without := policy(t, retried(2)), policy(t, func(*hook.Spec) {})
	b := newBench(t, without)
	run := b.start(t, of(without, "1"))
	b.use(h)
	again := b.attempt(t, b.fail(t, run, 1), 1)
	b.use(without)
	b.becomeDue(t, again)
	b.flies(t, again.ID)
	if again = b.fail(t, again, 1); again.Again != "" {
		t.Errorf("repeated without a rule: %+v", again)
	}
}

// TestRetry_Expires counts the time until an attempt is due not as time in the queue.
func TestRetry_Expires(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { queueOf(2)(s); retried(2)(s); s.QueueTimeout = 10 * time.Second })
	b := newBench(t, h)
	again := b.attempt(t, b.fail(t, b.start(t, of(h, "1")), 1), 1)
	b.pauseHook(t, 0)
	hooks := map[string]*hook.Hook{"h": h}
	for _, step := range []struct {
		pass time.Duration
		want runner.State
	}{{59 * time.Second, runner.Queued}, {10 * time.Second, runner.Queued}, {2 * time.Second, runner.TimedOut}} {
		b.pass(step.pass)
		if err := b.ExpireQueued(t.Context(), hooks); err != nil {
			t.Fatal(err)
		}
		b.state(t, again.ID, step.want)
	}
}

// TestRetry_Interrupted counts only attempts that failed: an interrupted one is repeated by its own rule.
func TestRetry_Interrupted(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { queueOf(2)(s); retried(1)(s); s.OnInterrupted = "rerun" })
	b := newBench(t, h)
	run := b.start(t, of(h, "1"))
	b.end(run.ID, runner.End{Ended: b.now(), Reason: runner.Interrupted})
	run = b.ended(t, run)
	var rerun runner.Run
	until(t, "it is repeated", func() bool {
		all, _, _ := b.Runner.List(t.Context(), runner.Filter{Limit: 1})
		rerun = all[0]
		return rerun.RerunOf == run.ID
	})
	b.flies(t, rerun.ID)
	again := b.attempt(t, b.fail(t, rerun, 1), 2)
	b.becomeDue(t, again)
	b.flies(t, again.ID)
	if again = b.fail(t, again, 1); again.Again != "" {
		t.Errorf("repeated: %+v", again)
	}
}
