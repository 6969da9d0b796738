package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"sallyport/internal/guard"
	"sallyport/internal/logging"
)

// answerTime is how long the runner waits for an answer of the supervisor before it continues without it. It is
// shorter than the time that senders wait for their answer.
const answerTime = 5 * time.Second

// origin says where a run that is launched comes from.
type origin int

const (
	fromDelivery origin = iota // its sender waits for the answer, and gets the error
	fromStore                  // its delivery was answered before: a failed start is tried again
)

// outcome is what is known of a run when launchRun returns. There is an error only with notStarted.
type outcome int

const (
	commandStarted outcome = iota // the command runs
	notAnswered                   // its order was given once, is not repeated, and has no answer yet
	leftToNext                    // the next server learns what became of it, or starts it
	neverBegins                   // it was revoked before its command began, and ends for that reason
	queuedAgain                   // its command cannot be started yet; the start is tried again
	notStarted                    // its command cannot be started; the run ended as failed
)

// launchRun starts the command of a run that is recorded as running. The unit of work of its caller passes to the
// run, and is released by endWork on each path from here. The caller's ctx must be one that is never done.
func (r *Runner) launchRun(ctx context.Context, run Run, in Feed, from origin) (outcome, error) {
	switch err := guard.Do(r.log, func() error { return r.beginOrder(run, from) }); {
	case errors.Is(err, ErrLeft):
		if from == fromStore { // if this fails, the next server still finds the run as running
			_, _ = r.store.Requeue(ctx, run.ID)
		}
		r.endWork()
		return leftToNext, nil
	case err != nil:
		return r.continueLaunch(ctx, run, from, err)
	}
	told := make(chan error, 1)
	go func() {
		defer r.ordering.Done()
		told <- r.sendOrderOnce(run, in)
	}()
	select {
	case err := <-told:
		return r.continueLaunch(ctx, run, from, err)
	case <-time.After(answerTime):
	}
	r.log.Warn("run late: the supervisor does not answer", "run", run.ID, "hook", run.Hook, "caller", run.Caller)
	go func() { _, _ = r.continueLaunch(ctx, run, fromStore, <-told) }()
	return notAnswered, nil
}

// continueLaunch continues a launch once the result of its order is known.
func (r *Runner) continueLaunch(ctx context.Context, run Run, from origin, err error) (outcome, error) {
	why, revoked := r.findRevoked(run.ID)
	switch {
	case revoked && err != nil && !errors.Is(err, ErrLeft): // noteStarted below stops a command that does run
		go r.finishRun(ctx, run, why, End{Ended: r.now(), Reason: why}, KeepClaims)
		return neverBegins, nil
	case err == nil, errors.Is(err, fs.ErrExist):
		r.noteStarted(run)
		r.log.Info("run started", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "flight", run.Flight)
		go r.followRun(ctx, run)
		return commandStarted, nil
	case errors.Is(err, ErrLeft):
		r.endWork()
		return leftToNext, nil
	case from == fromStore && !r.isFinal(run, err):
		go r.requeueRun(ctx, run, err) // in a goroutine: Recover must not wait for the store
		return queuedAgain, nil
	}
	return notStarted, r.recordNotStarted(ctx, run, err)
}

// beginOrder marks a run as in progress before its command is ordered. ErrLeft means that the run is recorded and that
// the next server starts it: after Leave, because that server may already be running, and for a queued run while this
// server drains, because it would be stopped with the others.
func (r *Runner) beginOrder(run Run, from origin) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left || from == fromStore && r.draining {
		return ErrLeft
	}
	if h, ok := r.hook(run.Hook); ok {
		if err := r.rules.checkOverlap(h, run, r.inProgress); err != nil {
			return err
		}
	}
	r.setPhase(run, phaseOrdered)
	r.ordering.Add(1)
	return nil
}

// sendOrderOnce is sendOrder, with panics as errors. If the command may have been started despite a panic, the error
// is fs.ErrExist.
func (r *Runner) sendOrderOnce(run Run, in Feed) error {
	err := guard.Do(r.log, func() error { return r.sendOrder(run, in) })
	if errors.Is(err, guard.ErrFault) {
		known, failed := guard.Call(r.log, func() (bool, error) { return r.procs.Known(run.ID) })
		if known || failed != nil {
			return fs.ErrExist
		}
	}
	return err
}

func (r *Runner) sendOrder(run Run, in Feed) error {
	h, ok := r.hook(run.Hook)
	if !ok {
		return fmt.Errorf("%w: %q", errNoHook, run.Hook)
	}
	return r.procs.Start(Order{
		Run: run.ID, Hook: run.Hook, Digest: h.Digest(), Caller: run.Caller,
		Values: run.Params, Trace: in.Trace, Stdin: in.Stdin, Created: run.Created,
	})
}

// recordNotStarted records that the command of a run could not be started. The claim of its delivery is removed, so
// that the sender can send it again: the cause may be gone by then.
func (r *Runner) recordNotStarted(ctx context.Context, run Run, reason error) error {
	r.log.Error("run not started", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "error", reason)
	end := End{Ended: r.now(), Error: "the command could not be started", Detail: reason.Error()}
	recorded := make(chan Run, 1)
	go func() {
		ended, err := guard.Call(r.log, func() (Run, error) { return r.finishRun(ctx, run, Failed, end, RemoveClaims), nil })
		if err == nil {
			recorded <- ended
		}
	}()
	ended := run
	ended.State, ended.End = Failed, end
	select {
	case ended = <-recorded:
	case <-time.After(recordRetryPause): // the sender does not wait until the store can record again
	}
	return &NotStarted{Run: ended, Reason: reason}
}

// launchStored launches a run from the store, after its delivery was answered. It records and logs a failure.
func (r *Runner) launchStored(ctx context.Context, run Run) {
	if run.Wish != "" {
		r.finishRun(ctx, run, run.Wish, End{Ended: r.now(), Reason: run.Wish}, KeepClaims)
		return
	}
	for failing := new(logging.Repeated); ; {
		in, err := r.store.Feed(ctx, run.ID)
		if err == nil {
			_, _ = r.launchRun(ctx, run, in, fromStore)
			return
		}
		// A command is never started without its input: it would do something else than was requested.
		if failing.IsNew(err) {
			r.log.Error("run's input not read", "run", run.ID, "hook", run.Hook, "error", err)
		}
		if errors.Is(err, ErrUnknown) || r.Draining() {
			r.endWork()
			return
		}
		<-time.After(recordRetryPause)
	}
}
