// Package runner starts the commands of hooks, one run of a flight at a time.
//
// A [Runner] records each accepted delivery in a [Store] before its command is ordered from [Processes], and records
// the end before the flight is free again. So the store never shows two runs of a flight in progress. It also has
// enough for the next server if a server ends at any point: [Runner.Recover] follows the runs in progress, records
// those that ended, and starts those that were accepted and not started. Package hook decides which commands may run.
//
// The package does not depend on HTTP, credentials or system calls.
package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"sallyport/internal/boot"
	"sallyport/internal/logging"
	"sallyport/runner/hook"
)

// Delivery is one verified request for a hook, with its parameters.
type Delivery struct {
	Hook    *hook.Hook
	Caller  string
	Values  hook.Values
	Claim   Claim
	Body    []byte // for stdin
	Trace   string // W3C traceparent, or empty
	RerunOf string // the run that this one repeats, or empty

	// Repeated is the error that FindRepeated returned for Claim.
	Repeated error
}

// Started is the result of a delivery.
type Started struct {
	Run      Run
	Late     bool          // the run is recorded, and it is not known yet that its command runs
	Joined   bool          // the run was queued before
	Position int           // of a queued run; 1 is next
	Expected time.Duration // until a queued run should start, estimated from the median duration of the hook
}

// Busy says that a run of the same flight is in progress and no more can be queued.
type Busy struct {
	Run        Run
	RetryAfter time.Duration // until the run should end, estimated from the median duration of the hook
}

func (e *Busy) Error() string { return "busy with run " + e.Run.ID }

// NotStarted says that the command could not be started. The reason is for the operator.
type NotStarted struct {
	Run    Run
	Reason error
}

// Unwrap returns the reason.
func (e *NotStarted) Unwrap() error { return e.Reason }

func (e *NotStarted) Error() string { return fmt.Sprintf("starting run %s: %v", e.Run.ID, e.Reason) }

// ErrNoInput says that a command reads the body of its delivery, and that body was not kept after the end of the run.
var ErrNoInput = errors.New("the body that the command reads is not kept")

// NotAllowed says that the hook does not allow the parameters of a run, or does not allow them any more.
type NotAllowed struct{ Problems []hook.ParamProblem }

func (e *NotAllowed) Error() string {
	return "parameter " + e.Problems[0].Param + " " + e.Problems[0].Text
}

// ErrDraining says that the server takes no more deliveries.
var ErrDraining = errors.New("draining")

// Runner starts one run of each flight at a time.
//
// It has more methods and fields than other types: a run is recorded, ordered, followed, ended and promoted under one
// lock, because each of these steps decides whether the next run of its flight may begin. Data that needs no part of
// that lock, or only a lock for itself, is in separate types: [tracked], [flightRules], [estimates], [idSource],
// [probe].
type Runner struct {
	store Store
	procs Processes
	hook  func(name string) (*hook.Hook, bool)
	log   *slog.Logger
	now   func() time.Time
	boot  string // boot.ID
	ids   idSource
	probe probe

	mu         sync.Mutex
	inProgress map[string]Run      // by flight: the run in progress, so that busy is answered from memory
	runs       map[string]*tracked // by run
	rules      flightRules
	retrying   map[string]bool // by flight: the start of its first queued run is about to be tried again
	estimates  estimates

	working     int           // deliveries that are being admitted, and runs that are launched or followed here
	idleChanged chan struct{} // closed and replaced when working falls to zero

	draining bool
	going    chan struct{}  // closed when draining begins
	left     bool           // runs are left to the next server
	stopped  *time.Duration // set once all runs were stopped: the grace that they got
	ordering sync.WaitGroup // orders that are being sent; none begins once left is set
}

// New returns a runner without runs in progress. hook returns a hook from the current configuration.
func New(
	store Store, procs Processes, hook func(string) (*hook.Hook, bool), now func() time.Time, log *slog.Logger,
) *Runner {
	return &Runner{
		store: store, procs: procs, hook: hook, now: now, log: log, boot: boot.ID(),
		inProgress: map[string]Run{}, runs: map[string]*tracked{}, retrying: map[string]bool{}, estimates: estimates{},
		rules:       flightRules{rules: map[string]string{}, mixed: map[string]bool{}},
		idleChanged: make(chan struct{}), going: make(chan struct{}),
	}
}

