package handlers

import (
	"context"
	"time"
)

// Wait waits for a beat that is at least d from now, as a refusal does.
func Wait(ctx context.Context, going <-chan struct{}, d time.Duration) {
	newBeats().wait(ctx, going, d)
}
