package runner

import (
	"fmt"
	"log/slog"
	"time"

	"sallyport/internal/guard"
)

// recordTime bounds how long a request waits for what it asks for to be recorded
// and begun. It is longer than the store and the supervisor take when one is slow.
const recordTime = 15 * time.Second

// awaitRecord returns what f returns, or ErrUnavailable when that takes too long: a disk
// may hang. f goes on then, so what it records is carried out, and a delivery that
// comes again is answered with its run. A panic of f is an error.
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
