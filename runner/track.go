package runner

import (
	"context"
	"time"

	"sallyport/internal/guard"
)

// phase is the progress of the command of a run, as this server knows it. It changes from none to ordered and then to
// started, and back to none when the run ends or is queued again. A recovered run changes from none to started.
type phase int

const (
	phaseNone    phase = iota // queued, ended, or unknown here
	phaseOrdered              // the order is being sent, and the supervisor has not answered
	phaseStarted              // the command was started, or found running
)

// tracked is what this server knows of a run in addition to the store. A run is tracked while it is in progress here,
// is to be stopped, failed to start, or a caller waits for its end.
type tracked struct {
	phase    phase
	stop     *pendingStop  // requested before the command was started, or nil
	failures *failures     // to start an accepted run, or nil
	ended    chan struct{} // closed when the end is recorded; nil if no caller waits for it
}

// stopping says why and with which grace a run is to be stopped.
type stopping struct {
	why   State
	grace time.Duration
}

// pendingStop is a request to stop a run that came before its command was known to have started.
type pendingStop struct {
	stopping

	revoked bool          // the command never starts
	settled chan struct{} // closed once no command can begin any more, or the command was started and asked to end
}

// markSettled closes settled. The caller holds the runner's mu.
func (p *pendingStop) markSettled() {
	select {
	case <-p.settled:
	default:
		close(p.settled)
	}
}

// trackRun returns the tracked state of a run, and adds it if it is missing. The caller holds mu.
func (r *Runner) trackRun(id string) *tracked {
	t := r.runs[id]
	if t == nil {
		t = &tracked{}
		r.runs[id] = t
	}
	return t
}

// setPhase sets the phase of a run. Only here a run begins or ceases to be in progress. The caller holds mu.
func (r *Runner) setPhase(run Run, p phase) *tracked {
	if p != phaseNone {
		r.inProgress[run.Flight] = run
	} else if r.inProgress[run.Flight].ID == run.ID {
		delete(r.inProgress, run.Flight)
	}
	t := r.trackRun(run.ID)
	t.phase = p
	return t
}

// noteStarted notes that the command of a run was started and can be stopped. It stops the command if that was
// requested before.
func (r *Runner) noteStarted(run Run) {
	r.mu.Lock()
	t := r.setPhase(run, phaseStarted)
	pending := t.stop
	t.stop = nil
	var how stopping
	if pending != nil {
		how = pending.stopping
	}
	if r.stopped != nil {
		how = stopping{Cancelled, *r.stopped}
	}
	r.mu.Unlock()
	if how.why != "" {
		r.stopCommand(run.ID, how)
	}
	if pending != nil {
		r.mu.Lock()
		pending.markSettled()
		r.mu.Unlock()
	}
}

// stopRun stops the command of a run that the store has as running and as to be ended: now, or as soon as the command
// was started. A run that was not started yet never starts, even if the supervisor already has the order. The channel
// is closed once one of the two is certain.
func (r *Runner) stopRun(ctx context.Context, id string, how stopping) (settled <-chan struct{}) {
	r.mu.Lock()
	t := r.trackRun(id)
	up, pending := t.phase == phaseStarted, t.stop
	if pending == nil {
		pending = &pendingStop{settled: make(chan struct{})}
	}
	pending.stopping = how
	if up {
		pending.markSettled()
	} else {
		t.stop = pending
	}
	r.mu.Unlock()
	if up {
		r.stopCommand(id, how)
		return pending.settled
	}
	switch revoked, err := guard.Call(r.log, func() (bool, error) { return r.procs.Revoke(id, how.why) }); {
	case err != nil:
		r.log.Error("run not revoked", "run", id, "error", err)
	case revoked:
		r.mu.Lock()
		pending.revoked = true
		pending.markSettled()
		r.mu.Unlock()
	}
	// The run may have ended before it was tracked here. Then no other goroutine releases it.
	if run, err := r.store.Get(context.WithoutCancel(ctx), id); err == nil && run.State.Ended() {
		r.releaseWaiters(id)
	}
	return pending.settled
}

// findRevoked returns the reason of a revoked run. The command of that run never starts.
func (r *Runner) findRevoked(id string) (why State, yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.runs[id]
	if t == nil || t.stop == nil || !t.stop.revoked {
		return "", false
	}
	return t.stop.why, true
}

func (r *Runner) stopCommand(id string, how stopping) {
	if err := guard.Do(r.log, func() error { return r.procs.Stop(id, how.why, how.grace) }); err != nil {
		r.log.Error("run not stopped", "run", id, "error", err)
	}
}

// releaseWaiters releases the callers that wait for the end of a run, and stops tracking the run unless it is in
// progress here.
func (r *Runner) releaseWaiters(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.runs[id]
	if t == nil {
		return
	}
	if t.stop != nil {
		t.stop.markSettled()
	}
	if t.ended != nil {
		close(t.ended)
	}
	t.stop, t.failures, t.ended = nil, nil, nil
	if t.phase == phaseNone {
		delete(r.runs, id)
	}
}
