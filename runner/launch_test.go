package runner_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"weak"

	"sallyport/internal/guard"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// TestStart_BodyNotKept: a run in progress does not keep the body of its delivery in memory.
func TestStart_BodyNotKept(t *testing.T) {
	t.Parallel()
	h := newHook(t, hook.Spec{Command: []string{"/bin/cat"}, Stdin: "body"})
	b := newBench(t, h)
	d := of(h, "")
	d.Body = make([]byte, 1<<20)
	body := weak.Make(&d.Body[0])
	run := b.start(t, d)
	d.Body = nil
	b.set(func() { b.given[run.ID] = runner.Order{Run: run.ID} })
	until(t, "the body is released", func() bool {
		runtime.GC()
		return body.Value() == nil
	})
	b.finish(t, run, 0)
}

// passing has the reasons for which a command cannot be started for a time.
func passing() map[string]error {
	return map[string]error{
		"an escaped process":       fmt.Errorf("starting: %w: h", runner.ErrFlight),
		"the supervisor is ending": fmt.Errorf("%w: the supervisor is about to end", runner.ErrNotNow),
		"no supervisor":            fmt.Errorf("%w: reaching the supervisor", runner.ErrNotNow),
		"no program":               errors.New("starting: no such file or directory"),
	}
}

// vain ends the first run while no command can be started, and waits until the next run is queued again.
func (b *bench) vain(t *testing.T, first, next runner.Run, reason error) {
	t.Helper()
	b.set(func() { b.refuse, b.refused = reason, 0 })
	b.finish(t, first, 0)
	b.putBack(t, next.ID)
}

func (b *bench) putBack(t *testing.T, id string) {
	t.Helper()
	until(t, "the run waits again", func() bool {
		b.commands.mu.Lock()
		refused := b.refused
		b.commands.mu.Unlock()
		run := b.record(t, id)
		return refused > 0 && run.State == runner.Queued && run.Started.IsZero()
	})
}

func TestRetry_UntilCommandStarts(t *testing.T) {
	for what, reason := range passing() {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := policy(t, queueOf(5))
			b := newBench(t, h)
			first := b.start(t, claimed(of(h, "1"), "1"))
			second, third := b.queue(t, claimed(of(h, "2"), "2")), b.queue(t, of(h, "3"))
			b.vain(t, first, second.Run, reason)

			_, err := b.Start(claimed(of(h, "2"), "2")) // the claim of its delivery was not removed
			replayed(t, err, second.Run)
			fourth := b.queue(t, of(h, "4")) // and comes after the others
			if fourth.Position != 3 {
				t.Errorf("position %d", fourth.Position)
			}
			b.set(func() { b.refuse = nil })
			for _, s := range []runner.Started{second, third, fourth} {
				b.flies(t, s.Run.ID)
				if run := b.finish(t, s.Run, 0); run.State != runner.Succeeded {
					t.Errorf("got %+v", run)
				}
			}
			if b.count() != 4 || b.overlaps+b.twice > 0 {
				t.Errorf("%d starts, %d overlaps, %d twice", b.count(), b.overlaps, b.twice)
			}
		})
	}
}

func TestNotStarted_GivesDeliveryBack(t *testing.T) {
	for what, reason := range passing() {
		t.Run(what, func(t *testing.T) {
			h := policy(t, queueOf(5))
			b := newBench(t, h)
			b.set(func() { b.refuse = reason })
			_, err := b.Start(claimed(of(h, ""), "k"))
			if !errors.As(err, new(*runner.NotStarted)) || !errors.Is(err, reason) {
				t.Fatalf("got %v", err)
			}
			b.set(func() { b.refuse = nil })
			b.start(t, claimed(of(h, ""), "k"))
		})
	}
}

