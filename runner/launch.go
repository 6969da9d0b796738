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

// launch starts the command of a run that is recorded as running, and takes
// over its caller's part of active. Waited says that the run's delivery was
// answered before. A run is late when nobody can say yet whether its command
// runs: its order stands, and is never given twice. From here on ctx is one that
// is never done.
func (r *Runner) launch(ctx context.Context, run Run, in Feed, waited bool) (late bool, err error) {
	switch err := r.takeOff(run, waited); {
	case errors.Is(err, ErrLeft):
		if waited { // if this fails, the next server finds it all the same
			_, _ = r.store.Requeue(ctx, run.ID)
		}
		r.leave()
		return true, nil
	case err != nil:
		return r.launched(ctx, run, waited, err)
	}
	told := make(chan error, 1)
	go func() {
		defer r.ordering.Done()
		told <- guard.Do(r.log, func() error { return r.order(run, in) })
	}()
	select {
	case err := <-told:
		return r.launched(ctx, run, waited, err)
	case <-time.After(answerTime):
	}
	r.log.Warn("run late: the supervisor does not answer", "run", run.ID, "hook", run.Hook, "caller", run.Caller)
	go func() { _, _ = r.launched(ctx, run, true, <-told) }()
	return true, nil
}

// launched goes on once it is known what became of an order.
func (r *Runner) launched(ctx context.Context, run Run, waited bool, err error) (late bool, _ error) {
	why, revoked := r.revoked(run.ID)
	switch {
	case revoked && !errors.Is(err, ErrLeft):
		go r.finish(ctx, run, why, End{Ended: r.now(), Reason: why}, false)
		return true, nil
	case err == nil, errors.Is(err, fs.ErrExist):
		r.airborne(run)
		r.log.Info("run started", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "flight", run.Flight)
		go r.follow(ctx, run)
		return false, nil
	case errors.Is(err, ErrLeft):
		r.leave()
		return true, nil
	case waited && !r.isFinal(run, err):
		go r.putBack(ctx, run, err) // Recover does not wait for the store
		return true, nil
	}
	return false, r.notStarted(ctx, run, err)
}

// takeOff puts a run into the air that is to be started here. ErrLeft means that it
// is recorded, and started by the next server: after Leave because that may be
// there already, and a run that waited while this one drains, because it would be
// stopped with the others.
func (r *Runner) takeOff(run Run, waited bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left || waited && r.draining {
		return ErrLeft
	}
	if err := r.changedFlight(run); err != nil {
		return err
	}
	r.air[run.Flight] = run
	r.ordering.Add(1)
	return nil
}

// airborne notes that the command of a run is there to be stopped, and stops
// it if that was asked for before.
func (r *Runner) airborne(run Run) {
	r.mu.Lock()
	r.air[run.Flight] = run
	r.up[run.ID] = true
	pending := r.stops[run.ID]
	delete(r.stops, run.ID)
	var how stopping
	if pending != nil {
		how = pending.stopping
	}
	if r.stopped != nil {
		how = stopping{Cancelled, *r.stopped}
	}
	r.mu.Unlock()
	if how.why != "" {
		r.stopNow(run.ID, how)
	}
	if pending != nil {
		r.mu.Lock()
		pending.settle()
		r.mu.Unlock()
	}
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

// notStarted records a run whose command could not be started. Its delivery
// is given back: the reason may be gone when the sender tries again.
func (r *Runner) notStarted(ctx context.Context, run Run, reason error) error {
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
			_, _ = r.launch(ctx, run, in, true)
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
