package runner

import (
	"context"
	"sync"
	"time"
)

// Drain takes no more deliveries and returns when no run is in progress. Runs that are in progress when ctx is done are
// stopped: TERM, the grace of their hook, KILL. Queued runs stay queued, for the next server.
func (r *Runner) Drain(ctx context.Context) {
	r.mu.Lock()
	r.beginDraining()
	r.mu.Unlock()
	if r.awaitIdle(ctx) {
		return
	}
	r.stopAllRuns(-1)
	ctx = context.WithoutCancel(ctx)
	for idle := false; !idle && r.Answers(ctx); { // a supervisor that does not answer ends nothing and reports no end
		idle = r.awaitIdleBriefly(ctx)
	}
}

// Leave takes no more deliveries. Once it returns, nothing more is ordered, so the next server may open the store.
// Runs continue, and that server resumes them. Wait returns each run as it is. Leave waits only a limited time for
// the answers to orders: the next server learns the result of an unanswered order from the supervisor.
func (r *Runner) Leave() {
	r.mu.Lock()
	r.beginDraining()
	r.left = true
	for _, t := range r.runs {
		if t.ended != nil {
			close(t.ended)
			t.ended = nil
		}
	}
	r.mu.Unlock()
	answered := make(chan struct{})
	go func() { r.ordering.Wait(); close(answered) }()
	select {
	case <-answered:
	case <-time.After(answerTime):
	}
}

// isStopping reports whether this server stops, and so must not wait until the store can record again.
func (r *Runner) isStopping() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left || r.stopped != nil
}

func (r *Runner) hasLeft() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left
}

// awaitIdle waits until no work is in progress, and reports false if ctx was done first.
func (r *Runner) awaitIdle(ctx context.Context) bool {
	for {
		r.mu.Lock()
		active, changed := r.working, r.idleChanged
		r.mu.Unlock()
		if active == 0 {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (r *Runner) awaitIdleBriefly(ctx context.Context) bool {
	ctx, stop := context.WithTimeout(ctx, answerTime)
	defer stop()
	return r.awaitIdle(ctx)
}

// Kill takes no more deliveries and kills all runs in progress at once, without a grace.
func (r *Runner) Kill() {
	r.mu.Lock()
	r.beginDraining()
	r.mu.Unlock()
	r.stopAllRuns(0)
}

func (r *Runner) stopAllRuns(grace time.Duration) {
	r.mu.Lock()
	killed := r.stopped != nil && *r.stopped == 0
	if killed || r.left { // the runs are killed already, or the next server decides
		r.mu.Unlock()
		return
	}
	r.stopped = &grace // noteStarted stops a run that starts after this
	var runs []Run
	for _, run := range r.inProgress {
		if t := r.runs[run.ID]; t != nil && t.phase == phaseStarted {
			runs = append(runs, run)
		}
	}
	r.mu.Unlock()
	var all sync.WaitGroup
	for _, run := range runs {
		r.log.Warn("run stopped: the server is shutting down", "run", run.ID, "hook", run.Hook)
		all.Go(func() { r.stopCommand(run.ID, stopping{Cancelled, grace}) })
	}
	all.Wait()
}

// beginDraining refuses deliveries from now on. The caller holds mu.
func (r *Runner) beginDraining() {
	if !r.draining {
		r.draining = true
		close(r.going)
	}
}

// Going returns a channel that is closed once deliveries are refused.
func (r *Runner) Going() <-chan struct{} { return r.going }

// Draining reports whether deliveries are refused.
func (r *Runner) Draining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining
}
