package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"sallyport/internal/guard"
	"sallyport/internal/logging"
	"sallyport/runner/hook"
)

// answerTime is how long the runner waits for an answer of the supervisor before it continues without it. It is
// shorter than the time that senders wait for their answer.
const answerTime = 5 * time.Second

// origin says where a run that is driven comes from.
type origin int

const (
	fromDelivery origin = iota // its sender waits for the answer, and gets the error
	fromStore                  // its delivery was answered before: a failed start is tried again
)

// outcome is what became of the order of a run.
type outcome int

const (
	commandStarted outcome = iota // the command runs
	notAnswered                   // its order was given once, is not repeated, and has no answer yet
	notOrdered                    // this server gives no more orders: the next one starts it
	leftToNext                    // the next server learns what became of it
	neverBegins                   // it was revoked before its command began, and ends for that reason
	queuedAgain                   // its command cannot be started yet; the start is tried again
	notStarted                    // its command cannot be started; the run ends as failed
)

// launch is an outcome, with its error if it is notStarted.
type launch struct {
	outcome outcome
	err     error
}

// driver takes one run that the store has as running through its phases: to its end, back into the queue, or until it
// is left to the next server. A run has one driver at a time, which is one goroutine and one unit of work.
type driver struct {
	*Runner

	run      Run
	in       Feed
	from     origin
	launched chan launch // the first thing that is known of the order; closed when the driver has ended
	recorded chan Run    // the end of a run that was not started
}

// startDriver starts a driver of a run with its first step.
func startDriver(r *Runner, run Run, in Feed, from origin, step func(*driver)) *driver {
	d := &driver{
		Runner: r, run: run, in: in, from: from,
		launched: make(chan launch, 1), recorded: make(chan Run, 1),
	}
	if !r.runs.advancePhase(run, admitted) { // another driver has it
		close(d.launched)
		return d
	}
	r.gate.goWork(func() {
		defer close(d.launched)
		step(d)
	})
	return d
}

// driveStored starts a driver of a run from the store. Its delivery was answered before.
func driveStored(ctx context.Context, r *Runner, run Run) *driver {
	return startDriver(r, run, Feed{}, fromStore, func(d *driver) {
		switch {
		case run.Wish != "":
			d.finishRun(ctx, run.Wish, End{Ended: r.now(), Reason: run.Wish}, KeepClaims)
		case d.readFeed(ctx):
			d.driveRun(ctx)
		}
	})
}

// readFeed reads the input of the command. A command is never started without its input: it would do something else
// than was requested. It reports false if the run is left to the next server.
func (d *driver) readFeed(ctx context.Context) bool {
	for failing := new(logging.Repeated); ; {
		in, err := d.store.Feed(ctx, d.run.ID)
		if err == nil {
			d.in = in
			return true
		}
		if failing.IsNew(err) {
			d.log.Error("run's input not read", "run", d.run.ID, "hook", d.run.Hook, "error", err)
		}
		if errors.Is(err, ErrUnknown) || d.Draining() {
			return false
		}
		<-time.After(recordRetryPause)
	}
}

// driveRun orders the command and takes the run on from there.
func (d *driver) driveRun(ctx context.Context) {
	err := d.orderInTime()
	d.in = Feed{} // it may be large, and the run may take long
	switch result, why := d.judgeOrder(err); result {
	case commandStarted:
		d.markStarted()
		d.log.Info("run started", withTitle(d.run.Title, "run", d.run.ID, "hook", d.run.Hook, "caller", d.run.Caller,
			"flight", d.run.Flight)...)
		d.reportLaunch(commandStarted, nil)
		d.followRun(ctx)
	case notOrdered:
		if d.from == fromStore {
			d.runs.advancePhase(d.run, idle)
			// If this fails, the next server still finds the run as running.
			if now, err := d.store.Requeue(ctx, d.run.ID); err == nil && now.State.Ended() {
				d.stopper.reportCancelled(now)
			}
		}
	case neverBegins:
		d.reportLaunch(neverBegins, nil)
		d.finishRun(ctx, why, End{Ended: d.now(), Reason: why}, KeepClaims)
	case queuedAgain:
		d.reportLaunch(queuedAgain, nil)
		d.requeueRun(ctx, err)
	case notStarted:
		d.log.Error("run not started", "run", d.run.ID, "hook", d.run.Hook, "caller", d.run.Caller, "error", err)
		d.reportLaunch(notStarted, err)
		// The claim of its delivery is removed, so that the sender can send it again: the cause may be gone by then.
		d.recorded <- d.finishRun(ctx, Failed, endNotStarted(d.now(), err), RemoveClaims)
	case leftToNext, notAnswered:
	}
}

func endNotStarted(at time.Time, reason error) End {
	return End{Ended: at, Error: "the command could not be started", Detail: reason.Error()}
}

// reportLaunch reports the first outcome to awaitLaunch.
func (d *driver) reportLaunch(o outcome, err error) {
	select {
	case d.launched <- launch{o, err}:
	default:
	}
}

