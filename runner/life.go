package runner

import (
	"context"
	"slices"
	"time"
)

// Recover takes up what a server before this one left: runs that go on are
// followed, those that ended meanwhile are recorded with their true end, those
// that were recorded but never started are started, and those that wait are
// started in their turn. It is called once, before the first Start.
func (r *Runner) Recover(ctx context.Context) error {
	active, err := r.store.Active(ctx)
	if err != nil {
		return err
	}
	for _, run := range active {
		if run.State != Running {
			continue
		}
		known, err := r.procs.Known(run.ID)
		switch {
		case err != nil:
			return err
		case !known: // it was recorded, and its command never started
			r.launchStored(run)
			continue
		}
		r.log.Info("run adopted", "run", run.ID, "hook", run.Hook, "caller", run.Caller)
		r.mu.Lock()
		r.air[run.Flight] = run
		r.active++
		r.mu.Unlock()
		go r.follow(run)
	}
	promoted, err := r.store.Promote(ctx)
	for _, run := range promoted {
		r.launchStored(run)
	}
	return err
}

// mostReruns bounds how often an interrupted run is started again by itself: a
// command that brings the machine down must not do so for ever.
const mostReruns = 3

// rerunInterrupted queues a run again whose end nobody saw, where its hook says
// that this is safe. It is admitted before the end is recorded, so that nothing
// accepted is lost in between.
func (r *Runner) rerunInterrupted(run Run) {
	h, ok := r.hook(run.Hook)
	if !ok || !h.RerunInterrupted || run.Attempt >= mostReruns {
		return
	}
	in, err := r.store.Feed(context.Background(), run.ID)
	var again Run
	if err == nil {
		again, err = r.newRun(Delivery{Hook: h, Caller: run.Caller, Values: run.Params, RerunOf: run.ID})
	}
	if err == nil {
		again.Attempt = run.Attempt + 1
		_, err = r.store.Admit(context.Background(), again, Claim{}, Policy{Kind: Queue, Depth: maxQueue * 2}, in)
	}
	if err != nil {
		r.log.Error("interrupted run not queued again", "run", run.ID, "error", err)
		return
	}
	r.log.Info("interrupted run queued again", "run", run.ID, "as", again.ID, "attempt", again.Attempt)
}

// ExpireQueued ends the runs of the hooks that have waited longer than their
// hook allows.
func (r *Runner) ExpireQueued(ctx context.Context, hooks map[string]*Hook) error {
	for name, h := range hooks {
		if h.QueueTimeout == 0 {
			continue
		}
		expired, err := r.store.ExpireQueued(ctx, name, r.now().Add(-h.QueueTimeout))
		if err != nil {
			return err
		}
		for _, run := range expired {
			r.log.Warn("run expired in the queue", "run", run.ID, "hook", name, "caller", run.Caller)
			r.tell(run.ID)
		}
	}
	return nil
}

// Drain takes no more deliveries and returns when no run is under way. Runs
// that are when ctx is done are stopped: TERM, their hook's grace, KILL. What
// is queued stays queued, for the next server.
func (r *Runner) Drain(ctx context.Context) {
	r.mu.Lock()
	r.draining = true
	r.mu.Unlock()
	if !r.idle(ctx.Done()) {
		r.stopAll(-1)
		r.idle(nil)
	}
}

// Leave takes no more deliveries and starts nothing more. Runs go on, and the
// next server takes them up; who waits for one is answered as it stands.
func (r *Runner) Leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining, r.left = true, true
	for id, done := range r.done {
		close(done)
		delete(r.done, id)
	}
}

func (r *Runner) isLeft() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left
}

// idle waits until nothing is under way, and reports false if enough was.
func (r *Runner) idle(enough <-chan struct{}) bool {
	for {
		r.mu.Lock()
		active, changed := r.active, r.changed
		r.mu.Unlock()
		if active == 0 {
			return true
		}
		select {
		case <-changed:
		case <-enough:
			return false
		}
	}
}

// Kill takes no more deliveries and ends everything in the air at once, without
// grace.
func (r *Runner) Kill() {
	r.mu.Lock()
	r.draining = true
	r.mu.Unlock()
	r.stopAll(0)
}

func (r *Runner) stopAll(grace time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = &grace
	for _, run := range r.air {
		r.log.Warn("run stopped: the server is going", "run", run.ID, "hook", run.Hook)
		r.stop(run.ID, Cancelled, grace)
	}
}

// stopLate stops a run that took off before stopAll and whose command started
// after it.
func (r *Runner) stopLate(run Run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped != nil {
		r.stop(run.ID, Cancelled, *r.stopped)
	}
}

// Draining tells whether deliveries are turned away.
func (r *Runner) Draining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining
}

// unknownRun is what a sender is told to wait when no run of the hook has
// ended yet.
const unknownRun = 10 * time.Second

// remaining estimates when a run will be over; at least one second.
func (r *Runner) remaining(run Run) time.Duration {
	left := unknownRun
	if took := r.took[run.Hook]; took != nil {
		left = took.median() - r.now().Sub(run.Started)
	}
	return max(left, time.Second)
}

func (r *Runner) estimate(run Run) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.remaining(run)
}

// expected estimates when a queued run will start: after the one in the air,
// and those before it in the queue.
func (r *Runner) expected(run Run, position int) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	each := unknownRun
	if took := r.took[run.Hook]; took != nil {
		each = took.median()
	}
	return r.remaining(r.air[run.Flight]) + time.Duration(max(position-1, 0))*each
}

// durations are how long the latest runs of a hook took.
type durations struct {
	ring [31]time.Duration
	n    int
}

func (d *durations) add(t time.Duration) {
	d.ring[d.n%len(d.ring)] = t
	d.n++
}

func (d *durations) median() time.Duration {
	known := slices.Clone(d.ring[:min(d.n, len(d.ring))])
	slices.Sort(known)
	return known[len(known)/2]
}