func TestRetry_CancelAndExpire(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { s.Busy.Queue, s.QueueTimeout = 5, time.Minute })
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second, third := b.queue(t, of(h, "2")), b.queue(t, of(h, "3"))
	b.pass(45 * time.Second)
	fourth := b.queue(t, of(h, "4"))
	b.vain(t, first, second.Run, runner.ErrFlight)
	if _, err := b.Cancel(t.Context(), second.Run.ID); err != nil {
		t.Fatal(err)
	}
	if run := b.ended(t, second.Run); run.State != runner.Cancelled || !run.Started.IsZero() {
		t.Errorf("got %+v", run)
	}
	b.pass(30 * time.Second)
	until(t, "the next is given up", func() bool { // not during an attempt
		if err := b.ExpireQueued(t.Context(), maps.Clone(b.hooks)); err != nil {
			t.Fatal(err)
		}
		return b.record(t, third.Run.ID).State.Ended()
	})
	if run := b.ended(t, third.Run); run.State != runner.TimedOut {
		t.Errorf("got %+v", run)
	}
	b.set(func() { b.refuse = nil })
	b.flies(t, fourth.Run.ID)
	if b.count() != 2 {
		t.Errorf("%d starts", b.count())
	}
}

func TestRetry_Cancelled(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second := b.queue(t, of(h, "2"))
	b.gateStarts()
	b.set(func() { b.refuse = runner.ErrFlight })
	b.finish(t, first, 0)
	if id := <-b.entered; id != second.Run.ID {
		t.Fatalf("%s is tried", id)
	}
	if _, err := b.Cancel(t.Context(), second.Run.ID); err != nil {
		t.Fatal(err)
	}
	close(b.gate)
	if run := b.ended(t, second.Run); run.State != runner.Cancelled {
		t.Errorf("got %+v", run)
	}
}

func TestRetry_PolicyOfNewDeliveries(t *testing.T) {
	t.Run("join", func(t *testing.T) {
		t.Parallel()
		h := policy(t, join)
		b := newBench(t, h)
		first := b.start(t, of(h, "1"))
		second := b.queue(t, of(h, "2"))
		b.vain(t, first, second.Run, runner.ErrFlight)
		var third runner.Started
		until(t, "it joins", func() bool { // or arrives during an attempt of the other run
			third = b.queue(t, of(h, "3"))
			return third.Run.ID == second.Run.ID
		})
		b.set(func() { b.refuse = nil })
		if o := b.flies(t, third.Run.ID); o.Values["x"] != "3" {
			t.Errorf("got %+v", o)
		}
	})
	t.Run("replace", func(t *testing.T) {
		t.Parallel()
		h := policy(t, replace)
		b := newBench(t, h)
		first := b.start(t, of(h, "1"))
		second := b.queue(t, of(h, "2"))
		b.vain(t, first, second.Run, runner.ErrFlight)
		third := b.queue(t, of(h, "3"))
		if run := b.ended(t, second.Run); run.State != runner.Cancelled {
			t.Errorf("got %+v", run)
		}
		b.set(func() { b.refuse = nil })
		b.flies(t, third.Run.ID)
		if len(b.stopped()) != 1 || b.count() != 2 { // only the first run is stopped
			t.Errorf("stopped %v, %d starts", b.stopped(), b.count())
		}
	})
	t.Run("reject", func(t *testing.T) {
		t.Parallel()
		h := policy(t, func(s *hook.Spec) { s.OnInterrupted = "rerun" })
		b := newBench(t, h)
		first := b.start(t, of(h, "1"))
		b.set(func() { b.refuse = runner.ErrFlight })
		b.end(first.ID, runner.End{Ended: b.now(), Reason: runner.Interrupted})
		b.ended(t, first)
		again, _, err := b.Runner.List(t.Context(), runner.Filter{})
		if err != nil || len(again) != 2 {
			t.Fatalf("%d runs, %v", len(again), err)
		}
		b.putBack(t, again[0].ID)
		_, err = b.Start(of(h, "2"))
		busy(t, err, again[0])
		b.set(func() { b.refuse = nil })
		b.flies(t, again[0].ID)
	})
}

func TestRetry_NextServer(t *testing.T) {
	for what, leave := range map[string]func(context.Context, *bench){
		"drained": func(ctx context.Context, b *bench) { b.Drain(ctx) },
		"left":    func(_ context.Context, b *bench) { b.Leave() },
		"killed":  func(context.Context, *bench) {},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := policy(t, queueOf(5))
			b := newBench(t, h)
			first := b.start(t, of(h, "1"))
			second := b.queue(t, of(h, "2"))
			b.vain(t, first, second.Run, runner.ErrNotNow)
			leave(t.Context(), b)
			b.crash(t)
			b.recover(t) // the start still fails
			b.putBack(t, second.Run.ID)
			b.set(func() { b.refuse = nil })
			b.flies(t, second.Run.ID)
			if b.count() != 2 {
				t.Errorf("%d starts", b.count())
			}
		})
	}
}

