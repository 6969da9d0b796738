package runner_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// policy returns a hook with one flight, and a parameter that distinguishes deliveries.
func policy(t *testing.T, change func(*hook.Spec)) *hook.Hook {
	t.Helper()
	s := hook.Spec{Command: []string{"/bin/echo", "--x={x}"}}
	change(&s)
	return newHook(t, s, "x")
}

func queueOf(n int) func(*hook.Spec) {
	return func(s *hook.Spec) { s.Busy.Queue = n }
}

func join(s *hook.Spec)    { s.Busy.Kind = "join" }
func replace(s *hook.Spec) { s.Busy.Kind = "replace" }

func claimed(d runner.Delivery, key string) runner.Delivery {
	d.Claim = runner.Claim{Key: key}
	return d
}

func TestQueue_BoundOrderEstimate(t *testing.T) {
	h := policy(t, queueOf(2))
	b := newBench(t, h)
	run := b.start(t, of(h, "0"))
	b.pass(time.Minute)
	b.finish(t, run, 0)

	first := b.start(t, of(h, "1"))
	b.pass(20 * time.Second)
	second, third := b.queue(t, of(h, "2")), b.queue(t, of(h, "3"))
	if second.Position != 1 || third.Position != 2 || second.Joined {
		t.Errorf("got %+v, %+v", second, third)
	}
	if second.Expected != 40*time.Second || third.Expected != 100*time.Second {
		t.Errorf("expected in %s and %s", second.Expected, third.Expected)
	}
	_, err := b.Start(claimed(of(h, "4"), "k"))
	if got := busy(t, err, first).RetryAfter; got != 40*time.Second {
		t.Errorf("retry after %s", got)
	}

	b.finish(t, first, 0)
	if o := b.flies(t, second.Run.ID); o.Values["x"] != "2" {
		t.Errorf("got %+v", o)
	}
	// The refused delivery did not keep its claim, and gets the place that is free now.
	fourth := b.queue(t, claimed(of(h, "4"), "k"))
	if fourth.Position != 2 {
		t.Errorf("position %d", fourth.Position)
	}
	b.finish(t, second.Run, 1)
	b.flies(t, third.Run.ID)
	b.finish(t, third.Run, 0)
	if o := b.flies(t, fourth.Run.ID); o.Values["x"] != "4" || o.Caller != "ci" {
		t.Errorf("got %+v", o)
	}
	if run := b.finish(t, fourth.Run, 0); run.State != runner.Succeeded || run.Started.IsZero() {
		t.Errorf("got %+v", run)
	}
}

func TestQueue_Body(t *testing.T) {
	h := newHook(t, hook.Spec{Command: []string{"/bin/cat"}, Stdin: "body", Busy: hook.BusySpec{Queue: 1}})
	b := newBench(t, h)
	first := b.start(t, of(h, ""))
	d := of(h, "")
	d.Body, d.Trace = []byte("second"), "00-2"
	second := b.queue(t, d)
	b.finish(t, first, 0)
	if o := b.flies(t, second.Run.ID); string(o.Stdin) != "second" || o.Trace != "00-2" {
		t.Errorf("got %+v", o)
	}
}

func TestLaunch_BodyUnreadable(t *testing.T) {
	h := newHook(t, hook.Spec{Command: []string{"/bin/cat"}, Stdin: "body"})
	b := newBench(t, h)
	id := b.admit(t, h, "", runner.Feed{Stdin: []byte("body")})
	b.disk.full(true)
	recovered := make(chan error)
	go func() { recovered <- b.Recover(context.WithoutCancel(t.Context())) }()
	until(t, "the body is asked for", func() bool { return b.disk.refusals() > 0 })
	b.disk.full(false)
	if err := <-recovered; err != nil {
		t.Fatal(err)
	}
	if o := b.flies(t, id); string(o.Stdin) != "body" {
		t.Errorf("got %+v", o)
	}
}

