// Package readiness checks whether the parts that a server needs work: each [Part] must do some work within a deadline.
//
// [Check.Faults] asks all parts at once, and shares a recent result with all that ask, so a flood of probes costs no
// more than one probe a second. A part that does not answer in time has the fault [ErrSilent]; it is not asked again
// before it has answered. A [Watchdog] lets systemd restart a server whose part is silent. A part that answers with an
// error does not cause a restart, which would not help.
package readiness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/internal/guard"
)

const (
	// deadline is the longest time that a part may take. Most probes of orchestrators wait for a shorter time.
	deadline = 2 * time.Second
	// kept is the time for which a result is used again, so that more requests do not cause more work.
	kept = time.Second
)

// ErrSilent reports that a part has not answered within its deadline.
var ErrSilent = fmt.Errorf("no answer within %s", deadline)

// Part is one of the parts that a server needs.
type Part struct {
	Name string
	// Probe makes the part do some work, and returns the reason if the part cannot. Its context ends at the deadline.
	// It is not called again before it has returned.
	Probe func(context.Context) error
}

// Fault is the error of one part.
type Fault struct {
	Part string
	Err  error // wraps ErrSilent if the part does not answer
}

// Check probes parts. Its methods may be called concurrently.
type Check struct{ parts []*part }

// New returns a check of some parts.
func New(log *slog.Logger, parts ...Part) *Check {
	c := new(Check)
	for _, p := range parts {
		c.parts = append(c.parts, &part{Part: p, log: log})
	}
	return c
}

// Parts returns the names of the parts.
func (c *Check) Parts() (names []string) {
	for _, p := range c.parts {
		names = append(names, p.Name)
	}
	return names
}

// Faults returns the errors of the parts, in the order of the parts. It returns at the deadline at the latest.
func (c *Check) Faults(ctx context.Context) []Fault {
	faults := make([]Fault, len(c.parts))
	var all sync.WaitGroup
	for i, p := range c.parts {
		all.Go(func() { faults[i] = Fault{p.Name, p.probeResult(ctx)} })
	}
	all.Wait()
	return slices.DeleteFunc(faults, func(f Fault) bool { return f.Err == nil })
}

// Err returns all faults as one error.
func (c *Check) Err(ctx context.Context) error {
	var errs []error
	for _, f := range c.Faults(ctx) {
		errs = append(errs, fmt.Errorf("%s: %w", f.Part, f.Err))
	}
	return errors.Join(errs...)
}

type part struct {
	Part
	log *slog.Logger

	latest atomic.Pointer[attempt]
}

// attempt is a call of Probe. Its results are set before done is closed.
type attempt struct {
	began time.Time
	done  chan struct{}
	ended time.Time
	err   error
}

func (a *attempt) isDone() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// currentAttempt returns the attempt in progress, or begins one if the last result is too old.
func (p *part) currentAttempt(ctx context.Context) *attempt {
	last := p.latest.Load()
	if last != nil && (!last.isDone() || time.Since(last.ended) < kept) {
		return last
	}
	next := &attempt{began: time.Now(), done: make(chan struct{})}
	if !p.latest.CompareAndSwap(last, next) {
		return p.latest.Load() // another caller has begun it
	}
	go p.runProbe(context.WithoutCancel(ctx), next) // other callers wait for it, too
	return next
}

// probeResult waits for the current attempt.
func (p *part) probeResult(ctx context.Context) error {
	a := p.currentAttempt(ctx)
	late := time.NewTimer(deadline - time.Since(a.began))
	defer late.Stop()
	select {
	case <-a.done:
		return a.err
	case <-late.C:
	case <-ctx.Done():
	}
	if a.isDone() {
		return a.err
	}
	return ErrSilent
}

func (p *part) runProbe(ctx context.Context, a *attempt) {
	defer close(a.done)
	ctx, stop := context.WithTimeout(ctx, deadline)
	defer stop()
	a.err = guard.Do(p.log, func() error { return p.Probe(ctx) })
	if errors.Is(a.err, context.DeadlineExceeded) {
		a.err = fmt.Errorf("%w: %w", ErrSilent, a.err)
	}
	a.ended = time.Now()
}