func TestStart_LeftToNextServer(t *testing.T) {
	for _, runs := range []bool{true, false} {
		t.Run(fmt.Sprint("runs=", runs), func(t *testing.T) {
			h := policy(t, queueOf(5))
			b := newBench(t, h)
			d := claimed(of(h, "1"), "k")
			b.set(func() { b.refuse = fmt.Errorf("another server has taken over: %w", runner.ErrLeft) })
			s, err := b.Runner.Start(t.Context(), b.lookUp(d))
			if err != nil || !s.Late {
				t.Fatalf("got %+v, %v", s, err)
			}
			b.state(t, s.Run.ID, runner.Running)
			b.set(func() { b.refuse = nil })
			if runs { // its answer was lost
				if err := b.commands.Start(runner.Order{Run: s.Run.ID, Hook: s.Run.Hook, Values: s.Run.Params}); err != nil {
					t.Fatal(err)
				}
			}
			b.crash(t)
			b.recover(t)
			b.flies(t, s.Run.ID)
			_, err = b.Start(d)
			replayed(t, err, s.Run)
			if run := b.finish(t, s.Run, 0); run.State != runner.Succeeded || b.count() != 1 {
				t.Errorf("got %+v, %d starts", run, b.count())
			}
		})
	}
}

func TestStart_SupervisorSilent(t *testing.T) {
	t.Parallel()
	h := policy(t, queueOf(5))
	for what, end := range map[string]struct {
		refuse error
		state  runner.State
	}{"it runs": {nil, runner.Succeeded}, "it is refused": {runner.ErrRefused, runner.Failed}, "it cannot yet": {errors.New("no such file"), runner.Queued}} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, h)
			b.gateStarts()
			b.set(func() { b.refuse = end.refuse })
			first := make(chan runner.Started)
			go func() {
				s, err := b.Runner.Start(t.Context(), b.lookUp(claimed(of(h, "1"), "1")))
				if err != nil {
					t.Error(err)
				}
				first <- s
			}()
			id := <-b.entered
			s := <-first // long before the supervisor answers
			if !s.Late || s.Run.ID != id || s.Run.State != runner.Running {
				t.Errorf("got %+v", s)
			}
			_, err := b.Start(claimed(of(h, "1"), "1"))
			replayed(t, err, s.Run)
			if second := b.queue(t, of(h, "2")); second.Position != 1 {
				t.Errorf("got %+v", second)
			}
			b.Leave() // does not wait forever either
			close(b.gate)
			if end.refuse == nil {
				b.flies(t, id)
				b.end(id, exit(0))
			}
			until(t, "the end is recorded", func() bool { return b.record(t, id).State == end.state })
			if stopped := b.stopped(); !slices.Equal(stopped, nil) {
				t.Errorf("stopped %v", stopped)
			}
		})
	}
}

func TestAnswers_OneQuestion(t *testing.T) {
	b := newBench(t, alone(t))
	if !b.Answers(t.Context()) {
		t.Error("silent")
	}
	b.listing = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if b.Answers(ctx) {
			t.Error("answers")
		}
	}
	until(t, "it is asked", func() bool { return b.lists.Load() > 1 })
	if b.Answers(ctx) || b.lists.Load() != 2 {
		t.Errorf("asked %d times", b.lists.Load())
	}
	close(b.listing)
	until(t, "it answers", func() bool { return b.Answers(t.Context()) })
}

