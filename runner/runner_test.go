package runner_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/process"
	"sallyport/runner/store"
)

// commands stand in for processes: each runs until the test ends it. They
// count what a real command would witness, two of one flight at once.
type commands struct {
	entered chan string   // when set: a start says so here,
	gate    chan struct{} // and waits for this

	mu       sync.Mutex
	refuse   error // of Start
	lose     bool  // whether Follow knows nothing
	air      map[string]runner.Order
	ends     map[string]chan runner.End
	flights  map[string]int // by hook and value of x
	overlaps int
	started  int
	stops    []stop
}

type stop struct {
	run   string
	why   runner.State
	grace time.Duration
}

func (c *commands) flight(o runner.Order) string { return o.Hook + "/" + o.Values["x"] }

func (c *commands) Start(o runner.Order) error {
	if c.gate != nil {
		c.entered <- o.Run
		<-c.gate
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	c.started++
	c.air[o.Run] = o
	c.ends[o.Run] = make(chan runner.End, 1)
	if c.flights[c.flight(o)]++; c.flights[c.flight(o)] > 1 {
		c.overlaps++
	}
	return nil
}

func (c *commands) Follow(run string) (<-chan runner.End, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lose || c.ends[run] == nil {
		return nil, errors.New("nobody knows this run")
	}
	return c.ends[run], nil
}

func (c *commands) Stop(run string, why runner.State, grace time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.air[run]; !ok {
		return errors.New("nobody knows this run")
	}
	c.stops = append(c.stops, stop{run, why, grace})
	return nil
}

func (c *commands) List() ([]string, error) { return nil, nil }

// end ends a command.
func (c *commands) end(run string, e runner.End) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flights[c.flight(c.air[run])]--
	delete(c.air, run)
	c.ends[run] <- e
	close(c.ends[run])
}

// bench is a runner over such commands, and a clock that the test moves.
type bench struct {
	*commands
	*runner.Runner
	mu    sync.Mutex
	clock time.Time
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{
		commands: &commands{air: map[string]runner.Order{}, ends: map[string]chan runner.End{}, flights: map[string]int{}},
		clock:    time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC),
	}
	b.Runner = runner.New(store.NewMemory(1<<14, b.now), b.commands, b.now, slog.New(slog.DiscardHandler))
	return b
}

func (b *bench) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clock
}

func (b *bench) pass(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock = b.clock.Add(d)
}

func (b *bench) Start(d runner.Delivery) (runner.Run, error) { return b.Runner.Start(d) }

func (b *bench) start(t *testing.T, d runner.Delivery) runner.Run {
	t.Helper()
	run, err := b.Start(d)
	if err != nil {
		t.Fatalf("not started: %v", err)
	}
	return run
}

// finish ends a run with an exit code and waits for its record.
func (b *bench) finish(t *testing.T, run runner.Run, code int) runner.Run {
	t.Helper()
	b.end(run.ID, runner.End{Ended: b.now(), ExitCode: &code})
	return b.ended(t, run)
}

func (b *bench) ended(t *testing.T, run runner.Run) runner.Run {
	t.Helper()
	run, err := b.Wait(t.Context(), run.ID)
	if err != nil || !run.State.Ended() {
		t.Fatalf("run %+v, %v", run, err)
	}
	return run
}

// region is a hook with a flight for each value of x; alone has one in all.
func region(t *testing.T) *runner.Hook {
	t.Helper()
	return hook(t, runner.HookSpec{Command: []string{"/bin/echo", "--x={x}"}, Flight: "{x}"}, "x")
}

func alone(t *testing.T) *runner.Hook {
	t.Helper()
	return hook(t, command("/bin/echo"))
}