// FindRepeated looks up a claim before other work is done for its delivery. It returns *Replayed for a delivery that
// was accepted before, ErrReused, ErrOtherBody, ErrUnavailable, or nil for a delivery that looks new. If two
// concurrent requests both look new, only one is accepted, because the claim is checked again when the run is
// recorded.
func (r *Runner) FindRepeated(ctx context.Context, hook string, c Claim) error {
	switch first, err := r.store.Find(ctx, hook, c); {
	case err == nil:
		return &Replayed{Run: first}
	case errors.Is(err, ErrUnknown):
		return nil
	default:
		return err
	}
}

// Start records the run that a delivery requests, and starts it or queues it by the policy of its hook. If it returns
// an error other than *NotStarted, nothing was recorded: *Replayed, ErrReused, ErrOtherBody, *Busy, ErrDraining,
// ErrUnavailable. After recordTime it returns ErrUnavailable, and a run that is recorded later is still started.
func (r *Runner) Start(ctx context.Context, d Delivery) (Started, error) {
	// A repeated delivery is answered with its first run even while that run is in progress, so this check precedes
	// busy.
	if d.Repeated != nil {
		return Started{}, d.Repeated
	}
	run, err := r.makeRun(d)
	if err != nil {
		return Started{}, err
	}
	if err := r.beginWork(run.Flight, d.Hook.Busy); err != nil {
		return Started{}, err
	}
	// The request is carried out even if the sender closes the connection.
	ctx = context.WithoutCancel(ctx)
	return awaitRecord(r.log, func() (Started, error) { return r.admitRun(ctx, d, run) })
}

// admitRun records a run that beginWork admitted, and starts it or queues it.
func (r *Runner) admitRun(ctx context.Context, d Delivery, run Run) (Started, error) {
	launching := false
	defer func() {
		if !launching { // otherwise launchRun does
			r.endWork()
		}
	}()
	in := d.commandFeed()
	a, err := r.store.Admit(ctx, run, d.Claim, d.Hook.Busy, in)
	if err != nil {
		var busy *Busy
		if errors.As(err, &busy) {
			busy.RetryAfter = r.estimateEnd(busy.Run)
		}
		return Started{}, err
	}
	for _, old := range a.Superseded {
		r.log.Info("run superseded", "run", old.ID, "hook", old.Hook, "by", a.Run.ID)
		r.releaseWaiters(old.ID)
	}
	if a.Run.State == Running {
		launching = true
		outcome, err := r.launchRun(ctx, a.Run, in, fromDelivery)
		return Started{Run: a.Run, Late: err == nil && outcome != commandStarted}, err
	}
	r.log.Info("run queued", "run", a.Run.ID, "hook", run.Hook, "caller", run.Caller, "flight", run.Flight, "position", a.Position)
	if a.Stop != nil {
		r.stopRun(ctx, a.Stop.ID, stopping{Cancelled, -1})
	}
	return Started{Run: a.Run, Joined: a.Joined, Position: a.Position, Expected: r.estimateStart(a.Run, a.Position)}, nil
}

func (r *Runner) makeRun(d Delivery) (Run, error) {
	id, err := r.ids.nextID()
	if err != nil {
		return Run{}, err
	}
	run := Run{
		ID: id.String(), Hook: d.Hook.Name, Caller: d.Caller, Flight: d.Hook.Flight(d.Values),
		Params: d.Values, Created: r.now(), RerunOf: d.RerunOf,
	}
	return run, nil
}

func (d *Delivery) commandFeed() Feed {
	in := Feed{Trace: d.Trace}
	if d.Hook.StdinBody {
		in.Stdin = d.Body
	}
	return in
}

// beginWork refuses what it can refuse without the store: every delivery while the server drains, and a delivery to a
// busy flight that has no queue. If it admits a delivery, Drain waits until endWork.
func (r *Runner) beginWork(flight string, p hook.Policy) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return ErrDraining
	}
	if other, busy := r.inProgress[flight]; busy && p.Kind == hook.Reject {
		return &Busy{Run: other, RetryAfter: r.estimates.timeLeft(other, r.now())}
	}
	r.working++
	return nil
}

