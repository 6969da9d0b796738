// Package runner starts the commands of hooks, one run of a flight at a time.
//
// A [Runner] records each accepted delivery in a [Store] before its command is ordered from [Processes], and records
// the end before the flight is free again. Package hook decides which commands may run.
//
// Invariants:
//
//   - The store never shows two runs of a flight in progress.
//   - A delivery is answered only after its run and its [Claim] are recorded. A repeated delivery gets [Replayed].
//   - The command of a run is started at most once, unless its hook says that interrupted runs start again.
//   - A run that was cancelled before its command began never begins.
//
// One goroutine, its driver, takes a run through its phases. If the server ends, each phase leaves enough for
// [Runner.Recover] of the next server to continue the run:
//
//   - idle: the run is queued or has ended. A queued run is started in its turn.
//   - admitted: the store has the run as running, and the supervisor does not know it. It is ordered, unless the
//     machine was restarted since: then the folder of the run may be lost, and the run ends as interrupted.
//   - ordered: the supervisor knows the run, and it continues as in running, or it does not, as in admitted. An order
//     is never carried out twice.
//   - running: the command continues without a server. It is followed, and its end is recorded.
//   - ending: the supervisor has the end, which is read again. The run of a command that could not be started is tried
//     again. An interrupted run that is to be repeated was queued again before its end, with a claim, so it is queued
//     once.
//
// Other failures: what cannot be recorded is not started ([ErrUnavailable]). A command that cannot be started now stays
// queued and is tried again. If the supervisor is lost, its runs end as interrupted, because their exit codes are not
// known.
//
// A server calls [New] and [Runner.Recover], then [Runner.Start] for each delivery, and at its end [Runner.Drain], or
// [Runner.Leave] if a successor continues.
//
// The package does not depend on HTTP, credentials or system calls.
package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

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
	Late     bool // the run is recorded, and it is not known yet that its command runs
	Joined   bool // the run was queued before
	Position int  // of a queued run: 1 is next, apart from runs of other hooks that are paused
	// Expected is the time until a queued run should start, estimated from the median duration of the hook. It is 0 if
	// it is not known.
	Expected time.Duration
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

// Runner starts one run of each flight at a time. It records deliveries and has runs driven; its parts are separate
// types: [driver] takes one run through its phases, [tracker] knows the phases of all runs, and [gate] counts the work
// that Drain waits for. It has one field more than most types may have, because it is where the parts are put together.
type Runner struct {
	store     Store
	procs     Processes
	hook      func(name string) (*hook.Hook, bool)
	log       *slog.Logger
	now       func() time.Time
	ids       idSource
	estimates *estimates
	gate      *gate
	runs      *tracker
	stopper   *stopper
	promoter  *promoter
	probe     *probe
	pauses    *Pauses
}

// New returns a runner without runs in progress. hook returns a hook from the current configuration.
func New(
	store Store, procs Processes, hook func(string) (*hook.Hook, bool), now func() time.Time, log *slog.Logger,
) *Runner {
	g := newGate()
	runs := newTracker(hook, log, g)
	r := &Runner{
		store: store, procs: procs, hook: hook, log: log, now: now, gate: g, runs: runs,
		estimates: &estimates{now: now, byHook: map[string]*durations{}},
		stopper:   &stopper{procs: procs, store: store, runs: runs, log: log},
		probe:     &probe{procs: procs, log: log},
	}
	r.promoter = &promoter{
		store: store, gate: g, log: log, timers: map[string]time.Time{},
		driveRun: func(ctx context.Context, run Run) { driveStored(ctx, r, run) },
	}
	r.pauses = &Pauses{store: store, promoter: r.promoter, log: log}
	return r
}

// FindRepeated looks up a claim before other work is done for its delivery. It returns *Replayed for a delivery that
// was accepted before, ErrReused, ErrOtherBody, ErrUnavailable, or nil for a delivery that looks new. If two
// concurrent requests both look new, only one is accepted, because the claim is checked again when the run is
// recorded.
func (r *Runner) FindRepeated(ctx context.Context, hook string, c Claim) error {
	return FindRepeated(ctx, r.store, hook, c)
}

// Claims finds the run that was started by the first delivery with a claim.
type Claims interface {
	Find(ctx context.Context, hook string, c Claim) (Run, error)
}

// FindRepeated is [Runner.FindRepeated] with the claims of a store.
func FindRepeated(ctx context.Context, claims Claims, hook string, c Claim) error {
	switch first, err := claims.Find(ctx, hook, c); {
	case err == nil:
		return &Replayed{Run: first}
	case errors.Is(err, ErrUnknown):
		return nil
	default:
		return err
	}
}

// Start records the run that a delivery requests, and starts it or queues it by the policy of its hook. If it returns
// an error other than *NotStarted, nothing was recorded: *Replayed, ErrReused, ErrOtherBody, *Busy, *Paused,
// ErrDraining, ErrUnavailable. After recordTime it returns ErrUnavailable, and a run that is recorded later is still
// started.
func (r *Runner) Start(ctx context.Context, d Delivery) (Started, error) {
	// A repeated delivery is answered with its first run even while that run is in progress, so this check precedes
	// busy.
	if d.Repeated != nil {
		return Started{}, d.Repeated
	}
	id, err := r.ids.nextID()
	if err != nil {
		return Started{}, err
	}
	run := makeRun(id, d, r.now())
	if r.Draining() {
		return Started{}, ErrDraining
	}
	if err := r.pauses.refusePaused(d.Hook); err != nil {
		return Started{}, err
	}
	if other, busy := r.runs.findInProgress(run.Flight); busy && d.Hook.Busy.Kind == hook.Reject {
		return Started{}, &Busy{Run: other, RetryAfter: r.estimates.timeLeft(other)}
	}
	// The request is carried out even if the sender closes the connection.
	ctx = context.WithoutCancel(ctx)
	return awaitRecord(r.log, func() (started Started, err error) {
		err = r.gate.doWork(func() error {
			started, err = r.admitRun(ctx, d, run)
			return err
		})
		return started, err
	})
}