func TestJoin_OneRunNewestParameters(t *testing.T) {
	h := policy(t, join)
	b := newBench(t, h)
	first := b.start(t, claimed(of(h, "0"), "0"))
	var pending runner.Started
	for i := 1; i <= 20; i++ {
		key := fmt.Sprint(i)
		s := b.queue(t, claimed(of(h, key), key))
		if i > 1 && s.Run.ID != pending.Run.ID {
			t.Fatalf("delivery %d is another run", i)
		}
		if pending = s; s.Position != 1 || s.Joined != (i > 1) || s.Run.Params["x"] != key {
			t.Errorf("delivery %d: %+v", i, s)
		}
	}
	b.finish(t, first, 0)
	if o := b.flies(t, pending.Run.ID); o.Values["x"] != "20" {
		t.Errorf("got %+v", o)
	}
	b.finish(t, pending.Run, 0)
	for i := range 21 { // each joined delivery is answered with the run that stood for it
		key := fmt.Sprint(i)
		want := pending.Run
		if i == 0 {
			want = first
		}
		_, err := b.Start(claimed(of(h, key), key))
		if run := replayed(t, err, want); run.State != runner.Succeeded {
			t.Errorf("got %+v", run)
		}
	}
	if b.count() != 2 {
		t.Errorf("%d runs", b.count())
	}
}

func TestReplace_Newest(t *testing.T) {
	h := policy(t, replace)
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second := b.queue(t, of(h, "2"))
	if want := []stop{{first.ID, runner.Cancelled, -1}}; !slices.Equal(b.stopped(), want) || second.Position != 1 {
		t.Errorf("stopped %v, position %d", b.stopped(), second.Position)
	}
	third := b.queue(t, of(h, "3"))
	if run := b.ended(t, second.Run); run.State != runner.Cancelled || run.Error != "replaced by run "+third.Run.ID || !run.Started.IsZero() {
		t.Errorf("got %+v", run)
	}
	b.end(first.ID, runner.End{Ended: b.now(), Signal: "SIGTERM", Reason: runner.Cancelled})
	if o := b.flies(t, third.Run.ID); o.Values["x"] != "3" {
		t.Errorf("got %+v", o)
	}
	b.finish(t, third.Run, 0)
	b.state(t, first.ID, runner.Cancelled)
	if b.count() != 2 || b.overlaps > 0 {
		t.Errorf("%d runs, %d overlaps", b.count(), b.overlaps)
	}
}

// gateStarts blocks commands before they start.
func (b *bench) gateStarts() {
	b.entered, b.gate = make(chan string), make(chan struct{})
}

// TestReplace_BeforeCommandBegins replaces a run whose command was ordered and did not begin: the command never
// begins.
func TestReplace_BeforeCommandBegins(t *testing.T) {
	h := policy(t, replace)
	b := newBench(t, h)
	b.gateStarts()
	first := make(chan runner.Run)
	go func() { run, _ := b.Start(of(h, "1")); first <- run }()
	id := <-b.entered
	second := b.queue(t, of(h, "2"))
	b.gate <- struct{}{}
	if run := b.ended(t, <-first); run.ID != id || run.State != runner.Cancelled || b.count() > 0 {
		t.Errorf("got %+v, and %d commands started", run, b.count())
	}
	if id := <-b.entered; id != second.Run.ID {
		t.Errorf("%s is started", id)
	}
	close(b.gate)
	b.flies(t, second.Run.ID)
}

// TestReplace_WhileCommandBegins replaces a run whose command is being started: the command is asked to end once it
// is started.
func TestReplace_WhileCommandBegins(t *testing.T) {
	h := policy(t, replace)
	b := newBench(t, h)
	b.claimed = true
	b.gateStarts()
	first := make(chan runner.Run)
	go func() { run, _ := b.Start(of(h, "1")); first <- run }()
	id := <-b.entered
	b.queue(t, of(h, "2"))
	b.gate <- struct{}{}
	<-first
	b.await(t, 1)
	if want := []stop{{id, runner.Cancelled, -1}}; !slices.Equal(b.stopped(), want) {
		t.Errorf("got %v", b.stopped())
	}
	close(b.gate)
	go func() { <-b.entered }()
	b.end(id, runner.End{Ended: b.now(), Reason: runner.Cancelled})
	b.ended(t, <-sent(runner.Run{ID: id}))
}

