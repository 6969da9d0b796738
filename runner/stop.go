package runner

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"sallyport/internal/guard"
)

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

// markSettled closes settled. The caller holds the lock of the tracker.
func (p *pendingStop) markSettled() {
	select {
	case <-p.settled:
	default:
		close(p.settled)
	}
}

// requestStop notes that a run is to be stopped, for [tracker.noteStarted], and returns its phase.
func (t *tracker) requestStop(id string, how stopping) (*pendingStop, phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.findRun(id)
	pending := k.stop
	if pending == nil {
		pending = &pendingStop{settled: make(chan struct{})}
	}
	pending.stopping = how
	if k.phase == running || k.phase == ending {
		pending.markSettled()
	} else {
		k.stop = pending
	}
	return pending, k.phase
}

// settleStop notes that the command was started and asked to end.
func (t *tracker) settleStop(p *pendingStop) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.markSettled()
}

// revokeStop notes that the command never starts.
func (t *tracker) revokeStop(p *pendingStop) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.revoked = true
	p.markSettled()
}

// findRevoked returns the reason of a revoked run. The command of that run never starts.
func (t *tracker) findRevoked(id string) (why State, yes bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.runs[id]
	if k == nil || k.stop == nil || !k.stop.revoked {
		return "", false
	}
	return k.stop.why, true
}

// markAllStopped notes that all runs are stopped, and returns those with a command that is to be stopped now. A run
// that starts after this is stopped by [tracker.noteStarted].
func (t *tracker) markAllStopped(grace time.Duration) (started []Run) {
	t.mu.Lock()
	defer t.mu.Unlock()
	killed := t.stopped != nil && *t.stopped == 0
	if killed || t.left { // the runs are killed already, or the next server decides
		return nil
	}
	t.stopped = &grace
	for _, run := range t.inProgress {
		if k := t.runs[run.ID]; k != nil && k.phase == running {
			started = append(started, run)
		}
	}
	return started
}

// stopper stops runs. A fault of the supervisor's client is an error like every other.
type stopper struct {
	procs Processes
	store Store
	runs  *tracker
	log   *slog.Logger
}

// stopRun stops the command of a run that the store has as running and as to be ended: now, or as soon as the command
// was started. A run that was not started yet never starts, even if the supervisor already has the order. The channel
// is closed once one of the two is certain.
func (s *stopper) stopRun(ctx context.Context, id string, how stopping) (settled <-chan struct{}) {
	pending, at := s.runs.requestStop(id, how)
	switch at {
	case running:
		s.stopCommand(id, how)
		return pending.settled
	case ending: // no command of it begins any more
		return pending.settled
	case idle, admitted, ordered:
	}
	switch revoked, err := guard.Call(s.log, func() (bool, error) { return s.procs.Revoke(id, how.why) }); {
	case err != nil:
		s.log.Error("run not revoked", "run", id, "error", err)
	case revoked:
		s.runs.revokeStop(pending)
	}
	// The run may have ended before it was tracked here. Then no driver releases it.
	if run, err := s.store.Get(context.WithoutCancel(ctx), id); err == nil && run.State.Ended() {
		s.runs.releaseWaiters(id)
	}
	return pending.settled
}

func (s *stopper) stopCommand(id string, how stopping) {
	if err := guard.Do(s.log, func() error { return s.procs.Stop(id, how.why, how.grace) }); err != nil {
		s.log.Error("run not stopped", "run", id, "error", err)
	}
}

// stopAll stops all runs, including those that start later.
func (s *stopper) stopAll(grace time.Duration) {
	var all sync.WaitGroup
	for _, run := range s.runs.markAllStopped(grace) {
		s.log.Warn("run stopped: the server is shutting down", "run", run.ID, "hook", run.Hook)
		all.Go(func() { s.stopCommand(run.ID, stopping{Cancelled, grace}) })
	}
	all.Wait()
}

// reportCancelled logs a run that was cancelled while it was queued, and releases the callers that wait for its end.
func (s *stopper) reportCancelled(run Run) {
	s.log.Info("run cancelled", "run", run.ID, "hook", run.Hook)
	s.runs.releaseWaiters(run.ID)
}
