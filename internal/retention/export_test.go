package retention

import (
	"context"
	"log/slog"
	"time"

	"sallyport/internal/config"
	"sallyport/runner"
	"sallyport/runner/store"
)

// NewFailures returns a function that records how some work ended.
func NewFailures(log *slog.Logger, work string) (note func(context.Context, error)) {
	return (&failures{log: log, work: work}).logChange
}

// PruneOnce does one step of PruneRuns.
func PruneOnce(
	ctx context.Context, c *config.Config, runs *runner.Runner, st *store.SQLite, log *slog.Logger,
) time.Duration {
	return newPruning(runs, st, log).pruneOnce(ctx, c)
}

// StartSteps starts with the runs of a store.
func StartSteps(ctx context.Context, started time.Time, st *store.SQLite) (*Steps, error) {
	return startSteps(ctx, started, st)
}
