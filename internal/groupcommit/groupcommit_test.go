package groupcommit_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"sallyport/internal/groupcommit"
)

var errOdd = errors.New("odd numbers are refused")

// serve writes batches of numbers until the queue is closed, after release receives.
func serve(q *groupcommit.Queue[int], release <-chan struct{}) (batches [][]int) {
	defer q.End()
	commit := func(batch []groupcommit.Op[int]) {
		var numbers []int
		for _, op := range batch {
			numbers = append(numbers, op.Value)
		}
		batches = append(batches, numbers)
		<-release
		for _, op := range batch {
			if op.Value%2 == 1 {
				op.Done(errOdd)
			} else {
				op.Done(nil)
			}
		}
	}
	for {
		select {
		case first := <-q.Ops():
			commit(q.Batch(first))
		case <-q.Closing():
			for batch := q.Rest(); len(batch) > 0; batch = q.Rest() {
				commit(batch)
			}
			return batches
		}
	}
}

// TestQueue_SharesCommits has operations come during a commit: they share the next ones, which have a bound, and each
// gets its own result.
func TestQueue_SharesCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := groupcommit.New[int](0, 4)
		release, done := make(chan struct{}), make(chan [][]int)
		go func() { done <- serve(q, release) }()
		var wait sync.WaitGroup
		do := func(n int) {
			wait.Go(func() {
				if err := q.Do(t.Context(), n); errors.Is(err, errOdd) != (n%2 == 1) {
					t.Errorf("operation %d: %v", n, err)
				}
			})
			synctest.Wait()
		}
		for n := range 7 {
			do(n)
		}
		close(release)
		wait.Wait()
		q.Close()
		q.Close()
		if batches := <-done; len(batches) != 3 || len(batches[0]) != 1 || len(batches[1]) != 4 ||
			len(batches[2]) != 2 {
			t.Errorf("batches %v, want one operation, then 4, then 2", batches)
		}
	})
}

// TestQueue_ContextBoundsTheTurn ends a context: it bounds the time in the queue, and not the commit.
func TestQueue_ContextBoundsTheTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := groupcommit.New[int](0, 4)
		release, done := make(chan struct{}), make(chan [][]int)
		go func() { done <- serve(q, release) }()
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- q.Do(ctx, 0) }()
		synctest.Wait()
		go func() { second <- q.Do(ctx, 2) }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if err := <-second; !errors.Is(err, context.Canceled) {
			t.Errorf("without a turn: %v", err)
		}
		select {
		case err := <-first:
			t.Errorf("with its turn, before the commit: %v", err)
		default:
		}
		close(release)
		if err := <-first; err != nil {
			t.Errorf("with its turn: %v", err)
		}
		q.Close()
		<-done
	})
}

// TestQueue_Close closes a queue: what is in it is committed before the writer ends, and what comes later is refused.
func TestQueue_Close(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := groupcommit.New[int](2, 4)
		q.Send(2)
		if !q.TrySend(4) || q.TrySend(6) {
			t.Error("the queue has room for two operations")
		}
		q.Close()
		q.Send(8)
		release := make(chan struct{})
		close(release)
		batches := serve(q, release)
		<-q.Ended()
		if len(batches) != 1 || len(batches[0]) != 2 {
			t.Errorf("batches %v", batches)
		}
		if err := q.Do(t.Context(), 10); !errors.Is(err, groupcommit.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		q.Send(12)
		if rest := q.Rest(); q.TrySend(14) || len(rest) > 0 {
			t.Errorf("%d operations were queued that no writer receives", len(rest))
		}
	})
}
