package retention

import (
	"context"
	"log/slog"
	"time"

	"sallyport/runner/store"
)

// NewFailures returns a function that records how some work ended.
func NewFailures(log *slog.Logger, work string) (note func(context.Context, error)) {
	return (&failures{log: log, work: work}).logChange
}

// StartSteps starts with the runs of a store.
func StartSteps(ctx context.Context, started time.Time, st *store.SQLite) (*Steps, error) {
	return startSteps(ctx, started, st)
}
