package handlers

import (
	"context"
	"net/http"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/time/rate"

	"sallyport/auth"
	"sallyport/internal/config"
	"sallyport/runner"
)

// NewAddressLimit returns the limiter of a table with a single slot.
func NewAddressLimit(limit config.Limit) func(netip.Addr, time.Time) bool {
	return newAddressLimits(limit, 1).allow
}

// Tables is how many bytes the tables of addresses take.
const Tables = (connectionSlots + addressSlots + failureSlots) * unsafe.Sizeof(rate.Limiter{})

// Wait waits for a beat that is at least d from now, as a refusal does.
func Wait(ctx context.Context, going <-chan struct{}, d time.Duration) {
	newBeats().wait(ctx, going, d)
}

// Bind takes the parameters of a hook from a delivery of the caller c.
func Bind(r *http.Request, body []byte, h *runner.Hook) (runner.Values, error) {
	return bind(r, body, &auth.Identity{Caller: "c"}, h)
}

// Held is how much room unverified bodies take.
func (h *Handler) Held() int64 {
	r := h.current.Load().room
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// Bounds of what a caller has in progress at once.
const (
	MaxReads     = maxReads
	MaxFollowers = maxFollowers
	MaxWaits     = maxWaits
	MaxNames     = maxNames
)

// FixedPaths are the paths of the server itself, as the router has them.
func FixedPaths() (paths []string) {
	for path := range new(surface).fixed() {
		paths = append(paths, path)
	}
	return paths
}

// Traceparent is what is passed on to the command of a delivery.
func Traceparent(h http.Header) string { return traceparent(h) }