// TestCancel_BeforeCommandBegins cancels a run whose order was given and not carried out yet: Cancel returns at once,
// and the command never starts.
func TestCancel_BeforeCommandBegins(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second, third := b.queue(t, of(h, "2")), b.queue(t, of(h, "3"))
	b.gateStarts()
	b.finish(t, first, 0)
	if id := <-b.entered; id != second.Run.ID {
		t.Fatalf("%s is started", id)
	}
	for range 2 {
		if run, err := b.Cancel(t.Context(), second.Run.ID); err != nil || run.State != runner.Running {
			t.Fatalf("got %+v, %v", run, err)
		}
	}
	b.gate <- struct{}{}
	if run := b.ended(t, second.Run); run.State != runner.Cancelled || len(b.stopped()) > 0 {
		t.Errorf("got %+v, and %v was stopped", run, b.stopped())
	}
	if id := <-b.entered; id != third.Run.ID {
		t.Fatalf("%s is started", id)
	}
	close(b.gate)
	b.flies(t, third.Run.ID)
	if b.count() != 2 {
		t.Errorf("%d commands started", b.count())
	}
}

// TestCancel_WhileCommandBegins cancels a run that is being started: Cancel returns once the command is asked to end.
func TestCancel_WhileCommandBegins(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second := b.queue(t, of(h, "2"))
	b.gateStarts()
	b.finish(t, first, 0)
	<-b.entered
	b.set(func() { b.claimed, b.obey = true, true })
	cancelled := make(chan error)
	go func() {
		_, err := b.Cancel(t.Context(), second.Run.ID)
		if len(b.stopped()) == 0 {
			err = errors.Join(err, errors.New("answered before the command got TERM"))
		}
		cancelled <- err
	}()
	until(t, "the cancellation is recorded", func() bool { return b.record(t, second.Run.ID).Wish == runner.Cancelled })
	close(b.gate)
	if err := <-cancelled; err != nil {
		t.Error(err)
	}
	if run := b.ended(t, second.Run); run.State != runner.Cancelled || run.Signal == "" {
		t.Errorf("got %+v", run)
	}
}

// faulty panics after it has carried out an order.
type faulty struct{ *commands }

// Start implements runner.Processes.
func (f faulty) Start(o runner.Order) error {
	if err := f.commands.Start(o); err != nil {
		return err
	}
	panic("after the order was carried out") //nolint:forbidigo // it stands for a fault of the program
}

// TestStart_FaultAfterOrder: a command that may have been started is followed, and never started again.
func TestStart_FaultAfterOrder(t *testing.T) {
	h := newHook(t, hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Key: "{x}"}}, "x")
	b := newBench(t, h)
	r := runner.New(b.disk, faulty{b.commands}, b.hook, time.Now, slog.New(slog.DiscardHandler))
	d := claimed(of(h, "eu"), "k")
	s, err := r.Start(t.Context(), d)
	if err != nil || s.Run.State != runner.Running {
		t.Fatalf("got %+v, %v", s, err)
	}
	b.commands.end(s.Run.ID, runner.End{Ended: time.Now(), ExitCode: new(int)})
	until(t, "its end is recorded", func() bool { return b.record(t, s.Run.ID).State == runner.Succeeded })
	until(t, "the flight is free", func() bool {
		_, err = r.Start(t.Context(), d)
		return !errors.As(err, new(*runner.Busy))
	})
	var replayed *runner.Replayed
	if !errors.As(err, &replayed) {
		t.Errorf("the same delivery: %v", err)
	}
}

// faultyStore panics after it has recorded the first end.
type faultyStore struct {
	runner.Store

	done atomic.Bool
}

// Finish implements runner.Store.
func (f *faultyStore) Finish(
	ctx context.Context, id string, s runner.State, e runner.End, c runner.AfterClaims, q runner.AfterQueue,
) (runner.Run, *runner.Run, error) {
	ended, next, err := f.Store.Finish(ctx, id, s, e, c, q)
	if !f.done.Swap(true) {
		panic("after the end was recorded") //nolint:forbidigo // it stands for a fault of the program
	}
	return ended, next, err
}

