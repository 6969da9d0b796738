package runner

import (
	"context"
	"errors"
	"slices"
	"time"

	"sallyport/runner/hook"
)

// Recover takes up what a server before this one left: runs that go on are
// followed, those that ended meanwhile are recorded with their true end, those
// that were recorded but never started are started, unless the machine was
// restarted since, and those that wait are started in their turn. It is called
// once, before the first Start.
func (r *Runner) Recover(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // the runs outlive it
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
		r.holdWork()
		switch err := r.resumeRun(ctx, run); {
		case errors.Is(err, ErrLeft):
			r.endWork()
			return err
		case err != nil: // one run of which nothing can be learned now holds up no other
			r.log.Error("run not taken up yet; it is tried again", "run", run.ID, "hook", run.Hook, "error", err)
			go r.resumeRunLater(ctx, run)
		}
	}
	err = r.promoteFlights(ctx)
	if errors.Is(err, ErrUnavailable) { // which keeps no server from following what runs
		r.log.Error("waiting runs not started", "error", err)
		r.promoteLater(ctx, allFlights, recordRetryPause)
		return nil
	}
	return err
}

// resumeRun goes on with a run that is recorded as running. On an error nothing was
// done.
func (r *Runner) resumeRun(ctx context.Context, run Run) error {
	known, err := r.procs.Known(run.ID)
	if err != nil {
		return err
	}
	switch {
	case known:
		r.log.Info("run adopted", "run", run.ID, "hook", run.Hook, "caller", run.Caller)
		r.mu.Lock()
		r.rules.noteRecovered(run)
		r.mu.Unlock()
		r.noteStarted(run)
		go r.followRun(ctx, run)
		if run.Wish != "" { // the server before may have gone before it saw to that
			go r.stopCommand(run.ID, stopping{run.Wish, -1})
		}
	case run.Boot == "" || run.Boot != r.boot:
		go r.endInterrupted(ctx, run)
	default: // the server before stopped between the record and the start
		r.launchStored(ctx, run)
	}
	return nil
}

// resumeRunLater is resumeRun, repeated until it succeeds or the next server does it.
func (r *Runner) resumeRunLater(ctx context.Context, run Run) {
	for {
		<-time.After(recordRetryPause)
		if r.isStopping() {
			r.endWork()
			return
		}
		if r.resumeRun(ctx, run) == nil {
			return
		}
	}
}

// endInterrupted ends a run that was ordered before the machine was started again. Its folder is not synced, so it may
// be missing although the command ran: to start it now could run it twice.
func (r *Runner) endInterrupted(ctx context.Context, run Run) {
	r.log.Warn("run interrupted: the machine was restarted after the run was ordered", "run", run.ID, "hook", run.Hook, "caller", run.Caller)
	r.finishRun(ctx, run, Interrupted, End{Ended: r.now(), Reason: Interrupted}, false)
}

// holdWork counts a run that is launched or followed here, until endWork.
func (r *Runner) holdWork() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.working++
}

// maxReruns bounds how often an interrupted run is started again by itself: a
// command that brings the machine down must not do so for ever.
const maxReruns = 3

// rerunInterrupted queues a run again whose end nobody saw, where its hook says
// that this is safe. It may be repeated: the claim keeps a run from being
// queued twice, by another server too.
func (r *Runner) rerunInterrupted(ctx context.Context, run Run) error {
	h, ok := r.hook(run.Hook)
	if !ok || !h.RerunInterrupted || run.Attempt >= maxReruns {
		return nil
	}
	in, err := r.store.Feed(ctx, run.ID)
	if err != nil {
		return err
	}
	again, err := r.makeRun(Delivery{Hook: h, Caller: run.Caller, Values: run.Params, RerunOf: run.ID})
	if err != nil {
		return err
	}
	again.Flight, again.Attempt = run.Flight, run.Attempt+1
	p := hook.Policy{Kind: hook.Queue, Depth: hook.MaxQueue * 2}
	if h.Busy.Kind == hook.Join || h.Busy.Kind == hook.Replace {
		p.Depth = 1 // what waits is newer, and stands for this run
	}
	// Keys of deliveries are digests, so no sender can take this one.
	_, err = r.store.Admit(ctx, again, Claim{Key: "interrupted " + run.ID}, p, in)
	var done *Replayed
	var newer *Busy
	switch {
	case errors.As(err, &done):
		return nil
	case errors.As(err, &newer):
		r.log.Info("interrupted run not queued again: others wait", "run", run.ID)
		return nil
	case err == nil:
		r.log.Info("interrupted run queued again", "run", run.ID, "as", again.ID, "attempt", again.Attempt)
	}
	return err
}

// ExpireQueued ends the runs of the hooks that have waited longer than their
// hook allows.
func (r *Runner) ExpireQueued(ctx context.Context, hooks map[string]*hook.Hook) error {
	for name, h := range hooks {
		if h.QueueTimeout == 0 {
			continue
		}
		expired, err := r.store.ExpireQueued(ctx, name, h.QueueTimeout)
		if err != nil {
			return err
		}
		for _, run := range expired {
			r.log.Warn("run expired in the queue", "run", run.ID, "hook", name, "caller", run.Caller)
			r.releaseWaiters(run.ID)
		}
	}
	return nil
}
