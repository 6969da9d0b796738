package readiness_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/internal/readiness"
)

// TestCheck_HangingPart: a part that hangs is probed once, however often Faults is called. The results of the other
// parts are still returned.
func TestCheck_HangingPart(t *testing.T) {
	t.Parallel()
	goOn, broken := make(chan struct{}), errors.New("broken")
	var asked, askedOther atomic.Int64
	c := readiness.New(
		slog.New(slog.DiscardHandler),
		readiness.Part{Name: "hangs", Probe: func(context.Context) error { asked.Add(1); <-goOn; return nil }},
		readiness.Part{Name: "well", Probe: func(context.Context) error { return nil }},
		readiness.Part{Name: "broken", Probe: func(context.Context) error { askedOther.Add(1); return broken }},
	)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			f := c.Faults(t.Context())
			if len(f) != 2 || f[0].Part != "hangs" || !errors.Is(f[0].Err, readiness.ErrSilent) || f[1].Part != "broken" || !errors.Is(f[1].Err, broken) {
				t.Errorf("got %v", f)
			}
		})
	}
	all.Wait()
	c.Faults(t.Context()) // still waits for that probe
	if asked.Load() != 1 || askedOther.Load() > 5 {
		t.Errorf("asked %d and %d times", asked.Load(), askedOther.Load())
	}
	close(goOn)
	for len(c.Faults(t.Context())) > 1 {
		<-time.After(10 * time.Millisecond)
	}
}

// TestCheck_PartHeedsItsDeadline: a probe that ends at its deadline has not answered, either.
func TestCheck_PartHeedsItsDeadline(t *testing.T) {
	t.Parallel()
	c := readiness.New(slog.New(slog.DiscardHandler), readiness.Part{Name: "slow", Probe: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
	if err := c.Err(t.Context()); !errors.Is(err, readiness.ErrSilent) {
		t.Errorf("got %v", err)
	}
}
