package runner_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// region returns a hook with a flight for each value of x; alone returns one with a single flight.
func region(t *testing.T) *hook.Hook {
	t.Helper()
	return newHook(t, hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Key: "{x}"}}, "x")
}

func alone(t *testing.T) *hook.Hook {
	t.Helper()
	return newHook(t, hook.Spec{Command: []string{"/bin/echo"}})
}

func of(h *hook.Hook, x string) runner.Delivery {
	return runner.Delivery{Hook: h, Caller: "ci", Values: hook.Values{"x": x}}
}

func busy(t *testing.T, err error, with runner.Run) *runner.Busy {
	t.Helper()
	var b *runner.Busy
	if !errors.As(err, &b) || b.Run.ID != with.ID {
		t.Fatalf("want busy with %s, got %v", with.ID, err)
	}
	return b
}

func replayed(t *testing.T, err error, of runner.Run) runner.Run {
	t.Helper()
	var r *runner.Replayed
	if !errors.As(err, &r) || r.Run.ID != of.ID {
		t.Fatalf("want a replay of %s, got %v", of.ID, err)
	}
	return r.Run
}

func TestStart_OneAtATime(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	first := b.start(t, of(h, ""))
	if first.State != runner.Running || first.Flight != "h" || first.Caller != "ci" {
		t.Errorf("got %+v", first)
	}
	_, err := b.Start(of(h, ""))
	busy(t, err, first)
	if run := b.finish(t, first, 0); run.State != runner.Succeeded || *run.ExitCode != 0 {
		t.Errorf("got %+v", run)
	}
	if run := b.finish(t, b.start(t, of(h, "")), 3); run.State != runner.Failed {
		t.Errorf("got %+v", run)
	}
}

func TestFlight_DifferentKeys(t *testing.T) {
	h := region(t)
	b := newBench(t, h)
	eu, us := b.start(t, of(h, "eu")), b.start(t, of(h, "us"))
	_, err := b.Start(of(h, "eu"))
	busy(t, err, eu)
	b.finish(t, eu, 0)
	b.start(t, of(h, "eu"))
	_, err = b.Start(of(h, "us"))
	busy(t, err, us)
}

