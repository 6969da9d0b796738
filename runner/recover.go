package runner

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"sallyport/internal/boot"
	"sallyport/runner/hook"
)

// Recover resumes the runs of an earlier server. Runs in progress are followed. Those that ended in the meantime are
// recorded with their end. Those that were recorded but not started are started, unless the machine was restarted
// since. Queued runs are started in their turn. Recover is called once, before the first Start.
func (r *Runner) Recover(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // the runs continue after ctx is done
	active, err := r.store.Active(ctx)
	if err != nil {
		return err
	}
	newest, _, err := r.store.List(ctx, Filter{Limit: 1})
	if err != nil {
		return err
	}
	for _, run := range slices.Concat(newest, active) {
		r.ids.noteRecorded(run.ID)
	}
	for _, run := range active {
		if run.State != Running {
			continue
		}
		switch err := r.resumeRun(ctx, run); {
		case errors.Is(err, ErrLeft):
			return err
		case err != nil: // a run with an unreadable state must not delay the others
			r.log.Error("run not adopted yet; it is tried again", "run", run.ID, "hook", run.Hook, "error", err)
			r.gate.goWork(func() { resumeRunLater(ctx, r, run) })
		}
	}
	if err := r.pauses.recoverPauses(ctx); err != nil {
		return err
	}
	err = r.promoter.promoteFlights(ctx)
	if errors.Is(err, ErrUnavailable) { // the server can still follow the runs in progress
		r.log.Error("queued runs not started", "error", err)
		r.promoter.promoteLater(ctx, allFlights, recordRetryPause)
		return nil
	}
	return err
}

// resumeRun has a run driven that is recorded as running, and waits until its command was found or ordered. If it
// returns an error, it did nothing.
func (r *Runner) resumeRun(ctx context.Context, run Run) error {
	known, err := r.procs.Known(run.ID)
	if err != nil {
		return err
	}
	switch {
	case known:
		<-startDriver(r, run, Feed{}, fromStore, func(d *driver) { d.adoptRun(ctx) }).launched
	case run.Boot == "" || run.Boot != boot.ID():
		startDriver(r, run, Feed{}, fromStore, func(d *driver) { d.endInterrupted(ctx) })
	default: // the earlier server ended after it recorded the run and before it started the command
		<-driveStored(ctx, r, run).launched
	}
	return nil
}

// resumeRunLater repeats resumeRun until it succeeds, or leaves the run to the next server.
func resumeRunLater(ctx context.Context, r *Runner, run Run) {
	for {
		<-time.After(recordRetryPause)
		if r.runs.isStopping() {
			return
		}
		now, err := r.store.Get(ctx, run.ID) // it may have been cancelled meanwhile
		if err == nil && now.State == Running {
			err = r.resumeRun(ctx, now)
		}
		if err == nil || errors.Is(err, ErrUnknown) {
			return
		}
	}
}

// resumePromoted has the run of a flight driven that was promoted before the promotion could be returned because of a
// fault of the program.
func resumePromoted(ctx context.Context, r *Runner, flight string) {
	active, err := r.store.Active(ctx)
	if err != nil {
		r.log.Error("promoted run not looked up", "flight", flight, "error", err)
	}
	for _, run := range active {
		if run.State == Running && run.Flight == flight {
			resumeRunLater(ctx, r, run)
		}
	}
}

// adoptRun follows a run that an earlier server started.
func (d *driver) adoptRun(ctx context.Context) {
	d.log.Info("run adopted", "run", d.run.ID, "hook", d.run.Hook, "caller", d.run.Caller)
	d.runs.noteRecovered(d.run)
	d.markStarted()
	d.reportLaunch(commandStarted, nil)
	if d.run.Wish != "" { // the earlier server may have ended before it stopped the command
		d.stopper.stopCommand(d.run.ID, stopping{d.run.Wish, -1})
	}
	d.followRun(ctx)
}

// endInterrupted ends a run that was ordered before the machine was restarted. The folder of the run is not synced,
// so it may be missing although the command ran: a start now could run the command twice.
func (d *driver) endInterrupted(ctx context.Context) {
	d.log.Warn("run interrupted: the machine was restarted after the run was ordered",
		"run", d.run.ID, "hook", d.run.Hook, "caller", d.run.Caller)
	d.finishRun(ctx, Interrupted, End{Ended: d.now(), Reason: Interrupted}, KeepClaims)
}

// ExpireQueued ends the queued runs that have waited for longer than their hook allows. An error of one hook does not
// keep it from the others.
func (r *Runner) ExpireQueued(ctx context.Context, hooks map[string]*hook.Hook) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(hooks)) { // so that the same errors are the same text
		if hooks[name].QueueTimeout == 0 {
			continue
		}
		expired, err := r.store.ExpireQueued(ctx, name, hooks[name].QueueTimeout)
		errs = append(errs, err)
		for _, run := range expired {
			r.log.Warn("run expired in the queue", "run", run.ID, "hook", name, "caller", run.Caller)
			r.runs.releaseWaiters(run.ID)
			r.promoter.promoteLater(ctx, run.Flight, 0)
		}
	}
	return errors.Join(errs...)
}
