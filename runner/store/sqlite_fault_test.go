package store_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// TestStore_PanicOfAnOperation has an operation panic in a batch with others: it fails, nothing of it is recorded, and
// the others are recorded.
func TestStore_PanicOfAnOperation(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	release := s.HoldTurn()
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			if i == 5 {
				if err := s.DoPanicking(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "fault: ") {
					t.Errorf("the operation that panics returns %v", err)
				}
				return
			}
			if _, err := s.Admit(t.Context(), newRun(t, "build", "f"), runner.Claim{},
				hook.Policy{Kind: hook.Queue, Depth: 100}, runner.Feed{}); err != nil {
				t.Error(err)
			}
		})
	}
	release()
	all.Wait()
	ctx, done := context.WithTimeout(t.Context(), time.Minute)
	defer done()
	if runs, _, err := s.List(ctx, runner.Filter{Limit: 100}); err != nil || len(runs) != 9 {
		t.Errorf("%d runs, %v", len(runs), err)
	}
	if err := s.DoPanicking(ctx); err == nil { // alone
		t.Error("no error")
	}
}