func TestStart_ManyAtOnce(t *testing.T) {
	h := region(t)
	b := newBench(t, h)
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			x := fmt.Sprint(i % 3)
			for range 60 {
				run, err := b.Start(of(h, x))
				if err == nil {
					b.end(run.ID, runner.End{Ended: b.now()})
					if _, err = b.Wait(t.Context(), run.ID); err != nil {
						t.Error(err)
					}
				} else if other := new(runner.Busy); !errors.As(err, &other) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if b.overlaps != 0 || b.started < 3 {
		t.Errorf("%d overlaps in %d runs", b.overlaps, b.started)
	}
}

func TestStart_SameDeliveryAtOnce(t *testing.T) {
	h := region(t)
	b := newBench(t, h)
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() { // each in a separate flight: only the claim prevents a second start
			d := of(h, fmt.Sprint(i))
			d.Claim = runner.Claim{Key: "k"}
			if _, err := b.Start(d); err != nil && !errors.As(err, new(*runner.Replayed)) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if b.started != 1 {
		t.Errorf("%d runs", b.started)
	}
}

func TestBusy_RetryAfter(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	wait := func(run runner.Run, want time.Duration) {
		t.Helper()
		_, err := b.Start(of(h, ""))
		if got := busy(t, err, run).RetryAfter; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for i, took := range []time.Duration{90 * time.Second, 10 * time.Second, 20 * time.Second} {
		run := b.start(t, of(h, ""))
		if i == 0 {
			wait(run, 10*time.Second) // no run has ended yet
		}
		b.pass(took)
		b.finish(t, run, 0)
	}
	run := b.start(t, of(h, ""))
	wait(run, 20*time.Second)
	b.pass(5 * time.Second)
	wait(run, 15*time.Second)
	b.pass(time.Hour)
	wait(run, time.Second)
	b.finish(t, run, 0)
	for range 31 { // only the latest runs count
		run := b.start(t, of(h, ""))
		b.pass(40 * time.Second)
		b.finish(t, run, 0)
	}
	wait(b.start(t, of(h, "")), 40*time.Second)
}

func TestStart_ReusedCredential(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k", Body: [32]byte{1}, OneBody: true}
	first := b.start(t, d)
	b.finish(t, first, 0)
	_, err := b.Start(d)
	replayed(t, err, first)
	d.Claim.Body = [32]byte{2}
	if _, err = b.Start(d); !errors.Is(err, runner.ErrReused) {
		t.Errorf("got %v", err)
	}
}

func TestStart_Replayed(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k", Body: [32]byte{1}}
	first := b.start(t, d)
	_, err := b.Start(d)
	if run := replayed(t, err, first); run.State != runner.Running {
		t.Errorf("got %+v", run)
	}
	b.finish(t, first, 0)
	_, err = b.Start(d)
	if run := replayed(t, err, first); run.State != runner.Succeeded {
		t.Errorf("got %+v", run)
	}
	d.Claim.Body = [32]byte{2} // the key covers the body, so Body is not compared
	_, err = b.Start(d)
	replayed(t, err, first)
	if b.started != 1 {
		t.Errorf("%d runs", b.started)
	}
}

func TestBusy_DeliveryMayComeAgain(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	first := b.start(t, of(h, ""))
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k"}
	_, err := b.Start(d)
	busy(t, err, first)
	b.finish(t, first, 0)
	b.start(t, d)
}

func TestNotStarted_DeliveryMayComeAgain(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k"}
	b.refuse = errors.New("no such file: /secret/place")
	_, err := b.Start(d)
	var failed *runner.NotStarted
	if !errors.As(err, &failed) || !errors.Is(failed.Reason, b.refuse) {
		t.Fatalf("got %v", err)
	}
	run, err := b.Get(t.Context(), failed.Run.ID)
	if err != nil || run.State != runner.Failed || run.Error != "the command could not be started" {
		t.Errorf("got %+v, %v", run, err) // only the operator gets the reason
	}
	b.refuse = nil
	if again := b.start(t, d); again.ID == run.ID {
		t.Error("the same run")
	}
}

func TestFollow_UnknownRunIsStopped(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k"}
	b.lose = true
	run := b.ended(t, b.start(t, d))
	if run.State != runner.Interrupted || run.ExitCode != nil {
		t.Errorf("got %+v", run)
	}
	if want := []stop{{run.ID, runner.Interrupted, 0}}; !slices.Equal(b.stopped(), want) {
		t.Errorf("got %v", b.stopped())
	}
	_, err := b.Start(d)
	replayed(t, err, run)
}

func TestStart_StoreUnavailable(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	b.disk.full(true)
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k"}
	for range 2 { // the flight is free again after each
		if _, err := b.Start(d); !errors.Is(err, runner.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	}
	b.disk.full(false)
	b.start(t, d)
	if b.count() != 1 {
		t.Errorf("%d runs", b.count())
	}
}

func TestStdin_Body(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	d := of(h, "")
	d.Body, d.Trace = []byte("body"), "00-1"
	run := b.start(t, d)
	if o := b.order(run.ID); o.Stdin != nil || o.Trace != "00-1" || o.Caller != "ci" || o.Hook != "h" {
		t.Errorf("got %+v", o)
	}
	b.finish(t, run, 0)
	d.Hook = newHook(t, hook.Spec{Command: []string{"/bin/cat"}, Stdin: "body"})
	b.use(d.Hook)
	if o := b.order(b.start(t, d).ID); string(o.Stdin) != "body" {
		t.Errorf("got %+v", o)
	}
}

func TestWait_TimeIsUp(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	run := b.start(t, of(h, ""))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := b.Wait(ctx, run.ID); err != nil || got.State != runner.Running {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := b.Wait(ctx, "x"); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

func TestDrain_LetsRunsEnd(t *testing.T) {
	h := region(t)
	b := newBench(t, h)
	d := of(h, "eu")
	d.Claim = runner.Claim{Key: "k"}
	run := b.start(t, d)
	drained := make(chan struct{})
	go func() { b.Drain(context.Background()); close(drained) }() //nolint:usetesting // it outlives the test's own when that fails
	for !b.Draining() {
		select {
		case <-drained:
			t.Fatal("drained while a run was in progress")
		default:
		}
	}
	if _, err := b.Start(of(h, "us")); !errors.Is(err, runner.ErrDraining) {
		t.Errorf("got %v", err)
	}
	_, err := b.Start(d) // a replay is still answered with its run
	replayed(t, err, run)
	b.finish(t, run, 0)
	<-drained
	b.Drain(t.Context()) // again, with no run in progress
	if len(b.stopped()) > 0 {
		t.Errorf("stopped: %v", b.stopped())
	}
}

func TestDrain_StopsAtDeadline(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	run := b.start(t, of(h, ""))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	drained := make(chan struct{})
	go func() { b.Drain(ctx); close(drained) }()
	b.await(t, 1)
	b.end(run.ID, runner.End{Ended: b.now(), Signal: "SIGTERM", Reason: runner.Cancelled})
	<-drained
	if want := []stop{{run.ID, runner.Cancelled, -1}}; !slices.Equal(b.stopped(), want) {
		t.Errorf("got %v", b.stopped())
	}
	if got := b.ended(t, run); got.State != runner.Cancelled || got.Signal != "SIGTERM" {
		t.Errorf("got %+v", got)
	}
}

func TestKill_NoGrace(t *testing.T) {
	h := region(t)
	b := newBench(t, h)
	run := b.start(t, of(h, "eu"))
	b.Kill()
	if _, err := b.Start(of(h, "us")); !errors.Is(err, runner.ErrDraining) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	drained := make(chan struct{})
	go func() { b.Drain(ctx); close(drained) }()
	b.end(run.ID, runner.End{Ended: b.now(), Reason: runner.Cancelled})
	<-drained
	if want := []stop{{run.ID, runner.Cancelled, 0}}; !slices.Equal(b.stopped(), want) {
		t.Errorf("got %v", b.stopped())
	}
	b.Kill() // no run is in progress
}

func TestKill_WhileRunStarts(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	b.entered, b.gate = make(chan string), make(chan struct{})
	started := make(chan runner.Run)
	go func() {
		run, err := b.Start(of(h, ""))
		if err != nil {
			t.Error(err)
		}
		started <- run
	}()
	id := <-b.entered
	b.Kill() // stops no command, because none was started yet
	close(b.gate)
	run := <-started
	if want := []stop{{id, runner.Cancelled, 0}}; !slices.Equal(b.stopped(), want) {
		t.Errorf("got %v", b.stopped())
	}
	b.end(run.ID, runner.End{Ended: b.now(), Reason: runner.Cancelled})
	b.Drain(t.Context())
	b.ended(t, run)
}

// TestEnd_State checks which state each reason of an end gives.
func TestEnd_State(t *testing.T) {
	for want, end := range map[runner.State]runner.End{
		runner.Succeeded:   {ExitCode: new(0)},
		runner.Failed:      {ExitCode: new(1)},
		runner.TimedOut:    {ExitCode: new(0), Reason: runner.TimedOut}, // it ended with 0, and too late
		runner.Interrupted: {Reason: runner.Interrupted},
	} {
		if got := end.State(); got != want || !got.Ended() {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := (runner.End{Signal: "SIGSEGV"}).State(); got != runner.Failed {
		t.Errorf("got %s", got)
	}
	if runner.Running.Ended() || runner.Queued.Ended() {
		t.Error("a run in progress counts as ended")
	}
}
