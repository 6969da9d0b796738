package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Delivery is one verified request for a hook, its parameters bound.
type Delivery struct {
	Hook   *Hook
	Caller string
	Values Values
	Claim  Claim
	Body   []byte // for stdin
	Trace  string // W3C traceparent, or empty
}

// Busy says that a run of the same flight is under way.
type Busy struct {
	Run        Run
	RetryAfter time.Duration // when the hook's own median says that it will be over
}

func (e *Busy) Error() string { return "busy with run " + e.Run.ID }

// NotStarted says that the command could not be started. The reason is the
// operator's.
type NotStarted struct {
	Run    Run
	Reason error
}

func (e *NotStarted) Error() string { return fmt.Sprintf("starting run %s: %v", e.Run.ID, e.Reason) }

// ErrDraining says that the server takes no more deliveries.
var ErrDraining = errors.New("draining")

// Runner lets one run of each flight through at a time.
type Runner struct {
	store Store
	procs Processes
	log   *slog.Logger
	now   func() time.Time

	mu       sync.Mutex
	draining bool
	stopped  *time.Duration           // set once all were stopped: the grace they were given
	air      map[string]Run           // by flight: what is under way
	done     map[string]chan struct{} // by run: closed when its end is recorded
	took     map[string]*durations    // by hook
	empty    chan struct{}            // closed when draining and nothing is in the air
}

// New returns a runner with nothing in the air.
func New(store Store, procs Processes, now func() time.Time, log *slog.Logger) *Runner {
	return &Runner{
		store: store, procs: procs, now: now, log: log,
		air: map[string]Run{}, done: map[string]chan struct{}{}, took: map[string]*durations{}, empty: make(chan struct{}),
	}
}

// Start starts the run that a delivery asks for, and returns it while it runs.
// Nothing was started when it returns an error: *Replayed, ErrReused, *Busy,
// ErrDraining, ErrFull, *NotStarted, or one of the store's own.
func (r *Runner) Start(d Delivery) (Run, error) {
	// A repetition is answered with its first run even while that one is in
	// the air, so this comes before busy.
	switch first, err := r.store.Find(d.Hook.Name, d.Claim); {
	case err == nil:
		return Run{}, &Replayed{Run: first}
	case !errors.Is(err, ErrUnknown):
		return Run{}, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Run{}, fmt.Errorf("making a run id: %w", err)
	}
	now := r.now()
	run := Run{
		ID: id.String(), Hook: d.Hook.Name, Caller: d.Caller, Flight: d.Hook.Flight(d.Values),
		State: Running, Params: d.Values, Created: now, Started: now,
	}
	if err := r.takeOff(run); err != nil {
		return Run{}, err
	}
	if err := r.store.Begin(run, d.Claim); err != nil {
		r.land(run)
		return Run{}, err
	}
	order := Order{Run: run.ID, Hook: run.Hook, Caller: run.Caller, Values: d.Values, Trace: d.Trace, Created: now}
	if d.Hook.StdinBody {
		order.Stdin = d.Body
	}
	if err := r.procs.Start(order); err != nil {
		return Run{}, r.notStarted(run, err)
	}
	r.stopLate(run)
	r.log.Info("run started", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "flight", run.Flight)
	go r.follow(run)
	return run, nil
}

// takeOff puts a run into the air, unless its flight is up there already.
func (r *Runner) takeOff(run Run) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return ErrDraining
	}
	if other, busy := r.air[run.Flight]; busy {
		return &Busy{Run: other, RetryAfter: r.remaining(other)}
	}
	r.air[run.Flight] = run
	r.done[run.ID] = make(chan struct{})
	return nil
}

// land takes a run out of the air and lets those go on who wait for its end.
func (r *Runner) land(run Run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.air, run.Flight)
	close(r.done[run.ID])
	delete(r.done, run.ID)
	if r.draining && len(r.air) == 0 {
		close(r.empty)
	}
}

// notStarted records a run whose command could not be started. Its delivery
// is given back: the reason may be gone when the sender tries again.
func (r *Runner) notStarted(run Run, reason error) error {
	end := End{Ended: r.now(), Error: "the command could not be started"}
	ended, err := r.store.Finish(run.ID, Failed, end, true)
	if err != nil {
		r.log.Error("run not recorded", "run", run.ID, "error", err)
		ended = run
	}
	r.land(run)
	r.log.Error("run not started", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "error", reason)
	return &NotStarted{Run: ended, Reason: reason}
}