// TestEnd_FaultAfterRecord: the next run of the flight starts although the server lost the result of its promotion.
func TestEnd_FaultAfterRecord(t *testing.T) {
	t.Parallel()
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	r := runner.New(&faultyStore{Store: b.disk}, b.commands, b.hook, time.Now, slog.New(slog.DiscardHandler))
	first, err := r.Start(t.Context(), of(h, "1"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := r.Start(t.Context(), of(h, "2"))
	if err != nil {
		t.Fatal(err)
	}
	b.commands.end(first.Run.ID, exit(0))
	b.flies(t, second.Run.ID)
	b.commands.end(second.Run.ID, exit(0))
	r.Drain(t.Context())
	b.state(t, second.Run.ID, runner.Succeeded)
}

// unstoppable panics when a run is to be stopped, and when one is looked up.
type unstoppable struct{ faulty }

// Stop implements runner.Processes.
func (unstoppable) Stop(string, runner.State, time.Duration) error {
	panic("before the command is stopped") //nolint:forbidigo // it stands for a fault of the program
}

// Known implements runner.Processes.
func (unstoppable) Known(string) (bool, error) {
	panic("before the run is looked up") //nolint:forbidigo // it stands for a fault of the program
}

// TestDrain_FaultBeforeOrder: a run whose start fails by a fault ends as not started. Drain does not wait for it, its
// flight is free, and its delivery may come again.
func TestDrain_FaultBeforeOrder(t *testing.T) {
	t.Parallel()
	h := alone(t)
	b := newBench(t, h)
	broken := true
	lookUp := func(name string) (*hook.Hook, bool) {
		if broken {
			panic("before the order is given") //nolint:forbidigo // it stands for a fault of the program
		}
		return b.hook(name)
	}
	r := runner.New(b.disk, b.commands, lookUp, time.Now, slog.New(slog.DiscardHandler))
	d := claimed(of(h, ""), "k")
	_, err := r.Start(t.Context(), d)
	var failed *runner.NotStarted
	if !errors.As(err, &failed) || !errors.Is(err, guard.ErrFault) || failed.Run.State != runner.Failed {
		t.Errorf("got %v", err)
	}
	broken = false
	var s runner.Started
	until(t, "the flight is free", func() bool {
		s, err = r.Start(t.Context(), d)
		return !errors.As(err, new(*runner.Busy))
	})
	if err != nil {
		t.Fatalf("the same delivery: %v", err)
	}
	b.commands.end(s.Run.ID, exit(0))
	r.Drain(t.Context())
	b.state(t, s.Run.ID, runner.Succeeded)
}

// TestDrain_FaultAfterOrder: a run whose start ends by faults after the order was carried out is followed to its end,
// and Drain waits for that end only.
func TestDrain_FaultAfterOrder(t *testing.T) {
	t.Parallel()
	h := alone(t)
	b := newBench(t, h)
	r := runner.New(b.disk, unstoppable{faulty{b.commands}}, b.hook, time.Now, slog.New(slog.DiscardHandler))
	b.gateStarts()
	started := make(chan runner.Started, 1)
	go func() {
		s, err := r.Start(t.Context(), of(h, ""))
		if err != nil {
			t.Error(err)
		}
		started <- s
	}()
	<-b.entered
	r.Kill() // the run is to be stopped once it is started
	close(b.gate)
	s := <-started
	b.commands.end(s.Run.ID, exit(0))
	r.Drain(t.Context())
	b.state(t, s.Run.ID, runner.Succeeded)
}

// elsewhere is an installation whose folder of runs was replaced: runs are revoked in one folder, and started in the
// other.
type elsewhere struct{ *commands }

// Revoke implements runner.Processes.
func (elsewhere) Revoke(string, runner.State) (bool, error) { return true, nil }

// TestCancel_StartedAllTheSame: a command that begins although it was revoked is stopped.
func TestCancel_StartedAllTheSame(t *testing.T) {
	h := newHook(t, hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Key: "{x}"}}, "x")
	b := newBench(t, h)
	r := runner.New(b.disk, elsewhere{b.commands}, b.hook, time.Now, slog.New(slog.DiscardHandler))
	b.gateStarts()
	started := make(chan error, 1)
	go func() {
		_, err := r.Start(t.Context(), of(h, "eu"))
		started <- err
	}()
	id := <-b.entered
	b.set(func() { b.obey = true })
	if _, err := r.Cancel(t.Context(), id); err != nil {
		t.Error(err)
	}
	close(b.gate)
	if err := <-started; err != nil {
		t.Error(err)
	}
	until(t, "the command is stopped", func() bool { return len(b.stopped()) > 0 })
	until(t, "its end is recorded", func() bool { return b.record(t, id).State == runner.Cancelled })
}
