package runner

import (
	"context"
	"errors"
	"slices"
	"time"

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
		r.holdWork()
		switch err := r.resumeRun(ctx, run); {
		case errors.Is(err, ErrLeft):
			r.endWork()
			return err
		case err != nil: // a run with an unreadable state must not delay the others
			r.log.Error("run not adopted yet; it is tried again", "run", run.ID, "hook", run.Hook, "error", err)
			go r.resumeRunLater(ctx, run)
		}
	}
	err = r.promoteFlights(ctx)
	if errors.Is(err, ErrUnavailable) { // the server can still follow the runs in progress
		r.log.Error("queued runs not started", "error", err)
		r.promoteLater(ctx, allFlights, recordRetryPause)
		return nil
	}
	return err
}

// resumeRun continues a run that is recorded as running. If it returns an error, it did nothing.
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
		if run.Wish != "" { // the earlier server may have ended before it stopped the command
			go r.stopCommand(run.ID, stopping{run.Wish, -1})
		}
	case run.Boot == "" || run.Boot != r.boot:
		go r.endInterrupted(ctx, run)
	default: // the earlier server ended after it recorded the run and before it started the command
		r.launchStored(ctx, run)
	}
	return nil
}

// resumeRunLater repeats resumeRun until it succeeds, or leaves the run to the next server.
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

// endInterrupted ends a run that was ordered before the machine was restarted. The folder of the run is not synced,
// so it may be missing although the command ran: a start now could run the command twice.
func (r *Runner) endInterrupted(ctx context.Context, run Run) {
	r.log.Warn("run interrupted: the machine was restarted after the run was ordered", "run", run.ID, "hook", run.Hook, "caller", run.Caller)
	r.finishRun(ctx, run, Interrupted, End{Ended: r.now(), Reason: Interrupted}, KeepClaims)
}

// holdWork adds a unit of work for a run that is launched or followed here. endWork removes it.
func (r *Runner) holdWork() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.working++
}

// maxReruns is how often an interrupted run is repeated automatically. The limit ends the repetition if the command
// itself crashes the machine.
const maxReruns = 3

// rerunInterrupted queues an interrupted run again if its hook says that this is safe. It may be called more than
// once: the claim ensures that a run is queued again only once, also by another server.
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
		p.Depth = 1 // a queued run is newer, and replaces this one
	}
	// The keys of deliveries are digests, so no delivery can have this key.
	_, err = r.store.Admit(ctx, again, Claim{Key: "interrupted " + run.ID}, p, in)
	var done *Replayed
	var newer *Busy
	switch {
	case errors.As(err, &done):
		return nil
	case errors.As(err, &newer):
		r.log.Info("interrupted run not queued again: other runs are queued", "run", run.ID)
		return nil
	case err == nil:
		r.log.Info("interrupted run queued again", "run", run.ID, "as", again.ID, "attempt", again.Attempt)
	}
	return err
}

// ExpireQueued ends the queued runs that have waited for longer than their hook allows.
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