// awaitLaunch waits until something is known of the order, and returns the outcome. The error is *NotStarted. It does
// not wait for long until the store can record the end of a run that was not started.
func (d *driver) awaitLaunch() (outcome, error) {
	l, ok := <-d.launched
	if !ok {
		return notAnswered, nil
	}
	if l.outcome != notStarted {
		return l.outcome, nil
	}
	ended := d.run
	ended.State, ended.End = Failed, endNotStarted(d.now(), l.err)
	select {
	case ended = <-d.recorded:
	case <-time.After(recordRetryPause):
	}
	return notStarted, &NotStarted{Run: ended, Reason: l.err}
}

// orderInTime orders the command and returns the answer of the supervisor. After answerTime, the sender of the
// delivery does not wait for it any more.
func (d *driver) orderInTime() error {
	answer := make(chan error, 1)
	from := d.from
	go func() { answer <- d.orderCommand(from) }()
	select {
	case err := <-answer:
		return err
	case <-time.After(answerTime):
	}
	d.log.Warn("run late: the supervisor does not answer", "run", d.run.ID, "hook", d.run.Hook, "caller", d.run.Caller)
	d.from = fromStore
	d.reportLaunch(notAnswered, nil)
	return <-answer
}

// orderCommand orders the command. A panic is an error: fs.ErrExist if the command may have been started despite it.
func (d *driver) orderCommand(from origin) error {
	err := guard.Do(d.log, func() error { return d.runs.giveOrder(d.run, from, d.sendOrder) })
	if errors.Is(err, guard.ErrFault) {
		known, failed := guard.Call(d.log, func() (bool, error) { return d.procs.Known(d.run.ID) })
		if known || failed != nil {
			return fs.ErrExist
		}
	}
	return err
}

func (d *driver) sendOrder() error {
	h, ok := d.hook(d.run.Hook)
	if !ok {
		return fmt.Errorf("%w: %q", errNoHook, d.run.Hook)
	}
	return d.procs.Start(Order{
		Run: d.run.ID, Hook: d.run.Hook, Digest: h.Digest(), Caller: d.run.Caller,
		Values: d.run.Params, Trace: d.in.Trace, Stdin: d.in.Stdin, Created: d.run.Created,
	})
}

// judgeOrder returns the outcome of an order. why is the reason of a run that never begins.
func (d *driver) judgeOrder(err error) (result outcome, why State) {
	why, revoked := d.runs.findRevoked(d.run.ID)
	switch {
	case errors.Is(err, ErrDraining):
		return notOrdered, ""
	case revoked && err != nil && !errors.Is(err, ErrLeft): // markStarted stops a command that does run
		return neverBegins, why
	case err == nil, errors.Is(err, fs.ErrExist):
		return commandStarted, ""
	case errors.Is(err, ErrLeft):
		return leftToNext, ""
	case d.from == fromStore && !d.isFinal(err), d.mayQueue(err):
		return queuedAgain, ""
	}
	return notStarted, ""
}

// mayQueue reports whether the run of a delivery is queued, as it would be behind a run of its own flight.
func (d *driver) mayQueue(err error) bool {
	if !errors.Is(err, errEarlierFlight) {
		return false
	}
	h, ok := d.hook(d.run.Hook)
	return ok && h.Busy.Kind != hook.Reject
}

// isFinal reports whether an accepted run can never be started. Every other failure may be temporary.
func (d *driver) isFinal(err error) bool {
	if errors.Is(err, errNoHook) {
		return d.runs.failingFor(d.run.ID, d.now()) > hookMissing
	}
	return errors.Is(err, ErrRefused)
}

// markStarted notes that the command was started and can be stopped. It stops the command if that was requested
// before.
func (d *driver) markStarted() {
	how, pending := d.runs.noteStarted(d.run)
	if how.why != "" {
		d.stopper.stopCommand(d.run.ID, how)
	}
	if pending != nil {
		d.runs.settleStop(pending)
	}
}

// requeueRun queues the run again, before all others of its flight, because its command could not be started.
func (d *driver) requeueRun(ctx context.Context, reason error) {
	pause, isNew := d.runs.noteFailure(d.run, reason, d.now())
	if isNew {
		d.log.Warn("run stays queued: its command cannot be started yet; it is tried again",
			"run", d.run.ID, "hook", d.run.Hook, "caller", d.run.Caller, "error", reason)
	}
	var failing logging.Repeated
	now, err := d.store.Requeue(ctx, d.run.ID)
	for ; err != nil; now, err = d.store.Requeue(ctx, d.run.ID) {
		if failing.IsNew(err) {
			d.log.Error("run not recorded", "run", d.run.ID, "hook", d.run.Hook, "state", Queued, "error", err)
		}
		if d.runs.isStopping() { // the next server starts it
			return
		}
		<-time.After(recordRetryPause)
	}
	if now.State.Ended() { // it was cancelled during the attempt
		d.stopper.reportCancelled(now)
	}
	d.promoter.promoteLater(ctx, d.run.Flight, pause)
}