func sent[T any](v T) <-chan T {
	c := make(chan T, 1)
	c <- v
	return c
}

func TestFlight_OnlySameWaits(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { s.Flight.Key, s.Busy.Kind = "{x}", "join" })
	b := newBench(t, h)
	b.start(t, of(h, "eu"))
	b.start(t, of(h, "us"))
	b.queue(t, of(h, "eu"))
}

func TestQueue_RefusedRun(t *testing.T) {
	h := policy(t, queueOf(50))
	b := newBench(t, h)
	first := b.start(t, of(h, "0"))
	var waiting []runner.Run
	for i := range 50 {
		waiting = append(waiting, b.queue(t, claimed(of(h, "x"), fmt.Sprint(i))).Run)
	}
	b.set(func() { b.refuse = fmt.Errorf("starting: %w", runner.ErrRefused) })
	b.finish(t, first, 0)
	for _, run := range waiting {
		if run = b.ended(t, run); run.State != runner.Failed || run.Error != "the command could not be started" {
			t.Fatalf("got %+v", run)
		}
	}
	b.set(func() { b.refuse = nil })
	b.start(t, claimed(of(h, "x"), "0")) // its claim was removed
}

func TestQueue_Expires(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { s.Busy.Queue, s.QueueTimeout = 5, time.Minute })
	patient := policy(t, queueOf(5))
	patient.Name = "patient"
	b := newBench(t, h, patient)
	first := b.start(t, of(h, "1"))
	second := b.queue(t, of(h, "2"))
	b.pass(45 * time.Second)
	third := b.queue(t, of(h, "3"))
	b.pass(30 * time.Second)
	ended := make(chan runner.Run)
	go func() { run, _ := b.Wait(t.Context(), second.Run.ID); ended <- run }()
	if err := b.ExpireQueued(t.Context(), maps.Clone(b.hooks)); err != nil {
		t.Fatal(err)
	}
	if run := <-ended; run.State != runner.TimedOut || !run.Started.IsZero() || run.Error == "" {
		t.Errorf("got %+v", run)
	}
	b.state(t, first.ID, runner.Running) // queue_timeout applies to queued runs only
	b.state(t, third.Run.ID, runner.Queued)
	b.finish(t, first, 0)
	b.flies(t, third.Run.ID)
}

func TestCancel_QueuedAndRunning(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second, third := b.queue(t, of(h, "2")), b.queue(t, of(h, "3"))
	ended := make(chan runner.Run)
	go func() { run, _ := b.Wait(t.Context(), second.Run.ID); ended <- run }()
	if run, err := b.Cancel(t.Context(), second.Run.ID); err != nil || run.State != runner.Cancelled {
		t.Errorf("got %+v, %v", run, err)
	}
	if run := <-ended; run.State != runner.Cancelled {
		t.Errorf("got %+v", run)
	}
	if len(b.stopped()) > 0 {
		t.Errorf("stopped %v", b.stopped())
	}
	if run, err := b.Cancel(t.Context(), first.ID); err != nil || run.State != runner.Running {
		t.Errorf("got %+v, %v", run, err)
	}
	if want := []stop{{first.ID, runner.Cancelled, -1}}; !slices.Equal(b.stopped(), want) {
		t.Errorf("got %v", b.stopped())
	}
	b.end(first.ID, runner.End{Ended: b.now(), Reason: runner.Cancelled})
	b.flies(t, third.Run.ID)
	if run := b.finish(t, third.Run, 0); run.State != runner.Succeeded {
		t.Errorf("got %+v", run)
	}
	if run, err := b.Cancel(t.Context(), third.Run.ID); err != nil || run.State != runner.Succeeded {
		t.Errorf("got %+v, %v", run, err)
	}
	if _, err := b.Cancel(t.Context(), "x"); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("got %v", err)
	}
	if len(b.stopped()) != 1 {
		t.Errorf("stopped %v", b.stopped())
	}
}

