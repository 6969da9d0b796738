package runner

import (
	"log/slog"
	"sync"
	"time"

	"sallyport/runner/hook"
)

// tracked is what this server knows of a run in addition to the store. A run is tracked while it is driven here, is to
// be stopped, failed to start, or a caller waits for its end.
type tracked struct {
	phase    phase
	stop     *pendingStop  // requested before the command was started, or nil
	failures *failures     // to start an accepted run, or nil
	ended    chan struct{} // closed when the end is recorded; nil if no caller waits for it
}

// tracker has the runs that this server tracks, and decides which may begin. Each method is one step under one lock,
// because each step of a run decides whether another run may begin, is to be stopped, or is left to the next server.
type tracker struct {
	hook func(name string) (*hook.Hook, bool)
	log  *slog.Logger
	gate *gate

	mu         sync.Mutex
	runs       map[string]*tracked // by run
	inProgress map[string]Run      // by flight: the run that is ordered or runs
	rules      flightRules
	left       bool           // runs are left to the next server
	stopped    *time.Duration // set once all runs were stopped: the grace that they got
	orders     sync.WaitGroup // orders that are being sent; none begins once left is set
}

func newTracker(hookOf func(name string) (*hook.Hook, bool), log *slog.Logger, g *gate) *tracker {
	return &tracker{
		hook: hookOf, log: log, gate: g, runs: map[string]*tracked{}, inProgress: map[string]Run{},
		rules: flightRules{rules: map[string]hook.FlightSpec{}, mixed: map[string]bool{}},
	}
}

// findRun returns the tracked state of a run, and adds it if it is missing. The caller holds mu.
func (t *tracker) findRun(id string) *tracked {
	k := t.runs[id]
	if k == nil {
		k = &tracked{}
		t.runs[id] = k
	}
	return k
}

// movePhase changes the phase of a run. Only here a run begins or ceases to be in progress. The caller holds mu.
func (t *tracker) movePhase(run Run, to phase) (k *tracked, moved bool) {
	k = t.findRun(run.ID)
	if !k.phase.mayBecome(to) {
		t.log.Error("fault", "error", "impossible phase of a run", "run", run.ID, "phase", k.phase, "next", to)
		return k, false
	}
	switch k.phase = to; {
	case to == ordered || to == running:
		t.inProgress[run.Flight] = run
	case to == idle && t.inProgress[run.Flight].ID == run.ID:
		delete(t.inProgress, run.Flight)
	}
	return k, true
}

// advancePhase changes the phase of a run, and reports false if the run is in a phase from which that is impossible.
func (t *tracker) advancePhase(run Run, to phase) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, moved := t.movePhase(run, to)
	return moved
}

// findInProgress returns the run of a flight that is in progress.
func (t *tracker) findInProgress(flight string) (run Run, busy bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	run, busy = t.inProgress[flight]
	return run, busy
}

// giveOrder calls send for a run that may be ordered. Otherwise nothing was ordered: ErrDraining means that the next
// server starts the run: after Leave, because that server may already be running, and for a queued run while this
// server drains, because it would be stopped with the others.
func (t *tracker) giveOrder(run Run, from origin, send func() error) error {
	if err := t.beginOrder(run, from); err != nil {
		return err
	}
	defer t.orders.Done()
	return send()
}

func (t *tracker) beginOrder(run Run, from origin) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left || from == fromStore && t.gate.isClosed() {
		return ErrDraining
	}
	if h, ok := t.hook(run.Hook); ok {
		if err := t.rules.checkOverlap(h, run, t.inProgress, t.hook); err != nil {
			return err
		}
	}
	t.movePhase(run, ordered)
	t.orders.Add(1)
	return nil
}

// noteRecovered notes a run that an earlier server started.
func (t *tracker) noteRecovered(run Run) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rules.noteRecovered(run)
}

// noteStarted notes that the command of a run was started and can be stopped. It returns how to stop it, if that was
// requested before.
func (t *tracker) noteStarted(run Run) (how stopping, pending *pendingStop) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, _ := t.movePhase(run, running)
	if pending, k.stop = k.stop, nil; pending != nil {
		how = pending.stopping
	}
	if t.stopped != nil {
		how = stopping{Cancelled, *t.stopped}
	}
	return how, pending
}

// noteFailure ends an attempt to start a run, so that another may begin once the run is queued.
func (t *tracker) noteFailure(run Run, reason error, now time.Time) (pause time.Duration, isNew bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, _ := t.movePhase(run, idle)
	if k.failures == nil {
		k.failures = &failures{since: now}
	}
	return k.failures.addFailure(reason)
}

// failingFor returns for how long attempts to start a run have failed.
func (t *tracker) failingFor(id string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.runs[id]
	if k == nil || k.failures == nil {
		return 0
	}
	return now.Sub(k.failures.since)
}

// awaitRelease returns a channel that is closed once the end of a run is recorded, or nil if runs are left to the next
// server. It is closed at the latest when they are.
func (t *tracker) awaitRelease(id string) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left {
		return nil
	}
	k := t.findRun(id)
	if k.ended == nil {
		k.ended = make(chan struct{})
	}
	return k.ended
}

// releaseWaiters releases the callers that wait for the end of a run, and stops tracking the run unless it is driven
// here.
func (t *tracker) releaseWaiters(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.runs[id]
	if k == nil {
		return
	}
	if k.stop != nil {
		k.stop.markSettled()
	}
	if k.ended != nil {
		close(k.ended)
	}
	k.stop, k.failures, k.ended = nil, nil, nil
	if k.phase == idle {
		delete(t.runs, id)
	}
}

// leaveAll leaves all runs to the next server, and returns a channel that is closed once no order is being sent.
func (t *tracker) leaveAll() (answered <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = true
	for _, k := range t.runs {
		if k.ended != nil {
			close(k.ended)
			k.ended = nil
		}
	}
	done := make(chan struct{})
	go func() { t.orders.Wait(); close(done) }()
	return done
}

func (t *tracker) hasLeft() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.left
}

// isStopping reports whether this server stops, and so must not wait until the store can record again.
func (t *tracker) isStopping() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.left || t.stopped != nil
}