func (r *Runner) endWork() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.working--; r.working == 0 {
		close(r.idleChanged)
		r.idleChanged = make(chan struct{})
	}
}

// followRun records the end of a run. Its flight is free only after that, so the store never shows two runs of a flight
// in progress.
func (r *Runner) followRun(ctx context.Context, run Run) {
	end, seen := r.awaitEnd(run)
	if !seen {
		r.endWork()
		return
	}
	state := end.State()
	took := end.Ended.Sub(run.Started)
	r.mu.Lock()
	r.estimates.addDuration(run.Hook, took)
	r.mu.Unlock()
	r.finishRun(ctx, run, state, end, KeepClaims)
}

// awaitEnd waits for the end of a run, and reports false if the next server records the end. A command that was
// started and that the supervisor does not know is stopped, and its run is interrupted. Its claim is not removed,
// because the command did run.
func (r *Runner) awaitEnd(run Run) (end End, seen bool) {
	for logged := false; ; logged = true {
		ends, err := r.procs.Follow(run.ID)
		if err == nil {
			end, seen = <-ends
			return end, seen
		}
		if r.hasLeft() || errors.Is(err, ErrLeft) {
			return End{}, false
		}
		if !logged {
			r.log.Error("run not followed", "run", run.ID, "hook", run.Hook, "error", err)
		}
		if errors.Is(err, ErrUnknown) {
			r.stopCommand(run.ID, stopping{Interrupted, 0})
			return End{Ended: r.now(), Reason: Interrupted}, true
		}
		if r.isStopping() { // the next server learns the end
			return End{}, false
		}
		<-time.After(recordRetryPause)
	}
}

// logRunEnd logs the end of a run. It is called after the end is recorded and before callers of Wait continue, so
// that the flight is free when a reader sees the line.
func (r *Runner) logRunEnd(run Run, state State, end End) {
	attrs := []any{
		"run", run.ID, "hook", run.Hook, "caller", run.Caller, "state", state, "took_ms", end.Ended.Sub(run.Started).Milliseconds(),
		"output_bytes", end.Output.Bytes, "output_dropped", end.Output.Dropped,
	}
	if end.ExitCode != nil {
		attrs = append(attrs, "exit_code", *end.ExitCode)
	}
	if end.Signal != "" {
		attrs = append(attrs, "signal", end.Signal)
	}
	if end.LeftBehind > 0 {
		attrs = append(attrs, "left_behind", end.LeftBehind)
	}
	r.log.Info("run ended", attrs...)
}

// finishRun records an end, however long the store takes to accept it, and launches the next run of the flight.
func (r *Runner) finishRun(ctx context.Context, run Run, s State, e End, c AfterClaims) Run {
	ended, next := r.recordEnd(ctx, run, s, e, c)
	r.mu.Lock()
	r.setPhase(run, phaseNone)
	r.mu.Unlock()
	if c == KeepClaims {
		r.logRunEnd(run, ended.State, e)
	}
	r.releaseWaiters(run.ID)
	if next == nil {
		r.endWork()
		return ended
	}
	go r.launchStored(ctx, *next) // it takes over this unit of work
	return ended
}

// recordRetryPause is the pause before the next attempt while the store cannot record, for example because the disk
// is full.
const recordRetryPause = time.Second

func (r *Runner) recordEnd(ctx context.Context, run Run, s State, e End, c AfterClaims) (Run, *Run) {
	for failing := new(logging.Repeated); ; {
		ended, next, err := r.recordEndOnce(ctx, run, s, e, c)
		if err == nil {
			return ended, next
		}
		if failing.IsNew(err) {
			r.log.Error("run not recorded", "run", run.ID, "hook", run.Hook, "state", s, "error", err)
		}
		if errors.Is(err, ErrUnknown) || r.isStopping() { // the next server reads the end from the folder of the run
			run.State, run.End = s, e
			return run, nil
		}
		<-time.After(recordRetryPause) // the command has ended; only the store does not have the end yet
	}
}

