package groupcommit_test

import (
	"context"
	"fmt"
	"sync"

	"sallyport/internal/groupcommit"
)

// The writer commits what is queued together, and reports one result to each goroutine.
func Example() {
	queue := groupcommit.New[string](16, 8)
	var stored []string
	commit := func(batch []groupcommit.Op[string]) {
		for _, op := range batch {
			stored = append(stored, op.Value)
		}
		// here the writer syncs the disk, once for the whole batch
		for _, op := range batch {
			op.Done(nil)
		}
	}
	var writer sync.WaitGroup
	writer.Go(func() {
		defer queue.End()
		for {
			select {
			case op := <-queue.Ops():
				commit(queue.Batch(op))
			case <-queue.Closing():
				for batch := queue.Rest(); len(batch) > 0; batch = queue.Rest() {
					commit(batch)
				}
				return
			}
		}
	})

	fmt.Println(queue.Do(context.Background(), "accepted"))
	queue.Close()
	writer.Wait()
	fmt.Println(stored)
	fmt.Println(queue.Do(context.Background(), "too late"))
	// Output:
	// <nil>
	// [accepted]
	// closed
}
