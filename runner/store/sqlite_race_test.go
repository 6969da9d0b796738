package store_test

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// witness knows which runs are running without asking the store.
type witness struct {
	mu    sync.Mutex
	air   map[string]string // by flight
	order []string          // in the order in which they started
	seen  map[string]int
}

func (w *witness) start(t *testing.T, r runner.Run) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if other, taken := w.air[r.Flight]; taken {
		t.Errorf("%s runs while %s does, both of %s", r.ID, other, r.Flight)
	}
	w.air[r.Flight] = r.ID
	w.order = append(w.order, r.ID)
	w.seen[r.ID]++
}

func (w *witness) end(r runner.Run) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.air, r.Flight)
}

// waiter is a run that was queued, with the times when its admission began and ended.
type waiter struct {
	run       runner.Run
	from, til int64
}

// TestFlight_OneRunInOrder runs many flights at once: no two runs of a flight overlap, and none is out of order.
func TestFlight_OneRunInOrder(t *testing.T) {
	s := openStore(t)
	w := &witness{air: map[string]string{}, seen: map[string]int{}}
	policies := []hook.Policy{
		{Kind: hook.Reject},
		{Kind: hook.Queue, Depth: 5},
		{Kind: hook.Queue, Depth: 9},
		{Kind: hook.Join},
		{Kind: hook.Replace},
	}
	var tick atomic.Int64
	var mu sync.Mutex
	var waiters []waiter
	accepted := map[string]bool{}
	var all sync.WaitGroup
	for g := range 64 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for range 15 {
				r := newRun(t, "build", fmt.Sprint("flight", rng.IntN(3)))
				from := tick.Add(1)
				a, err := s.Admit(t.Context(), r, runner.Claim{Key: r.ID}, policies[rng.IntN(len(policies))],
					runner.Feed{})
				til := tick.Add(1)
				if errors.As(err, new(*runner.Busy)) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				accepted[a.Run.ID] = true
				if a.Run.State == runner.Queued && !a.Joined {
					waiters = append(waiters, waiter{a.Run, from, til})
				}
				mu.Unlock()
				if a.Run.State == runner.Running {
					runAll(t, s, w, a.Run)
				}
			}
		})
	}
	all.Wait()
	if active, err := s.Active(t.Context()); err != nil || len(active) != 0 {
		t.Fatalf("left over: %v %+v", err, active)
	}
	for id := range accepted {
		r, err := s.Get(t.Context(), id)
		if err != nil || w.seen[id] != 1 && r.State != runner.Cancelled || w.seen[id] > 1 {
			t.Errorf("%s is %s and ran %d times: %v", id, r.State, w.seen[id], err)
		}
	}
	checkOrder(t, w, waiters)
}

// runAll acts as a runner: it runs a run, and then the runs that become running by its end.
func runAll(t *testing.T, s *store.SQLite, w *witness, r runner.Run) {
	t.Helper()
	for next := &r; next != nil; {
		now := *next
		if rand.IntN(8) == 0 { // a start that fails
			if _, err := s.Requeue(t.Context(), now.ID); err != nil {
				t.Error(err)
			}
			promoted, err := s.Promote(t.Context())
			if err != nil {
				t.Error(err)
			}
			for _, again := range promoted {
				runAll(t, s, w, again)
			}
			return
		}
		w.start(t, now)
		// The call also makes the run take a while.
		if got, err := s.Get(t.Context(), now.ID); err != nil || got.State != runner.Running {
			t.Errorf("%s runs as %q: %v", now.ID, got.State, err)
		}
		w.end(now) // before the end is recorded: afterwards the next may be running
		var err error
		if _, next, err = s.Finish(t.Context(), now.ID, runner.Succeeded, runner.End{Ended: time.Now()},
			runner.KeepClaims, runner.PromoteNext); err != nil {
			t.Error(err)
			return
		}
	}
}

// checkOrder checks the order of each two runs of a flight: if one was queued before the other arrived, it started
// first.
func checkOrder(t *testing.T, w *witness, waiters []waiter) {
	t.Helper()
	started := map[string]int{}
	for i, id := range w.order {
		started[id] = i
	}
	waiters = slices.DeleteFunc(waiters, func(x waiter) bool { _, ran := started[x.run.ID]; return !ran })
	slices.SortFunc(waiters, func(a, b waiter) int { return cmp.Compare(started[a.run.ID], started[b.run.ID]) })
	pairs := 0
	for i, a := range waiters {
		for _, b := range waiters[i+1:] {
			if a.run.Flight != b.run.Flight {
				continue
			}
			pairs++
			if b.til < a.from {
				t.Errorf("%s was queued before %s came, and started after it", b.run.ID, a.run.ID)
			}
		}
	}
	if pairs == 0 {
		t.Error("nothing was queued: this test shows nothing")
	}
}
