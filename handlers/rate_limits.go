package handlers

import (
	"fmt"
	"hash/maphash"
	"math"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"sallyport/internal/audit"
	"sallyport/internal/config"
	"sallyport/internal/netid"
)

// addressLimits is a table of limiters that never grows, whatever the number
// of addresses: each address has the slot that a seeded hash gives it. Who
// shares a slot shares its budget, and without the seed nobody can pick whom.
type addressLimits struct {
	seed  maphash.Seed
	limit config.Limit
	slots []rate.Limiter
}

// The three tables together take about 3.2 MiB.
const (
	connectionSlots = 1 << 14
	addressSlots    = 1 << 14
	failureSlots    = 1 << 13
)

// or returns the table itself if the limit is as it was, and otherwise a new one.
func (t *addressLimits) or(limit config.Limit, slots int) *addressLimits {
	if t != nil && t.limit == limit {
		return t
	}
	return newAddressLimits(limit, slots)
}

// newAddressLimits sets every slot before the table is used: two requests that
// set one slot at the same time would leave it with a second full bucket.
func newAddressLimits(limit config.Limit, slots int) *addressLimits {
	t := &addressLimits{seed: maphash.MakeSeed(), limit: limit, slots: make([]rate.Limiter, slots)}
	for i := range t.slots {
		// The zero time lets the first use find a full bucket.
		t.slots[i].SetLimitAt(time.Time{}, rate.Limit(limit.Rate))
		t.slots[i].SetBurstAt(time.Time{}, limit.Burst)
	}
	return t
}

func (t *addressLimits) of(a netip.Addr) *rate.Limiter {
	return &t.slots[maphash.Comparable(t.seed, a)%uint64(len(t.slots))]
}

// allow spends one token of the address, if it has one.
func (t *addressLimits) allow(a netip.Addr, now time.Time) bool { return t.of(a).AllowN(now, 1) }

// take spends one token of the address, or returns the refusal, which names the policy.
func (t *addressLimits) take(a netip.Addr, policy string, now time.Time) *refusal {
	return take(t.of(a), policy, now)
}

// callerLimits takes over the limiters that are there, with what was spent of
// them.
func callerLimits(callers map[string]config.Limit, old map[string]*rate.Limiter) map[string]*rate.Limiter {
	limits := make(map[string]*rate.Limiter, len(callers))
	for name, l := range callers {
		limiter, ok := old[name]
		if !ok {
			limiter = rate.NewLimiter(rate.Limit(l.Rate), l.Burst)
		}
		if limiter.Limit() != rate.Limit(l.Rate) {
			limiter.SetLimit(rate.Limit(l.Rate))
		}
		if limiter.Burst() != l.Burst {
			limiter.SetBurst(l.Burst)
		}
		limits[name] = limiter
	}
	return limits
}

func take(l *rate.Limiter, policy string, now time.Time) *refusal {
	if l.AllowN(now, 1) {
		return nil
	}
	wait := time.Duration((1 - l.TokensAt(now)) / float64(l.Limit()) * float64(time.Second))
	return &refusal{
		status: http.StatusTooManyRequests, kind: audit.TooOften,
		detail: "Too many requests; Retry-After says when the next one may come.",
		reason: "limit by " + policy,
		header: http.Header{
			"Retry-After":      {seconds(wait)},
			"Ratelimit":        {rateLimit(l, policy, now)},
			"Ratelimit-Policy": {rateLimitPolicy(l, policy)},
		},
	}
}

// rateLimit and rateLimitPolicy are the fields of
// draft-ietf-httpapi-ratelimit-headers-10: what is left and when the bucket is
// full again, and what the bucket holds and how long it takes to fill.
func rateLimit(l *rate.Limiter, policy string, now time.Time) string {
	tokens := max(l.TokensAt(now), 0)
	full := (float64(l.Burst()) - tokens) / float64(l.Limit())
	return fmt.Sprintf(`"%s";r=%d;t=%d`, policy, int(tokens), int(math.Ceil(full)))
}

func rateLimitPolicy(l *rate.Limiter, policy string) string {
	return fmt.Sprintf(`"%s";q=%d;w=%d`, policy, l.Burst(), int(math.Ceil(float64(l.Burst())/float64(l.Limit()))))
}

// seconds rounds up, so that who waits as long as told is not told again.
func seconds(d time.Duration) string {
	return fmt.Sprint(max(1, int(math.Ceil(d.Seconds()))))
}

// remote is where a request comes from.
func remote(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr()
}

// address is what a caller is told apart by before it has proved anything.
func address(r *http.Request) netip.Addr { return netid.Host(remote(r)) }
