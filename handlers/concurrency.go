package handlers

import (
	"context"
	"net/http"
	"sync"
	"time"

	"sallyport/internal/audit"
)

// What one caller may have in progress at once. A rate limit alone does not limit that, because a request may last
// long.
const (
	maxReads     = 4  // requests for runs that are being answered; the others wait
	maxFollowers = 64 // outputs that are followed
	maxWaits     = 64 // answers that wait for the end of a run

	readTurn = 2 * time.Second // how long a request waits for a place
)

// callerGates limit what each caller has in progress, by kind.
type callerGates struct{ reads, followers, waits *gate }

// gate limits what each caller has in progress.
type gate struct {
	most   int
	places sync.Map // by caller: a chan struct{} with a buffer of most; as many as there are callers in the file
}

func newGate(most int) *gate { return &gate{most: most} }

// takePlace takes a place of a caller and returns the function that releases it. It returns false if no place becomes
// free in time.
func (g *gate) takePlace(ctx context.Context, caller string, patience time.Duration) (leave func(), ok bool) {
	found, _ := g.places.LoadOrStore(caller, make(chan struct{}, g.most))
	places, _ := found.(chan struct{})
	leave = sync.OnceFunc(func() { <-places })
	select {
	case places <- struct{}{}:
		return leave, true
	default:
	}
	if patience == 0 {
		return nil, false
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case places <- struct{}{}:
		return leave, true
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil, false
}

// refuseTooMany refuses a caller that has too much in progress.
func refuseTooMany(what string) error {
	return &refusal{
		status: http.StatusTooManyRequests, kind: audit.TooOften, reason: "caller has too many " + what,
		detail: "This caller has too many " + what + " at once.", header: http.Header{"Retry-After": {"2"}},
	}
}
