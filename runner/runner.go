// Package runner starts the commands of hooks, one run of a flight at a time.
//
// A [Runner] records each accepted delivery in a [Store] before its command is ordered from [Processes], and records
// the end before the flight is free again. So the record never shows two runs of a flight in progress, and a server that
// ends at any point leaves enough for the next one: [Runner.Recover] follows what runs, records what ended, and starts
// what was accepted and did not start. Package hook decides what may run.
//
// The package knows nothing of HTTP, of credentials or of system calls.
package runner

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"sallyport/internal/boot"
	"sallyport/internal/logging"
	"sallyport/runner/hook"
)

// Delivery is one verified request for a hook, its parameters bound.
type Delivery struct {
	Hook    *hook.Hook
	Caller  string
	Values  hook.Values
	Claim   Claim
	Body    []byte // for stdin
	Trace   string // W3C traceparent, or empty
	RerunOf string // the run that this one repeats, or empty

	// Repeated is what FindRepeated said of Claim.
	Repeated error
}

// Started is what a delivery led to.
type Started struct {
	Run      Run
	Late     bool          // the run is recorded, and nobody has said yet that its command runs
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

// Unwrap returns the reason.
func (e *NotStarted) Unwrap() error { return e.Reason }

func (e *NotStarted) Error() string { return fmt.Sprintf("starting run %s: %v", e.Run.ID, e.Reason) }

// ErrNoInput says that a command reads the body of its delivery, and the body was
// not kept beyond the end of the run.
var ErrNoInput = errors.New("the body that the command reads is not kept")

// NotAllowed says that the parameters of a run are not, or no longer, what its
// hook allows.
type NotAllowed struct{ Problems []hook.ParamProblem }

func (e *NotAllowed) Error() string {
	return "parameter " + e.Problems[0].Param + " " + e.Problems[0].Text
}

// ErrDraining says that the server takes no more deliveries.
var ErrDraining = errors.New("draining")

// Runner lets one run of each flight through at a time.
type Runner struct {
	store Store
	procs Processes
	hook  func(name string) (*hook.Hook, bool)
	log   *slog.Logger
	now   func() time.Time
	boot  string // boot.ID

	mu       sync.Mutex
	draining bool
	going    chan struct{}            // closed when draining begins
	left     bool                     // runs are left to the next server
	stopped  *time.Duration           // set once all were stopped: the grace they were given
	air      map[string]Run           // by flight: what is under way, so that busy is answered from memory
	up       map[string]bool          // by run: its command was started, or found running
	stops    map[string]*pendingStop  // by run: asked for before its command was up
	failed   map[string]*failures     // by run: accepted, and its command could not be started yet
	rules    map[string]string        // by hook: its flight as the file had it at the latest start
	mixed    map[string]bool          // by hook: runs may be in progress under an earlier one
	retrying map[string]bool          // by flight: what is first in it is about to be tried again
	active   int                      // deliveries that are being admitted, and runs that are launched or followed here
	done     map[string]chan struct{} // by run: closed when its end is recorded
	took     map[string]*durations    // by hook
	changed  chan struct{}            // closed and replaced when active falls to zero
	asked    *question                // under way
	newest   uuid.UUID                // the highest id of a run so far

	ordering sync.WaitGroup // orders that are being given; none begins once left is set
}

// stopping is how a run is to be stopped.
type stopping struct {
	why   State
	grace time.Duration
}

// pendingStop is how a run is to be stopped whose command may not have started.
type pendingStop struct {
	stopping

	revoked bool          // the command never starts
	settled chan struct{} // closed once no command can begin any more, or the command is up and told to end
}

// settle closes settled. The caller holds the runner's mu.
func (p *pendingStop) settle() {
	select {
	case <-p.settled:
	default:
		close(p.settled)
	}
}

// New returns a runner with nothing in the air. hook yields a hook as the
// configuration has it at that moment.
func New(store Store, procs Processes, hook func(string) (*hook.Hook, bool), now func() time.Time, log *slog.Logger) *Runner {
	return &Runner{
		store: store, procs: procs, hook: hook, now: now, log: log, boot: boot.ID(),
		air: map[string]Run{}, up: map[string]bool{}, stops: map[string]*pendingStop{}, failed: map[string]*failures{}, retrying: map[string]bool{}, rules: map[string]string{}, mixed: map[string]bool{},
		done: map[string]chan struct{}{}, took: map[string]*durations{}, changed: make(chan struct{}), going: make(chan struct{}),
	}
}

// FindRepeated looks a claim up before anything is spent on its delivery. It returns *Replayed
// for a delivery that was accepted before, ErrReused, ErrOtherBody, ErrUnavailable, or nil for a
// delivery that looks new. What looks new to two requests at once is still accepted only once:
// recording the run checks the claim again.
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

// Start records the run that a delivery asks for and starts it, or has it wait,
// by the policy of its hook. Nothing was recorded when it returns an error but
// *NotStarted: *Replayed, ErrReused, *Busy, ErrDraining, ErrUnavailable. After
// recordTime it returns ErrUnavailable, and what is recorded then is started.
func (r *Runner) Start(ctx context.Context, d Delivery) (Started, error) {
	// A repetition is answered with its first run even while that one is in
	// the air, so this comes before busy.
	if d.Repeated != nil {
		return Started{}, d.Repeated
	}
	run, err := r.newRun(d)
	if err != nil {
		return Started{}, err
	}
	if err := r.enter(run.Flight, d.Hook.Busy); err != nil {
		return Started{}, err
	}
	// What was asked for is done, whether or not the sender still listens.
	ctx = context.WithoutCancel(ctx)
	return awaited(r.log, func() (Started, error) { return r.admit(ctx, d, run) })
}

// admit records a run that was let in, and starts it or has it wait.
func (r *Runner) admit(ctx context.Context, d Delivery, run Run) (Started, error) {
	launching := false
	defer func() {
		if !launching { // otherwise launch sees to it
			r.leave()
		}
	}()
	in := d.feed()
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
		launching = true
		late, err := r.launch(ctx, a.Run, in, false)
		return Started{Run: a.Run, Late: late}, err
	}
	r.log.Info("run queued", "run", a.Run.ID, "hook", run.Hook, "caller", run.Caller, "flight", run.Flight, "position", a.Position)
	if a.Stop != nil {
		r.stop(ctx, a.Stop.ID, stopping{Cancelled, -1})
	}
	return Started{Run: a.Run, Joined: a.Joined, Position: a.Position, Expected: r.expected(a.Run, a.Position)}, nil
}