// admitRun records a run, and starts it or queues it.
func (r *Runner) admitRun(ctx context.Context, d Delivery, run Run) (Started, error) {
	in := d.commandFeed()
	a, err := r.store.Admit(ctx, run, d.Claim, d.Hook.Busy, in)
	if err != nil {
		var busy *Busy
		if errors.As(err, &busy) {
			busy.RetryAfter = r.estimates.timeLeft(busy.Run)
		}
		return Started{}, err
	}
	for _, old := range a.Superseded {
		r.log.Info("run superseded", "run", old.ID, "hook", old.Hook, "by", a.Run.ID)
		r.runs.releaseWaiters(old.ID)
	}
	if a.Run.State == Running {
		driven := startDriver(r, a.Run, in, fromDelivery, func(d *driver) { d.driveRun(ctx) })
		result, err := driven.awaitLaunch()
		if result != queuedAgain {
			return Started{Run: a.Run, Late: result != commandStarted && err == nil}, err
		}
		a.Run.State, a.Run.Started, a.Position = Queued, time.Time{}, 1 // as the driver records it
	}
	r.log.Info("run queued", "run", a.Run.ID, "hook", run.Hook, "caller", run.Caller, "flight", run.Flight,
		"position", a.Position)
	if a.Stop != nil {
		r.stopper.stopRun(ctx, a.Stop.ID, stopping{Cancelled, -1})
	}
	if _, isBusy := r.runs.findInProgress(run.Flight); !isBusy && (a.Joined || len(a.Superseded) > 0) {
		r.promoter.promoteLater(ctx, run.Flight, 0) // it took the place of a run that was not due
	}
	return Started{Run: a.Run, Joined: a.Joined, Position: a.Position, Expected: r.timeToStart(a.Run, a.Position)}, nil
}

// timeToStart estimates how long it takes until a queued run starts, or returns 0 if that is not known, because its hook
// is paused until it is resumed.
func (r *Runner) timeToStart(run Run, position int) time.Duration {
	current, _ := r.runs.findInProgress(run.Flight)
	expected := r.estimates.timeToStart(run, current, position)
	if pause, paused := r.pauses.find(run.Hook); paused {
		if pause.Length == 0 {
			return 0
		}
		expected = max(expected, newPaused(pause).Left)
	}
	return expected
}

// makeRun makes the run that a delivery requests.
func makeRun(id string, d Delivery, now time.Time) Run {
	return Run{
		ID: id, Hook: d.Hook.Name, Caller: d.Caller, Flight: d.Hook.Flight(d.Values),
		Title: d.Hook.Title(d.Values), Params: d.Values, Created: now, RerunOf: d.RerunOf, OnInterrupted: ruleOfHook(d.Hook),
	}
}

func (d *Delivery) commandFeed() Feed {
	in := Feed{Trace: d.Trace}
	if d.Hook.StdinBody {
		in.Stdin = d.Body
	}
	return in
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

// Answers reports whether the supervisor answers before ctx is done.
func (r *Runner) Answers(ctx context.Context) bool { return r.probe.answers(ctx) }

// Get returns a run as the store has it, or ErrUnknown.
func (r *Runner) Get(ctx context.Context, id string) (Run, error) { return r.store.Get(ctx, id) }

// List returns runs, newest first, and the cursor of the next page.
func (r *Runner) List(ctx context.Context, f Filter) ([]Run, string, error) {
	return r.store.List(ctx, f)
}

// Wait returns a run when it has ended, or, if it failed and is repeated, the last attempt when that has ended. If ctx is
// done or the run is left to the next server, Wait returns the run or its latest attempt as it is then.
func (r *Runner) Wait(ctx context.Context, id string) (Run, error) {
	run, err := r.WaitAttempt(ctx, id)
	for err == nil && run.Again != "" {
		var next Run
		if next, err = r.WaitAttempt(ctx, run.Again); errors.Is(err, ErrUnknown) { // it was pruned
			return run, nil
		}
		run = next
	}
	return run, err
}

// WaitAttempt returns a run when it has ended, although it may be repeated, or as it is when ctx is done or the run is
// left to the next server.
func (r *Runner) WaitAttempt(ctx context.Context, id string) (Run, error) {
	ended := r.runs.awaitRelease(id)
	// The store is read after ended exists, so that an end between the two is not missed.
	run, err := r.store.Get(context.WithoutCancel(ctx), id)
	if errors.Is(err, ErrUnknown) || err == nil && run.State.Ended() {
		r.runs.releaseWaiters(id) // no driver does
	}
	if err != nil || run.State.Ended() || ended == nil {
		return run, err
	}
	select {
	case <-ended:
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
			r.stopper.reportCancelled(run)
			r.promoter.promoteLater(ctx, run.Flight, 0) // others may have waited for it until it was due
		case run.State == Running:
			<-r.stopper.stopRun(ctx, id, stopping{Cancelled, -1})
		}
		return run, err
	})
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