// TestCancel_BeforeDeliveryIsAnswered cancels a run whose delivery still waits for its command to start.
func TestCancel_BeforeDeliveryIsAnswered(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	b.gateStarts()
	started := make(chan runner.Run)
	go func() { run, _ := b.Start(of(h, "")); started <- run }()
	id := <-b.entered
	if _, err := b.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	close(b.gate)
	if run := b.ended(t, <-started); run.ID != id || run.State != runner.Cancelled || b.count() > 0 {
		t.Errorf("got %+v, and %d commands started", run, b.count())
	}
}

// TestRerun_NewRun checks that a rerun is a new run, and not a replay of its first delivery.
func TestRerun_NewRun(t *testing.T) {
	h := policy(t, func(*hook.Spec) {})
	b := newBench(t, h)
	first := b.finish(t, b.start(t, claimed(of(h, "v"), "k")), 1)
	for range 2 {
		s, err := b.Rerun(t.Context(), first, "admin", runner.Claim{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Run.ID == first.ID || s.Run.RerunOf != first.ID || s.Run.Caller != "admin" || s.Run.Attempt != 0 {
			t.Errorf("got %+v", s.Run)
		}
		if o := b.order(s.Run.ID); o.Values["x"] != "v" || o.Caller != "admin" {
			t.Errorf("got %+v", o)
		}
		_, err = b.Rerun(t.Context(), first, "admin", runner.Claim{}) // only one run of the flight may be in progress for an administrator, too
		busy(t, err, s.Run)
		b.finish(t, s.Run, 0)
	}
	_, err := b.Start(claimed(of(h, "v"), "k"))
	replayed(t, err, first)
}

func TestRerun_CurrentConfiguration(t *testing.T) {
	h := newHook(t, hook.Spec{
		Command: []string{"/bin/echo", "--x={x}"},
		Params:  map[string]hook.ParamSpec{"x": {From: hook.From{"body", "x"}, Match: "[a-z]+"}},
	})
	b := newBench(t, h)
	run := b.finish(t, b.start(t, of(h, "abc")), 0)
	stricter := newHook(t, hook.Spec{
		Command: []string{"/bin/echo", "--x={x}"},
		Params:  map[string]hook.ParamSpec{"x": {From: hook.From{"body", "x"}, Enum: []string{"b"}}},
	})
	b.use(stricter)
	if _, err := b.Rerun(t.Context(), run, "ci", runner.Claim{}); !errors.As(err, new(*runner.NotAllowed)) {
		t.Errorf("got %v", err)
	}
	b.use()
	if _, err := b.Rerun(t.Context(), run, "ci", runner.Claim{}); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("got %v", err)
	}
	if b.count() != 1 {
		t.Errorf("%d runs", b.count())
	}
}

func TestRerun_Body(t *testing.T) {
	h := newHook(t, hook.Spec{Command: []string{"/bin/cat"}, Stdin: "body"})
	b := newBench(t, h)
	d := of(h, "")
	d.Body = []byte("body")
	run := b.finish(t, b.start(t, d), 0)
	if _, err := b.Rerun(t.Context(), run, "ci", runner.Claim{}); !errors.Is(err, runner.ErrNoInput) {
		t.Errorf("got %v", err)
	}
	b.set(func() { b.lose = true })
	run = b.ended(t, b.start(t, d)) // the run is interrupted, and its body is kept for a repetition
	b.set(func() { b.lose = false })
	b.end(run.ID, runner.End{})
	s, err := b.Rerun(t.Context(), run, "ci", runner.Claim{})
	if err != nil || string(b.order(s.Run.ID).Stdin) != "body" {
		t.Errorf("got %+v, %v", s, err)
	}
}