// follow records the end of a run. The flight is free only after that, so the
// record never shows two runs of a flight at once.
func (r *Runner) follow(run Run) {
	end := r.end(run)
	state := end.State()
	if _, err := r.store.Finish(run.ID, state, end, false); err != nil {
		r.log.Error("run not recorded", "run", run.ID, "hook", run.Hook, "state", state, "error", err)
	}
	took := end.Ended.Sub(run.Started)
	r.mu.Lock()
	if r.took[run.Hook] == nil {
		r.took[run.Hook] = &durations{}
	}
	r.took[run.Hook].add(took)
	r.mu.Unlock()
	attrs := []any{
		"run", run.ID, "hook", run.Hook, "caller", run.Caller, "state", state, "took_ms", took.Milliseconds(),
		"output_bytes", end.Output.Bytes, "output_dropped", end.Output.Dropped,
	}
	if end.ExitCode != nil {
		attrs = append(attrs, "exit_code", *end.ExitCode)
	}
	if end.Signal != "" {
		attrs = append(attrs, "signal", end.Signal)
	}
	r.log.Info("run ended", attrs...)
	r.land(run)
}

// end waits for the end of a run. A command that started and whose end cannot
// be seen is stopped, and its run is interrupted: its delivery is not given
// back, because the command did run.
func (r *Runner) end(run Run) End {
	ends, err := r.procs.Follow(run.ID)
	if err == nil {
		if end, ok := <-ends; ok {
			return end
		}
	}
	r.log.Error("run not followed", "run", run.ID, "hook", run.Hook, "error", err)
	if err := r.procs.Stop(run.ID, Interrupted, 0); err != nil {
		r.log.Error("run not stopped", "run", run.ID, "error", err)
	}
	return End{Ended: r.now(), Reason: Interrupted}
}

// State returns the state that an end leaves its run in.
func (e End) State() State {
	switch {
	case e.Reason != "":
		return e.Reason
	case e.ExitCode != nil && *e.ExitCode == 0:
		return Succeeded
	}
	return Failed
}

// Get returns a run as it stands, or ErrUnknown.
func (r *Runner) Get(id string) (Run, error) { return r.store.Get(id) }

// Wait returns a run when it has ended, or as it stands when ctx is done.
func (r *Runner) Wait(ctx context.Context, id string) (Run, error) {
	r.mu.Lock()
	done := r.done[id]
	r.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	return r.store.Get(id)
}

// Drain takes no more deliveries and returns when nothing is in the air. Runs
// that are still there when ctx is done are stopped: TERM, their hook's grace,
// KILL.
func (r *Runner) Drain(ctx context.Context) {
	r.shut()
	select {
	case <-r.empty:
		return
	case <-ctx.Done():
	}
	r.stopAll(-1)
	<-r.empty
}

// Kill takes no more deliveries and ends everything in the air at once, without
// grace.
func (r *Runner) Kill() {
	r.shut()
	r.stopAll(0)
}

// shut takes no more deliveries.
func (r *Runner) shut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return
	}
	r.draining = true
	if len(r.air) == 0 {
		close(r.empty)
	}
}

func (r *Runner) stopAll(grace time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped != nil && *r.stopped == 0 {
		return // killed already: nobody gets a grace after that
	}
	r.stopped = &grace
	for _, run := range r.air {
		r.log.Warn("run stopped: the server is going", "run", run.ID, "hook", run.Hook)
		if err := r.procs.Stop(run.ID, Cancelled, grace); err != nil {
			r.log.Error("run not stopped", "run", run.ID, "error", err)
		}
	}
}

// stopLate stops a run that took off before stopAll and whose command started
// after it.
func (r *Runner) stopLate(run Run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped == nil {
		return
	}
	if err := r.procs.Stop(run.ID, Cancelled, *r.stopped); err != nil {
		r.log.Error("run not stopped", "run", run.ID, "error", err)
	}
}

// Draining tells whether deliveries are turned away.
func (r *Runner) Draining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining
}

// unknownRun is what a sender is told to wait when no run of the hook has
// ended yet.
const unknownRun = 10 * time.Second

// remaining estimates when a run will be over; at least one second.
func (r *Runner) remaining(run Run) time.Duration {
	left := unknownRun
	if took := r.took[run.Hook]; took != nil {
		left = took.median() - r.now().Sub(run.Started)
	}
	return max(left, time.Second)
}

// durations are how long the latest runs of a hook took.
type durations struct {
	ring [31]time.Duration
	n    int
}

func (d *durations) add(t time.Duration) {
	d.ring[d.n%len(d.ring)] = t
	d.n++
}

func (d *durations) median() time.Duration {
	known := slices.Clone(d.ring[:min(d.n, len(d.ring))])
	slices.Sort(known)
	return known[len(known)/2]
}
