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

// answerTime is how long the supervisor may take before others go on without
// its answer: less than senders wait for theirs.
const answerTime = 5 * time.Second

// origin says what a run that is launched comes from.
type origin int

const (
	fromDelivery origin = iota // its sender waits for the answer, and gets the error
	fromStore                  // its delivery was answered before: what fails now is tried again
)

// outcome is what is known of a run when launch returns. Except for notStarted there is no error.
type outcome int

const (
	commandStarted outcome = iota // the command runs
	notAnswered                   // its order stands, is never given twice, and nobody can say yet what became of it
	leftToNext                    // the next server finds out, or starts it
	neverBegins                   // it was revoked before its command began, and ends so
	queuedAgain                   // its command cannot be started yet, and it is tried again
	notStarted                    // its command cannot be started, and it ended as failed
)

// launch starts the command of a run that is recorded as running. The count of its caller in active goes over to the
// run: whichever way the run goes on from here gives it back. From here on ctx is one that is never done.
func (r *Runner) launch(ctx context.Context, run Run, in Feed, from origin) (outcome, error) {
	switch err := r.takeOff(run, from); {
	case errors.Is(err, ErrLeft):
		if from == fromStore { // if this fails, the next server finds it all the same
			_, _ = r.store.Requeue(ctx, run.ID)
		}
		r.leave()
		return leftToNext, nil
	case err != nil:
		return r.launched(ctx, run, from, err)
	}
	told := make(chan error, 1)
	go func() {
		defer r.ordering.Done()
		told <- guard.Do(r.log, func() error { return r.order(run, in) })
	}()
	select {
	case err := <-told:
		return r.launched(ctx, run, from, err)
	case <-time.After(answerTime):
	}
	r.log.Warn("run late: the supervisor does not answer", "run", run.ID, "hook", run.Hook, "caller", run.Caller)
	go func() { _, _ = r.launched(ctx, run, fromStore, <-told) }()
	return notAnswered, nil
}

// launched goes on once it is known what became of an order.
func (r *Runner) launched(ctx context.Context, run Run, from origin, err error) (outcome, error) {
	why, revoked := r.revoked(run.ID)
	switch {
	case revoked && !errors.Is(err, ErrLeft):
		go r.finish(ctx, run, why, End{Ended: r.now(), Reason: why}, false)
		return neverBegins, nil
	case err == nil, errors.Is(err, fs.ErrExist):
		r.airborne(run)
		r.log.Info("run started", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "flight", run.Flight)
		go r.follow(ctx, run)
		return commandStarted, nil
	case errors.Is(err, ErrLeft):
		r.leave()
		return leftToNext, nil
	case from == fromStore && !r.isFinal(run, err):
		go r.putBack(ctx, run, err) // Recover does not wait for the store
		return queuedAgain, nil
	}
	return notStarted, r.recordNotStarted(ctx, run, err)
}

// takeOff puts a run into the air that is to be started here. ErrLeft means that it
// is recorded, and started by the next server: after Leave because that may be
// there already, and a run that waited while this one drains, because it would be
// stopped with the others.
func (r *Runner) takeOff(run Run, from origin) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left || from == fromStore && r.draining {
		return ErrLeft
	}
	if h, ok := r.hook(run.Hook); ok {
		if err := r.rules.checkOverlap(h, run, r.air); err != nil {
			return err
		}
	}
	r.setPhase(run, phaseOrdered)
	r.ordering.Add(1)
	return nil
}

func (r *Runner) order(run Run, in Feed) error {
	h, ok := r.hook(run.Hook)
	if !ok {
		return fmt.Errorf("%w: %q", errNoHook, run.Hook)
	}
	return r.procs.Start(Order{
		Run: run.ID, Hook: run.Hook, Digest: h.Digest(), Caller: run.Caller,
		Values: run.Params, Trace: in.Trace, Stdin: in.Stdin, Created: run.Created,
	})
}

// recordNotStarted records a run whose command could not be started. Its delivery
// is given back: the reason may be gone when the sender tries again.
func (r *Runner) recordNotStarted(ctx context.Context, run Run, reason error) error {
	r.log.Error("run not started", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "error", reason)
	end := End{Ended: r.now(), Error: "the command could not be started", Detail: reason.Error()}
	recorded := make(chan Run, 1)
	go func() {
		ended, err := guard.Call(r.log, func() (Run, error) { return r.finish(ctx, run, Failed, end, true), nil })
		if err == nil {
			recorded <- ended
		}
	}()
	ended := run
	ended.State, ended.End = Failed, end
	select {
	case ended = <-recorded:
	case <-time.After(recordAgain): // the sender need not wait until the store can record again
	}
	return &NotStarted{Run: ended, Reason: reason}
}

// launchStored starts a run whose delivery was answered before. A failure is
// recorded and logged; there is nobody to tell.
func (r *Runner) launchStored(ctx context.Context, run Run) {
	if run.Wish != "" {
		r.finish(ctx, run, run.Wish, End{Ended: r.now(), Reason: run.Wish}, false)
		return
	}
	for failing := new(logging.Repeated); ; {
		in, err := r.store.Feed(ctx, run.ID)
		if err == nil {
			_, _ = r.launch(ctx, run, in, fromStore)
			return
		}
		// Never without its input: that would be another run than the one asked for.
		if failing.IsNew(err) {
			r.log.Error("run's input not read", "run", run.ID, "hook", run.Hook, "error", err)
		}
		if errors.Is(err, ErrUnknown) || r.Draining() {
			r.leave()
			return
		}
		<-time.After(recordAgain)
	}
}
