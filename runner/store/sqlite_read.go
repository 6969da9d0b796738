package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"sallyport/runner"
)

// Deadlines of a call. A call that takes longer ends with ErrUnavailable.
const (
	callTime = 5 * time.Second // what a request waits for
	workTime = time.Minute     // what the server reads for itself
)

// within has f read for at most so long.
func within(ctx context.Context, most time.Duration, f func(context.Context) error) error {
	bounded, stop := context.WithTimeout(ctx, most)
	defer stop()
	err := f(bounded)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fmt.Errorf("%w: no answer within %s", ErrUnavailable, most)
	}
	return err
}

// readStatements are all that run on the connections for claims and single rows.
func readStatements() []string {
	return []string{sqlClaim, sqlRun, sqlInput, sqlActive, sqlKeyUses, sqlNextHook, sqlOld, sqlNewest, sqlOlder}
}

// Find returns the run that a delivery to the hook started, or
// runner.ErrUnknown, runner.ErrReused or runner.ErrOtherBody. Of a run that was
// pruned since, only ID and Hook are set.
func (s *SQLite) Find(ctx context.Context, hook string, c runner.Claim) (run runner.Run, err error) {
	err = within(ctx, callTime, func(ctx context.Context) error {
		run, err = claimed(ctx, s.reader, hook, c)
		return err
	})
	return run, err
}

// Get returns a run, or runner.ErrUnknown.
func (s *SQLite) Get(ctx context.Context, id string) (run runner.Run, err error) {
	err = within(ctx, callTime, func(ctx context.Context) error {
		run, err = s.reader.run(ctx, sqlRun, id)
		return err
	})
	return run, err
}

// Feed returns what the command of a run is to be given, or runner.ErrUnknown.
func (s *SQLite) Feed(ctx context.Context, id string) (in runner.Feed, err error) {
	err = within(ctx, callTime, func(ctx context.Context) error {
		return s.reader.scan(ctx, []any{&in.Trace, &in.Stdin}, sqlInput, id)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return runner.Feed{}, runner.ErrUnknown
	}
	return in, err
}

// Active returns what has not ended: the running runs, then those that wait,
// in the order in which each flight takes them.
func (s *SQLite) Active(ctx context.Context) (runs []runner.Run, err error) {
	err = within(ctx, workTime, func(ctx context.Context) error {
		runs, err = s.reader.runs(ctx, sqlActive)
		return err
	})
	return runs, err
}

func distinct[T cmp.Ordered](list []T) []T {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}
