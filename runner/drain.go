package runner

import (
	"context"
	"time"
)

// Drain takes no more deliveries and returns when no run is in progress. Runs that are in progress when ctx is done are
// stopped: TERM, the grace of their hook, KILL. Queued runs stay queued, for the next server.
func (r *Runner) Drain(ctx context.Context) {
	r.gate.closeGate()
	if r.gate.awaitIdle(ctx) {
		return
	}
	r.stopper.stopAll(-1)
	ctx = context.WithoutCancel(ctx)
	for idle := false; !idle && r.Answers(ctx); { // a supervisor that does not answer ends nothing and reports no end
		idle = r.gate.awaitIdleBriefly(ctx)
	}
}

// Leave takes no more deliveries. Once it returns, nothing more is ordered, so the next server may open the store.
// Runs continue, and that server resumes them. Wait returns each run as it is. Leave waits only a limited time for
// the answers to orders: the next server learns the result of an unanswered order from the supervisor.
func (r *Runner) Leave() {
	r.gate.closeGate()
	select {
	case <-r.runs.leaveAll():
	case <-time.After(answerTime):
	}
}

// Kill takes no more deliveries and kills all runs in progress at once, without a grace.
func (r *Runner) Kill() {
	r.gate.closeGate()
	r.stopper.stopAll(0)
}

// Going returns a channel that is closed once deliveries are refused.
func (r *Runner) Going() <-chan struct{} { return r.gate.going }

// Draining reports whether deliveries are refused.
func (r *Runner) Draining() bool { return r.gate.isClosed() }
