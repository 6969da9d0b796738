package retention

import (
	"context"
	"log/slog"
)

// NewFailures returns a function that records how some work ended.
func NewFailures(log *slog.Logger, work string) (note func(context.Context, error)) {
	return (&failures{log: log, work: work}).logChange
}