func of(h *runner.Hook, x string) runner.Delivery {
	return runner.Delivery{Hook: h, Caller: "ci", Values: runner.Values{"x": x}}
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

func TestOneRunOfAHookIsInTheAirAndTheNextComesAfterIt(t *testing.T) {
	b, h := newBench(t), alone(t)
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

func TestFlightsOfDifferentKeysDoNotWaitForEachOther(t *testing.T) {
	b, h := newBench(t), region(t)
	eu, us := b.start(t, of(h, "eu")), b.start(t, of(h, "us"))
	_, err := b.Start(of(h, "eu"))
	busy(t, err, eu)
	b.finish(t, eu, 0)
	b.start(t, of(h, "eu"))
	_, err = b.Start(of(h, "us"))
	busy(t, err, us)
}

func TestNoTwoRunsOfAFlightOverlapHoweverManyCome(t *testing.T) {
	b, h := newBench(t), region(t)
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

func TestADeliverySentManyTimesAtOnceStartsOneRun(t *testing.T) {
	b, h := newBench(t), region(t)
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() { // each a flight of its own: only the claim holds them back
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

func TestBusyTellsWhenTheHooksOwnMedianIsOver(t *testing.T) {
	b, h := newBench(t), alone(t)
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
			wait(run, 10*time.Second) // nobody knows yet
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
	for range 31 { // what was long ago does not count
		run := b.start(t, of(h, ""))
		b.pass(40 * time.Second)
		b.finish(t, run, 0)
	}
	wait(b.start(t, of(h, "")), 40*time.Second)
}

func TestADeliveryThatComesAgainIsAnsweredWithItsFirstRun(t *testing.T) {
	b, h := newBench(t), alone(t)
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
	d.Claim.Body = [32]byte{2} // the key covers the body: it is the sender's word that it is the same
	_, err = b.Start(d)
	replayed(t, err, first)
	d.Claim.OneBody = true
	if _, err = b.Start(d); !errors.Is(err, runner.ErrReused) {
		t.Errorf("got %v", err)
	}
	if b.started != 1 {
		t.Errorf("%d runs", b.started)
	}
}

func TestADeliveryRefusedForBeingBusyMayComeAgain(t *testing.T) {
	b, h := newBench(t), alone(t)
	first := b.start(t, of(h, ""))
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k"}
	_, err := b.Start(d)
	busy(t, err, first)
	b.finish(t, first, 0)
	b.start(t, d)
}

func TestADeliveryWhoseCommandDidNotStartMayComeAgain(t *testing.T) {
	b, h := newBench(t), alone(t)
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k"}
	b.refuse = errors.New("no such file: /secret/place")
	_, err := b.Start(d)
	var failed *runner.NotStarted
	if !errors.As(err, &failed) || !errors.Is(failed.Reason, b.refuse) {
		t.Fatalf("got %v", err)
	}
	run, err := b.Get(failed.Run.ID)
	if err != nil || run.State != runner.Failed || run.Error != "the command could not be started" {
		t.Errorf("got %+v, %v", run, err) // the reason is the operator's alone
	}
	b.refuse = nil
	if again := b.start(t, d); again.ID == run.ID {
		t.Error("the same run")
	}
}

func TestARunWhoseEndNobodySeesIsStoppedAndNotGivenBack(t *testing.T) {
	b, h := newBench(t), alone(t)
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k"}
	b.lose = true
	run := b.ended(t, b.start(t, d))
	if run.State != runner.Interrupted || run.ExitCode != nil {
		t.Errorf("got %+v", run)
	}
	if want := []stop{{run.ID, runner.Interrupted, 0}}; !slices.Equal(b.stops, want) {
		t.Errorf("got %v", b.stops)
	}
	_, err := b.Start(d)
	replayed(t, err, run)
}

func TestWhatCannotBeRecordedIsNotStarted(t *testing.T) {
	b, h := newBench(t), alone(t)
	b.Runner = runner.New(store.NewMemory(1, b.now), b.commands, b.now, slog.New(slog.DiscardHandler))
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k", Until: b.now().Add(time.Hour)}
	b.finish(t, b.start(t, d), 0)
	for range 2 { // the flight is free again after each
		if _, err := b.Start(of(h, "")); !errors.Is(err, runner.ErrFull) {
			t.Errorf("got %v", err)
		}
	}
	b.pass(time.Hour)
	b.start(t, of(h, ""))
	if b.started != 2 {
		t.Errorf("%d runs", b.started)
	}
}

func TestTheBodyGoesToStdinOnlyWhereTheFileSaysSo(t *testing.T) {
	b := newBench(t)
	d := of(alone(t), "")
	d.Body, d.Trace = []byte("body"), "00-1"
	run := b.start(t, d)
	if o := b.air[run.ID]; o.Stdin != nil || o.Trace != "00-1" || o.Caller != "ci" || o.Hook != "h" {
		t.Errorf("got %+v", o)
	}
	b.finish(t, run, 0)
	d.Hook = hook(t, runner.HookSpec{Command: []string{"/bin/cat"}, Stdin: "body"})
	if o := b.air[b.start(t, d).ID]; string(o.Stdin) != "body" {
		t.Errorf("got %+v", o)
	}
}

func TestWaitAnswersAsItStandsWhenTimeIsUp(t *testing.T) {
	b, h := newBench(t), alone(t)
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

func TestDrainTakesNoMoreAndLetsRunsEnd(t *testing.T) {
	b, h := newBench(t), region(t)
	d := of(h, "eu")
	d.Claim = runner.Claim{Key: "k"}
	run := b.start(t, d)
	drained := make(chan struct{})
	go func() { b.Drain(context.Background()); close(drained) }() //nolint:usetesting // it outlives the test's own when that fails
	for !b.Draining() {
		select {
		case <-drained:
			t.Fatal("drained with a run in the air")
		default:
		}
	}
	if _, err := b.Start(of(h, "us")); !errors.Is(err, runner.ErrDraining) {
		t.Errorf("got %v", err)
	}
	_, err := b.Start(d) // still told what became of it
	replayed(t, err, run)
	b.finish(t, run, 0)
	<-drained
	b.Drain(t.Context()) // again, with nothing left to do
	if len(b.stops) > 0 {
		t.Errorf("stopped: %v", b.stops)
	}
}

func TestDrainStopsWhatRunsWhenItsTimeIsOver(t *testing.T) {
	b, h := newBench(t), alone(t)
	run := b.start(t, of(h, ""))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	drained := make(chan struct{})
	go func() { b.Drain(ctx); close(drained) }()
	b.await(t, 1)
	b.end(run.ID, runner.End{Ended: b.now(), Signal: "SIGTERM", Reason: runner.Cancelled})
	<-drained
	if want := []stop{{run.ID, runner.Cancelled, -1}}; !slices.Equal(b.stops, want) {
		t.Errorf("got %v", b.stops)
	}
	if got := b.ended(t, run); got.State != runner.Cancelled || got.Signal != "SIGTERM" {
		t.Errorf("got %+v", got)
	}
}

// await waits for n stops.
func (b *bench) await(t *testing.T, n int) {
	t.Helper()
	for t.Context().Err() == nil {
		b.commands.mu.Lock()
		done := len(b.stops) >= n
		b.commands.mu.Unlock()
		if done {
			return
		}
	}
}

func TestKillGivesNoGraceAndNobodyGetsOneAfterwards(t *testing.T) {
	b, h := newBench(t), region(t)
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
	if want := []stop{{run.ID, runner.Cancelled, 0}}; !slices.Equal(b.stops, want) {
		t.Errorf("got %v", b.stops)
	}
	b.Kill() // nothing is left
}

func TestARunThatTakesOffWhileAllAreStoppedIsStoppedToo(t *testing.T) {
	b, h := newBench(t), alone(t)
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
	b.Kill() // reaches nothing: the command is not there yet
	close(b.gate)
	run := <-started
	if want := []stop{{id, runner.Cancelled, 0}}; !slices.Equal(b.stops, want) {
		t.Errorf("got %v", b.stops)
	}
	b.end(run.ID, runner.End{Ended: b.now(), Reason: runner.Cancelled})
	b.Drain(t.Context())
	b.ended(t, run)
}

func TestTheStateOfAnEnd(t *testing.T) {
	for want, end := range map[runner.State]runner.End{
		runner.Succeeded:   {ExitCode: new(0)},
		runner.Failed:      {ExitCode: new(1)},
		runner.TimedOut:    {ExitCode: new(0), Reason: runner.TimedOut}, // it ended well, and too late
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
		t.Error("a run under way has ended")
	}
}

func TestRealCommandsEndInTheRecord(t *testing.T) {
	dir := folder(t, 0o755)
	witness := filepath.Join(dir, "witness")
	script := filepath.Join(dir, "job")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nset -eu\nprintf '%s|' \"$@\" >\"$WITNESS\"\ncat >>\"$WITNESS\"\nexit 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	job := hook(t, runner.HookSpec{Command: []string{script, "{x}", "--y={y}"}, Stdin: "body", Env: map[string]string{"WITNESS": witness}}, "x", "y")
	sleep := hook(t, command("/bin/sleep", "60"))
	hooks := map[string]*runner.Hook{"job": job, "sleep": sleep}
	job.Name, sleep.Name = "job", "sleep"
	procs, err := process.NewLocal(folder(t, 0o700), func(name string) (*runner.Hook, bool) { h, ok := hooks[name]; return h, ok }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r := runner.New(store.NewMemory(10, time.Now), procs, time.Now, slog.New(slog.DiscardHandler))
	v, problems, err := job.Bind(jsonBody(`{"x":"$(reboot); \n","y":"--z"}`))
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	run, err := r.Start(runner.Delivery{Hook: job, Values: v, Body: []byte("body")})
	if err != nil {
		t.Fatal(err)
	}
	if run, err = r.Wait(t.Context(), run.ID); err != nil || run.State != runner.Failed || run.ExitCode == nil || *run.ExitCode != 7 {
		t.Errorf("got %+v, %v", run, err)
	}
	if got, err := os.ReadFile(witness); err != nil || string(got) != "$(reboot); \n|--y=--z|body" {
		t.Errorf("the command saw %q, %v", got, err)
	}
	if run, err = r.Start(runner.Delivery{Hook: sleep}); err != nil {
		t.Fatal(err)
	}
	_, err = r.Start(runner.Delivery{Hook: sleep})
	busy(t, err, run)
	r.Kill()
	r.Drain(t.Context())
	if run, err = r.Get(run.ID); err != nil || run.State != runner.Cancelled || run.Signal == "" {
		t.Errorf("got %+v, %v", run, err)
	}
}
