package runner

import (
	"context"
	"errors"
	"time"

	"sallyport/internal/logging"
)

const (
	// The pause before the start of a command is tried again. It doubles from firstRetry to lastRetry.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 10 * time.Second

	// hookMissing is how long an accepted run stays queued while its hook is missing. The file may be in the process
	// of being replaced. But a run that was accepted long ago must not start because a new hook gets the same name.
	hookMissing = time.Hour
)

var errNoHook = errors.New("the configuration has no such hook any more")

// failures are the failed starts of an accepted run.
type failures struct {
	count  int
	since  time.Time
	reason string // the latest that was logged
}

// isFinal reports whether an accepted run can never be started. Every other failure may be temporary.
func (r *Runner) isFinal(run Run, err error) bool {
	if !errors.Is(err, errNoHook) {
		return errors.Is(err, ErrRefused)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.runs[run.ID]
	return t != nil && t.failures != nil && r.now().Sub(t.failures.since) > hookMissing
}

// requeueRun queues an accepted run again, before all others of its flight, because its command could not be started.
func (r *Runner) requeueRun(ctx context.Context, run Run, reason error) {
	defer r.endWork()
	pause := r.noteFailure(run, reason)
	var failing logging.Repeated
	now, err := r.store.Requeue(ctx, run.ID)
	for ; err != nil; now, err = r.store.Requeue(ctx, run.ID) {
		if failing.IsNew(err) {
			r.log.Error("run not recorded", "run", run.ID, "hook", run.Hook, "state", Queued, "error", err)
		}
		if r.isStopping() { // the next server starts it
			return
		}
		<-time.After(recordRetryPause)
	}
	if now.State.Ended() { // it was cancelled during the attempt
		r.reportCancelled(now)
	}
	r.promoteLater(ctx, run.Flight, pause)
}

// noteFailure frees the flight in memory, logs a reason that is new, and returns the pause before the next attempt.
func (r *Runner) noteFailure(run Run, reason error) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.setPhase(run, phaseNone) // before Requeue: once the run is queued, another attempt may begin
	if t.failures == nil {
		t.failures = &failures{since: r.now()}
	}
	f := t.failures
	pause := lastRetry
	if f.count < 10 { // well below an overflow
		pause = min(firstRetry<<f.count, lastRetry)
	}
	f.count++
	if text := reason.Error(); text != f.reason {
		f.reason = text
		r.log.Warn("run stays queued: its command cannot be started yet; it is tried again", "run", run.ID, "hook", run.Hook, "caller", run.Caller, "error", reason)
	}
	return pause
}

// allFlights stands for every flight.
const allFlights = ""

// promoteLater starts the first queued run of a flight after a pause, if no run of the flight is in progress then.
func (r *Runner) promoteLater(ctx context.Context, flight string, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.retrying[flight] || r.draining { // a retry is scheduled already, or the next server tries
		return
	}
	r.retrying[flight] = true
	time.AfterFunc(pause, func() { r.promoteDueFlight(ctx, flight) })
}

func (r *Runner) promoteDueFlight(ctx context.Context, flight string) {
	r.mu.Lock()
	delete(r.retrying, flight)
	draining := r.draining
	r.mu.Unlock()
	if draining {
		return
	}
	flights := []string{flight}
	if flight == allFlights {
		flights = nil
	}
	if err := r.promoteFlights(ctx, flights...); err != nil {
		r.log.Error("queued runs not tried again", "error", err)
		r.promoteLater(ctx, flight, recordRetryPause)
	}
}

// promoteFlights starts the first queued run of each of the flights, or of all flights, in which no run is in
// progress.
func (r *Runner) promoteFlights(ctx context.Context, flights ...string) error {
	promoted, err := r.store.Promote(ctx, flights...)
	for _, run := range promoted {
		r.holdWork()
		go r.launchStored(ctx, run)
	}
	return err
}
