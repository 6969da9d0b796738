package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Delivery is one verified request for a hook, its parameters bound.
type Delivery struct {
	Hook    *Hook
	Caller  string
	Values  Values
	Claim   Claim
	Body    []byte // for stdin
	Trace   string // W3C traceparent, or empty
	RerunOf string // the run that this one repeats, or empty
}

// Started is what a delivery led to.
type Started struct {
	Run      Run
	Joined   bool          // the run was pending before
	Position int           // of a queued run; 1 is next
	Expected time.Duration // until a queued run should start, by the hook's own median
}

// Busy says that a run of the same flight is under way and no more may wait.
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

// ErrNoInput says that a command reads the body of its delivery, and the body was
// not kept beyond the end of the run.
var ErrNoInput = errors.New("the body that the command reads is not kept")

// ErrDraining says that the server takes no more deliveries.
var ErrDraining = errors.New("draining")

// Runner lets one run of each flight through at a time.
type Runner struct {
	store Store
	procs Processes
	hook  func(name string) (*Hook, bool)
	log   *slog.Logger
	now   func() time.Time

	mu       sync.Mutex
	draining bool
	left     bool                     // runs are left to the next server
	stopped  *time.Duration           // set once all were stopped: the grace they were given
	air      map[string]Run           // by flight: what is under way, so that busy is answered from memory
	active   int                      // runs that are launched or followed here
	done     map[string]chan struct{} // by run: closed when its end is recorded
	took     map[string]*durations    // by hook
	changed  chan struct{}            // closed and replaced when active falls to zero
}

// New returns a runner with nothing in the air. hook yields a hook as the
// configuration has it at that moment.
func New(store Store, procs Processes, hook func(string) (*Hook, bool), now func() time.Time, log *slog.Logger) *Runner {
	return &Runner{
		store: store, procs: procs, hook: hook, now: now, log: log,
		air: map[string]Run{}, done: map[string]chan struct{}{}, took: map[string]*durations{}, changed: make(chan struct{}),
	}
}

// Start records the run that a delivery asks for and starts it, or has it wait,
// by the policy of its hook. Nothing was recorded when it returns an error but
// *NotStarted: *Replayed, ErrReused, *Busy, ErrDraining, ErrUnavailable.
func (r *Runner) Start(ctx context.Context, d Delivery) (Started, error) {
	// A repetition is answered with its first run even while that one is in
	// the air, so this comes before busy.
	switch first, err := r.store.Find(ctx, d.Hook.Name, d.Claim); {
	case err == nil:
		return Started{}, &Replayed{Run: first}
	case !errors.Is(err, ErrUnknown):
		return Started{}, err
	}
	run, err := r.newRun(d)
	if err != nil {
		return Started{}, err
	}
	if err := r.enter(run.Flight, d.Hook.Busy); err != nil {
		return Started{}, err
	}
	defer r.leave()
	in := d.feed()
	// What was asked for is done, whether or not the sender still listens.
	ctx = context.WithoutCancel(ctx)
	a, err := r.store.Admit(ctx, run, d.Claim, d.Hook.Busy, in)
	if err != nil {
		var busy *Busy
		if errors.As(err, &busy) {
			busy.RetryAfter = r.estimate(busy.Run)
		}
		return Started{}, err
	}
	for _, old := range a.Superseded {
		r.log.Info("run superseded", "run", old.ID, "hook", old.Hook, "by", a.Run.ID)
		r.tell(old.ID)
	}
	if a.Run.State == Running {
		run, err := r.launch(a.Run, in)
		return Started{Run: run}, err
	}
	r.log.Info("run queued", "run", a.Run.ID, "hook", run.Hook, "caller", run.Caller, "flight", run.Flight, "position", a.Position)
	if a.Stop != nil {
		r.stop(a.Stop.ID, Cancelled, -1)
	}
	return Started{Run: a.Run, Joined: a.Joined, Position: a.Position, Expected: r.expected(a.Run, a.Position)}, nil
}

func (r *Runner) newRun(d Delivery) (Run, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Run{}, fmt.Errorf("making a run id: %w", err)
	}
	run := Run{
		ID: id.String(), Hook: d.Hook.Name, Caller: d.Caller, Flight: d.Hook.Flight(d.Values),
		Params: d.Values, Created: r.now(), RerunOf: d.RerunOf,
	}
	return run, nil
}

func (d *Delivery) feed() Feed {
	in := Feed{Trace: d.Trace}
	if d.Hook.StdinBody {
		in.Stdin = d.Body
	}
	return in
}

// enter answers from memory what needs no record: draining, and busy where
// nobody waits. Whoever is let in keeps Drain waiting until leave.
func (r *Runner) enter(flight string, p Policy) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return ErrDraining
	}
	if other, busy := r.air[flight]; busy && p.Kind == Reject {
		return &Busy{Run: other, RetryAfter: r.remaining(other)}
	}
	r.active++
	return nil
}

