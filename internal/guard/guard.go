// Package guard turns a panic into an error. A panic in a goroutine that acts for a request would end the whole server:
// net/http recovers only what runs in the goroutine of the request itself. Such a goroutine calls its work by [Call]
// or [Do]. Goroutines that keep the state of the server do not: after a panic of theirs that state cannot be trusted,
// and the next server continues from what is recorded.
package guard

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
)

// ErrFault reports that a function ended by a panic, so it is not known what it had done until then.
var ErrFault = errors.New("fault")

// Call returns what f returns. A panic of f is logged with its stack, and returned as an error.
func Call[T any](log *slog.Logger, f func() (T, error)) (value T, err error) {
	defer func() {
		if fault := Log(log, recover()); fault != nil {
			err = fault
		}
	}()
	return f()
}

// Do is Call for a function that returns only an error.
func Do(log *slog.Logger, f func() error) error {
	_, err := Call(log, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// Log logs what a deferred function has recovered, with the stack, and returns it as an error. Without a panic it
// does nothing and returns nil.
func Log(log *slog.Logger, recovered any, attrs ...any) error {
	if recovered == nil {
		return nil
	}
	log.With(attrs...).Error("fault", "error", recovered, "stack", string(debug.Stack()))
	return fmt.Errorf("%w: %v", ErrFault, recovered)
}