// recordEndOnce queues an interrupted run again before it records its end, so that an accepted run is not lost if the
// server ends between the two.
func (r *Runner) recordEndOnce(ctx context.Context, run Run, s State, e End, c AfterClaims) (ended Run, next *Run, err error) {
	if s == Interrupted {
		if run, err = r.store.Get(ctx, run.ID); err != nil {
			return Run{}, nil, err
		}
		if run.Wish == "" {
			err = r.rerunInterrupted(ctx, run)
		} else { // the request to end it may be why it ended
			s = run.Wish
		}
		if err != nil {
			return Run{}, nil, err
		}
	}
	queue := PromoteNext
	if r.Draining() {
		queue = LeaveQueued
	}
	return r.store.Finish(ctx, run.ID, s, e, c, queue)
}

// State returns the state of a run with this end.
func (e End) State() State {
	switch {
	case e.Reason != "":
		return e.Reason
	case e.ExitCode != nil && *e.ExitCode == 0:
		return Succeeded
	}
	return Failed
}

// Get returns a run as the store has it, or ErrUnknown.
func (r *Runner) Get(ctx context.Context, id string) (Run, error) { return r.store.Get(ctx, id) }

// List returns runs, newest first, and the cursor of the next page.
func (r *Runner) List(ctx context.Context, f Filter) ([]Run, string, error) {
	return r.store.List(ctx, f)
}

// Wait returns a run when it has ended. If ctx is done or the run is left to the next server, Wait returns the run as
// it is then.
func (r *Runner) Wait(ctx context.Context, id string) (Run, error) {
	r.mu.Lock()
	left := r.left
	var done chan struct{}
	if !left {
		t := r.trackRun(id)
		if t.ended == nil {
			t.ended = make(chan struct{})
		}
		done = t.ended
	}
	r.mu.Unlock()
	// The store is read after done exists, so that an end between the two is not missed.
	run, err := r.store.Get(context.WithoutCancel(ctx), id)
	if errors.Is(err, ErrUnknown) || err == nil && run.State.Ended() {
		r.releaseWaiters(id) // no other goroutine does
	}
	if err != nil || run.State.Ended() || left {
		return run, err
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return r.store.Get(context.WithoutCancel(ctx), id)
}

// Cancel ends a run: a queued one at once, a running one by TERM, the grace of its hook, and KILL. It returns the run
// as it is then. A run that has ended is not changed. After Cancel returned without an error, a command that had not
// begun before does not begin any more.
func (r *Runner) Cancel(ctx context.Context, id string) (Run, error) {
	ctx = context.WithoutCancel(ctx)
	return awaitRecord(r.log, func() (Run, error) {
		run, ended, err := r.store.Cancel(ctx, id)
		switch {
		case err != nil:
		case ended:
			r.reportCancelled(run)
		case run.State == Running:
			<-r.stopRun(ctx, id, stopping{Cancelled, -1})
		}
		return run, err
	})
}

// reportCancelled logs a run that was cancelled while it was queued, and releases the callers that wait for its end.
func (r *Runner) reportCancelled(run Run) {
	r.log.Info("run cancelled", "run", run.ID, "hook", run.Hook)
	r.releaseWaiters(run.ID)
}

// Rerun starts the command of a run again, with its parameters, for a caller. It is a new run and not a replay,
// unless the claim on the request for it was made before. Its errors are those of Start, and ErrUnknown, *NotAllowed
// and ErrNoInput.
func (r *Runner) Rerun(ctx context.Context, run Run, caller string, claim Claim) (Started, error) {
	h, ok := r.hook(run.Hook)
	if !ok {
		return Started{}, ErrUnknown
	}
	if problems := h.CheckValues(run.Params); len(problems) > 0 {
		return Started{}, &NotAllowed{Problems: problems}
	}
	d := Delivery{Hook: h, Caller: caller, Values: run.Params, Claim: claim, RerunOf: run.ID}
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
	d.Repeated = r.FindRepeated(ctx, h.Name, claim)
	return r.Start(ctx, d)
}
