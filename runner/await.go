package runner

import (
	"fmt"
	"log/slog"
	"time"

	"sallyport/internal/guard"
)

// recordTime is how long a request waits until its run is recorded and ordered. It is longer than the store and the
// supervisor take when one of them is slow.
const recordTime = 15 * time.Second

// awaitRecord returns the result of f, or ErrUnavailable if that takes too long, because a disk may hang. f continues
// then. What it records is carried out, and the same delivery is answered with its run when it is sent again. A panic
// of f is returned as an error.
func awaitRecord[T any](log *slog.Logger, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := guard.Call(log, f)
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-time.After(recordTime):
		var none T
		return none, fmt.Errorf("%w: no answer from the disk within %s", ErrUnavailable, recordTime)
	}
}
