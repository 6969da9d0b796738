package handlers

import (
	"context"
	"time"
	"unsafe"

	"golang.org/x/time/rate"
)

// Tables is how many bytes the tables of addresses take.
const Tables = (connectionSlots + addressSlots + failureSlots) * unsafe.Sizeof(rate.Limiter{})

// Wait waits for a beat that is at least d from now, as a refusal does.
func Wait(ctx context.Context, going <-chan struct{}, d time.Duration) {
	newBeats().wait(ctx, going, d)
}