func (r *Runner) newRun(d Delivery) (Run, error) {
	id, err := r.newID()
	if err != nil {
		return Run{}, err
	}
	run := Run{
		ID: id.String(), Hook: d.Hook.Name, Caller: d.Caller, Flight: d.Hook.Flight(d.Values),
		Params: d.Values, Created: r.now(), RerunOf: d.RerunOf,
	}
	return run, nil
}

// newID returns an id for a run that is higher than all before: the order of ids is the order of runs, for lists and
// for what is kept. If the clock was ahead for a while, ids go on from there.
func (r *Runner) newID() (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.UUID{}, fmt.Errorf("making a run id: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if bytes.Compare(id[:], r.newest[:]) <= 0 {
		var at [8]byte
		copy(at[2:], r.newest[:6]) // milliseconds (RFC 9562 5.7)
		binary.BigEndian.PutUint64(at[:], binary.BigEndian.Uint64(at[:])+1)
		copy(id[:6], at[2:])
	}
	r.newest = id
	return id, nil
}

// noteID has ids of new runs be higher than that of a run which is recorded.
func (r *Runner) noteID(run string) {
	id, err := uuid.Parse(run)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && bytes.Compare(id[:], r.newest[:]) > 0 {
		r.newest = id
	}
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
func (r *Runner) enter(flight string, p hook.Policy) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return ErrDraining
	}
	if other, busy := r.air[flight]; busy && p.Kind == hook.Reject {
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

// follow records the end of a run. Its flight is free only after that, so the
// record never shows two runs of a flight at once.
func (r *Runner) follow(ctx context.Context, run Run) {
	end, seen := r.end(run)
	if !seen {
		r.leave()
		return
	}
	state := end.State()
	took := end.Ended.Sub(run.Started)
	r.mu.Lock()
	if r.took[run.Hook] == nil {
		r.took[run.Hook] = &durations{}
	}
	r.took[run.Hook].add(took)
	r.mu.Unlock()
	r.finish(ctx, run, state, end, false)
}

// end waits for the end of a run, unless it is the next server that sees it. A
// command that started and of which nothing is known is stopped, and its run is
// interrupted: its delivery is not given back, because the command did run.
func (r *Runner) end(run Run) (end End, seen bool) {
	for logged := false; ; logged = true {
		ends, err := r.procs.Follow(run.ID)
		if err == nil {
			end, seen = <-ends
			return end, seen
		}
		if r.isLeft() || errors.Is(err, ErrLeft) {
			return End{}, false
		}
		if !logged {
			r.log.Error("run not followed", "run", run.ID, "hook", run.Hook, "error", err)
		}
		if errors.Is(err, ErrUnknown) {
			r.stopNow(run.ID, stopping{Interrupted, 0})
			return End{Ended: r.now(), Reason: Interrupted}, true
		}
		if r.isGoing() { // the next server learns the end
			return End{}, false
		}
		<-time.After(recordAgain)
	}
}

// logEnd comes after the record and before anybody is told, so that who reads
// it finds the flight free.
func (r *Runner) logEnd(run Run, state State, end End) {
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

// finish records an end, for as long as it takes the store to take it, and
// launches what waited for it.
func (r *Runner) finish(ctx context.Context, run Run, s State, e End, giveBack bool) Run {
	ended, next := r.record(ctx, run, s, e, giveBack)
	r.mu.Lock()
	if r.air[run.Flight].ID == run.ID {
		delete(r.air, run.Flight)
	}
	delete(r.up, run.ID)
	r.mu.Unlock()
	if !giveBack {
		r.logEnd(run, ended.State, e)
	}
	r.tell(run.ID)
	if next == nil {
		r.leave()
		return ended
	}
	go r.launchStored(ctx, *next) // it takes over this run's part of active
	return ended
}

// recordAgain is how long to wait for a store that cannot record an end, for
// want of space perhaps.
const recordAgain = time.Second

func (r *Runner) record(ctx context.Context, run Run, s State, e End, giveBack bool) (Run, *Run) {
	for failing := new(logging.Repeated); ; {
		ended, next, err := r.recordOnce(ctx, run, s, e, giveBack)
		if err == nil {
			return ended, next
		}
		if failing.IsNew(err) {
			r.log.Error("run not recorded", "run", run.ID, "hook", run.Hook, "state", s, "error", err)
		}
		if errors.Is(err, ErrUnknown) || r.isGoing() { // the next server learns the end from the run's folder
			run.State, run.End = s, e
			return run, nil
		}
		<-time.After(recordAgain) // the run's command has ended; only its record waits
	}
}

// recordOnce queues an interrupted run again before it records its end, so that
// nothing accepted is lost between the two.
func (r *Runner) recordOnce(ctx context.Context, run Run, s State, e End, giveBack bool) (ended Run, next *Run, err error) {
	if s == Interrupted {
		if run, err = r.store.Get(ctx, run.ID); err != nil {
			return Run{}, nil, err
		}
		if run.Wish == "" {
			err = r.rerunInterrupted(ctx, run)
		} else { // it ended, and nobody saw whether of that
			s = run.Wish
		}
		if err != nil {
			return Run{}, nil, err
		}
	}
	return r.store.Finish(ctx, run.ID, s, e, giveBack, !r.Draining())
}

// tell lets those go on who wait for the end of a run, and forgets the run.
func (r *Runner) tell(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.stops[id]; p != nil {
		p.settle()
		delete(r.stops, id)
	}
	delete(r.failed, id)
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

// Wait returns a run when it has ended, or as it stands when ctx is done or the
// run is left to the next server.
func (r *Runner) Wait(ctx context.Context, id string) (Run, error) {
	r.mu.Lock()
	left := r.left
	done, ok := r.done[id]
	if !ok && !left {
		done = make(chan struct{})
		r.done[id] = done
	}
	r.mu.Unlock()
	// Asked after done is there, so that an end in between is not missed.
	run, err := r.store.Get(context.WithoutCancel(ctx), id)
	if errors.Is(err, ErrUnknown) || err == nil && run.State.Ended() {
		r.tell(id) // nobody else would
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

// Cancel ends a run: one that waits at once, one that runs by TERM, its hook's
// grace, and KILL. It returns the run as it stands then. One that has ended
// stays as it is. Once Cancel has returned without an error, no command begins that
// had not begun before.
func (r *Runner) Cancel(ctx context.Context, id string) (Run, error) {
	ctx = context.WithoutCancel(ctx)
	return awaited(r.log, func() (Run, error) {
		run, ended, err := r.store.Cancel(ctx, id)
		switch {
		case err != nil:
		case ended:
			r.tellCancelled(run)
		case run.State == Running:
			<-r.stop(ctx, id, stopping{Cancelled, -1})
		}
		return run, err
	})
}

// tellCancelled tells of a run that was cancelled while it was queued.
func (r *Runner) tellCancelled(run Run) {
	r.log.Info("run cancelled", "run", run.ID, "hook", run.Hook)
	r.tell(run.ID)
}

// Rerun starts the command of a run again, with its parameters, for a caller.
// It is a new run and no replay, unless the claim on the request for it was made
// before. Errors are those of Start, and ErrUnknown.
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

// stop ends the command of a run that is recorded as running, and as to be ended:
// now, or as soon as it is there. One that was not started yet never starts, though
// who starts commands may have the order. The channel is closed once that is settled.
func (r *Runner) stop(ctx context.Context, id string, how stopping) (settled <-chan struct{}) {
	r.mu.Lock()
	up, pending := r.up[id], r.stops[id]
	if pending == nil {
		pending = &pendingStop{settled: make(chan struct{})}
	}
	pending.stopping = how
	if up {
		pending.settle()
	} else {
		r.stops[id] = pending
	}
	r.mu.Unlock()
	if up {
		r.stopNow(id, how)
		return pending.settled
	}
	switch revoked, err := r.procs.Revoke(id, how.why); {
	case err != nil:
		r.log.Error("run not revoked", "run", id, "error", err)
	case revoked:
		r.mu.Lock()
		pending.revoked = true
		pending.settle()
		r.mu.Unlock()
	}
	// It may have ended before that, and then nobody else forgets it.
	if run, err := r.store.Get(context.WithoutCancel(ctx), id); err == nil && run.State.Ended() {
		r.tell(id)
	}
	return pending.settled
}

// revoked returns why a run ends whose command never starts.
func (r *Runner) revoked(id string) (why State, yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.stops[id]
	if p == nil || !p.revoked {
		return "", false
	}
	return p.why, true
}

func (r *Runner) stopNow(id string, how stopping) {
	if err := r.procs.Stop(id, how.why, how.grace); err != nil {
		r.log.Error("run not stopped", "run", id, "error", err)
	}
}