func (r *Runner) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active--; r.active == 0 {
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// launch starts the command of a run that is recorded as running.
func (r *Runner) launch(run Run, in Feed) (Run, error) {
	r.mu.Lock()
	if r.left {
		// The next server finds it recorded and not started, and starts it.
		r.mu.Unlock()
		return run, nil
	}
	r.air[run.Flight] = run
	r.active++
	r.mu.Unlock()
	if err := r.order(run, in); err != nil {
		return run, r.notStarted(run, err)
	}
	r.stopLate(run)
	r.log.Info("run started", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "flight", run.Flight)
	go r.follow(run)
	return run, nil
}

func (r *Runner) order(run Run, in Feed) error {
	h, ok := r.hook(run.Hook)
	if !ok {
		return fmt.Errorf("the configuration has no hook %q any more", run.Hook)
	}
	return r.procs.Start(Order{
		Run: run.ID, Hook: run.Hook, Digest: h.Digest(), Caller: run.Caller, Flight: run.Flight,
		Values: run.Params, Trace: in.Trace, Stdin: in.Stdin, Created: run.Created,
	})
}

// notStarted records a run whose command could not be started. Its delivery
// is given back: the reason may be gone when the sender tries again.
func (r *Runner) notStarted(run Run, reason error) error {
	r.log.Error("run not started", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "error", reason)
	ended := r.finish(run, Failed, End{Ended: r.now(), Error: "the command could not be started"}, true)
	return &NotStarted{Run: ended, Reason: reason}
}

// follow records the end of a run. Its flight is free only after that, so the
// record never shows two runs of a flight at once.
func (r *Runner) follow(run Run) {
	end := r.end(run)
	state := end.State()
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
	if state == Interrupted {
		r.rerunInterrupted(run)
	}
	r.finish(run, state, end, false)
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
	r.stop(run.ID, Interrupted, 0)
	return End{Ended: r.now(), Reason: Interrupted}
}

// finish records an end, for as long as it takes the store to take it, and
// launches what waited for it.
func (r *Runner) finish(run Run, s State, e End, giveBack bool) Run {
	ended, next := r.record(run, s, e, giveBack)
	r.mu.Lock()
	if r.air[run.Flight].ID == run.ID {
		delete(r.air, run.Flight)
	}
	r.mu.Unlock()
	r.tell(run.ID)
	if next != nil {
		r.launchStored(*next)
	}
	r.leave()
	return ended
}

// launchStored starts a run whose delivery was answered before. A failure is
// recorded and logged; there is nobody to tell.
func (r *Runner) launchStored(run Run) {
	in, err := r.store.Feed(context.Background(), run.ID)
	if err != nil {
		r.log.Error("run's feed not read", "run", run.ID, "error", err)
	}
	_, _ = r.launch(run, in)
}

// recordAgain is how long to wait for a store that cannot record an end, for
// want of space perhaps.
const recordAgain = time.Second

func (r *Runner) record(run Run, s State, e End, giveBack bool) (Run, *Run) {
	for {
		ended, next, err := r.store.Finish(context.Background(), run.ID, s, e, giveBack, !r.Draining())
		if err == nil {
			return ended, next
		}
		r.log.Error("run not recorded", "run", run.ID, "hook", run.Hook, "state", s, "error", err)
		if errors.Is(err, ErrUnknown) || r.isLeft() {
			run.State, run.End = s, e
			return run, nil
		}
		<-time.After(recordAgain) // the run's command has ended; only its record waits
	}
}

// tell lets those go on who wait for the end of a run.
func (r *Runner) tell(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if done, ok := r.done[id]; ok {
		close(done)
		delete(r.done, id)
	}
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
func (r *Runner) Get(ctx context.Context, id string) (Run, error) { return r.store.Get(ctx, id) }

// List returns runs, newest first, and the cursor of the next page.
func (r *Runner) List(ctx context.Context, f Filter) ([]Run, string, error) {
	return r.store.List(ctx, f)
}

// Wait returns a run when it has ended, or as it stands when ctx is done.
func (r *Runner) Wait(ctx context.Context, id string) (Run, error) {
	r.mu.Lock()
	done, ok := r.done[id]
	if !ok {
		done = make(chan struct{})
		r.done[id] = done
	}
	r.mu.Unlock()
	// Asked after done is there, so that an end in between is not missed.
	run, err := r.store.Get(context.WithoutCancel(ctx), id)
	if err != nil || run.State.Ended() {
		r.tell(id)
		return run, err
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return r.store.Get(context.WithoutCancel(ctx), id)
}

// Cancel ends a run: one that waits at once, one that runs by TERM, its hook's
// grace, and KILL. It returns the run as it stands then. One that has ended
// stays as it is.
func (r *Runner) Cancel(ctx context.Context, id string) (Run, error) {
	run, cancelled, err := r.store.CancelQueued(ctx, id)
	switch {
	case err != nil:
		return Run{}, err
	case cancelled:
		r.log.Info("run cancelled", "run", id, "hook", run.Hook)
		r.tell(id)
	case run.State == Running:
		r.stop(id, Cancelled, -1)
	}
	return run, nil
}

// Rerun starts the command of a run again, with its parameters, for a caller.
// It is a new run and no replay. Errors are those of Start, and ErrUnknown.
func (r *Runner) Rerun(ctx context.Context, run Run, caller string) (Started, error) {
	h, ok := r.hook(run.Hook)
	if !ok {
		return Started{}, ErrUnknown
	}
	if problems := h.check(run.Params); len(problems) > 0 {
		return Started{}, &NotStarted{Run: run, Reason: fmt.Errorf("parameter %s %s", problems[0].Param, problems[0].Text)}
	}
	d := Delivery{Hook: h, Caller: caller, Values: run.Params, RerunOf: run.ID}
	if h.StdinBody {
		in, err := r.store.Feed(ctx, run.ID)
		if err != nil {
			return Started{}, err
		}
		if in.Stdin == nil {
			return Started{}, ErrNoInput
		}
		d.Body = in.Stdin
	}
	return r.Start(ctx, d)
}

func (r *Runner) stop(id string, why State, grace time.Duration) {
	if err := r.procs.Stop(id, why, grace); err != nil {
		r.log.Error("run not stopped", "run", id, "error", err)
	}
}
