package runner

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	// The pause before the start of a command is tried again. It doubles from firstRetry to lastRetry.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 10 * time.Second

	// hookMissing is how long an accepted run stays queued while its hook is missing. The file may be in the process
	// of being replaced. But a run that was accepted long ago must not start because a new hook gets the same name.
	hookMissing = time.Hour

	// recordRetryPause is the pause before the next attempt while the store cannot record, for example because the
	// disk is full.
	recordRetryPause = time.Second
)

var errNoHook = errors.New("the configuration has no such hook any more")

// failures are the failed starts of an accepted run.
type failures struct {
	count  int
	since  time.Time
	reason string // the latest that was logged
}

// addFailure adds a failure. It returns the pause before the next attempt, and whether the reason is new.
func (f *failures) addFailure(reason error) (pause time.Duration, isNew bool) {
	pause = lastRetry
	if f.count < 10 { // well below an overflow
		pause = min(firstRetry<<f.count, lastRetry)
	}
	f.count++
	isNew = reason.Error() != f.reason
	f.reason = reason.Error()
	return pause, isNew
}

// promoter starts queued runs of free flights. It has a timer for each flight with runs that are not due yet.
type promoter struct {
	store    Store
	gate     *gate
	log      *slog.Logger
	driveRun func(context.Context, Run) // a run that was promoted

	mu     sync.Mutex
	timers map[string]time.Time // by flight: when its first queued run is tried again next
}

// allFlights stands for every flight.
const allFlights = ""

// maxTimer is the longest time of a timer. The clock of timers stops while the machine sleeps, and that of the store does
// not.
const maxTimer = time.Minute

// promoteLater starts the first queued run of a flight after a pause, if no run of the flight is in progress then.
// While the server drains, the next server does that.
func (p *promoter) promoteLater(ctx context.Context, flight string, pause time.Duration) {
	if p.gate.isClosed() {
		return
	}
	pause = min(pause, maxTimer)
	at := time.Now().Add(pause)
	if !p.noteTimer(flight, at) {
		return
	}
	time.AfterFunc(pause, func() {
		p.removeTimer(flight, at)
		_ = p.gate.doWork(func() error { p.promoteDueFlight(ctx, flight); return nil })
	})
}

// noteTimer notes a timer, and reports false if the flight has one that ends earlier.
func (p *promoter) noteTimer(flight string, at time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if earlier, ok := p.timers[flight]; ok && !at.Before(earlier) {
		return false
	}
	p.timers[flight] = at
	return true
}

// removeTimer removes a timer that has ended, unless an earlier one replaced it.
func (p *promoter) removeTimer(flight string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timers[flight].Equal(at) {
		delete(p.timers, flight)
	}
}

func (p *promoter) promoteDueFlight(ctx context.Context, flight string) {
	flights := []string{flight}
	if flight == allFlights {
		flights = nil
	}
	if err := p.promoteFlights(ctx, flights...); err != nil {
		p.log.Error("queued runs not tried again", "error", err)
		p.promoteLater(ctx, flight, recordRetryPause)
	}
}

// promoteFlights starts the first queued run of each of the flights, or of all flights, in which no run is in
// progress.
func (p *promoter) promoteFlights(ctx context.Context, flights ...string) error {
	promoted, err := p.store.Promote(ctx, flights...)
	for _, run := range promoted {
		p.driveRun(ctx, run)
	}
	if err != nil {
		return err
	}
	waits, err := p.store.NotDue(ctx, flights...)
	for flight, wait := range waits {
		p.promoteLater(ctx, flight, wait)
	}
	return err
}
