package handlers

import (
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"sallyport/auth"
	"sallyport/internal/audit"
	"sallyport/internal/config"
	"sallyport/internal/netid"
)

// rateLimits limit how often an address may connect, send requests and be refused, and how often a caller may send.
type rateLimits struct {
	connections *addressLimits
	addresses   *addressLimits
	failures    *addressLimits
	callers     map[string]*rate.Limiter
	now         func() time.Time
}

// carryOver returns the limits of a configuration. Those that did not change keep what was spent of them.
func (l *rateLimits) carryOver(c *config.Config, now func() time.Time) *rateLimits {
	return &rateLimits{
		connections: l.connections.carryOver(c.Limits.Address, connectionSlots),
		addresses:   l.addresses.carryOver(c.Limits.Address, addressSlots),
		failures:    l.failures.carryOver(c.Limits.Failures, failureSlots),
		callers:     carryOverCallers(c.CallerLimits, l.callers),
		now:         now,
	}
}

// refuseCredential spends a token of the failures of the address and returns 401, or 429 if none is left.
func (l *rateLimits) refuseCredential(r *http.Request, why error) error {
	if e := l.failures.takeToken(remoteHost(r), "failures", l.now()); e != nil {
		e.cause = why
		return e
	}
	return unauthorized(why.Error())
}

// refuseUsed refuses a valid token that was used before for something else. It spends a token of the failures of the
// address, because whoever recorded the token can send it.
func (l *rateLimits) refuseUsed(r *http.Request, why error) error {
	if e := l.failures.takeToken(remoteHost(r), "failures", l.now()); e != nil {
		e.cause = why
		return e
	}
	return credentialUsed(why)
}

// limitDelivery spends a token of the caller. For a delivery that was accepted or ignored before it spends one of the
// failures of the address: an attacker that recorded the delivery can send it, and must not use up the budget of the
// caller.
func (l *rateLimits) limitDelivery(w http.ResponseWriter, r *http.Request, who *auth.Identity, seen bool) error {
	if seen {
		if e := l.failures.takeToken(remoteHost(r), "replays", l.now()); e != nil {
			return e
		}
		return nil
	}
	return l.limitCaller(w, who)
}

// limitCaller spends a token of the caller, and sets the header fields that say how many are left.
func (l *rateLimits) limitCaller(w http.ResponseWriter, who *auth.Identity) error {
	limiter, ok := l.callers[who.Caller]
	if !ok {
		return nil // an unauthenticated hook: only the address limit applies
	}
	now := l.now()
	if e := takeToken(limiter, "caller", now); e != nil {
		return e
	}
	w.Header().Set("Ratelimit", formatRateLimit(limiter, "caller", now))
	w.Header().Set("Ratelimit-Policy", formatPolicy(limiter, "caller"))
	return nil
}

// addressLimits is a limit for each address. Addresses that share a slot share its budget.
type addressLimits struct {
	limit config.Limit
	slots *slotTable[netip.Addr, rate.Limiter]
}

// The three tables together take about 3.2 MiB.
const (
	connectionSlots = 1 << 14
	addressSlots    = 1 << 14
	failureSlots    = 1 << 13
)

// carryOver returns the same table if the limit did not change, and otherwise a new one.
func (t *addressLimits) carryOver(limit config.Limit, slots int) *addressLimits {
	if t != nil && t.limit == limit {
		return t
	}
	return newAddressLimits(limit, slots)
}

func newAddressLimits(limit config.Limit, slots int) *addressLimits {
	return &addressLimits{limit, newLimiterTable[netip.Addr](slots, rate.Limit(limit.Rate), limit.Burst)}
}

// allowAddress spends one token of the address, if it has one.
func (t *addressLimits) allowAddress(a netip.Addr, now time.Time) bool {
	return t.slots.slotOf(a).AllowN(now, 1)
}

// takeToken spends one token of the address, or returns the refusal, which contains the name of the policy.
func (t *addressLimits) takeToken(a netip.Addr, policy string, now time.Time) *refusal {
	return takeToken(t.slots.slotOf(a), policy, now)
}

// carryOverCallers returns the limiters of the callers, with what was spent of those that existed before.
func carryOverCallers(callers map[string]config.Limit, old map[string]*rate.Limiter) map[string]*rate.Limiter {
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

func takeToken(l *rate.Limiter, policy string, now time.Time) *refusal {
	if l.AllowN(now, 1) {
		return nil
	}
	wait := time.Duration((1 - l.TokensAt(now)) / float64(l.Limit()) * float64(time.Second))
	return &refusal{
		status: http.StatusTooManyRequests, kind: audit.TooOften,
		detail: "Too many requests; Retry-After says when to send the next one.",
		reason: "limit by " + policy,
		header: http.Header{
			"Retry-After":      {formatSeconds(wait)},
			"Ratelimit":        {formatRateLimit(l, policy, now)},
			"Ratelimit-Policy": {formatPolicy(l, policy)},
		},
	}
}

// formatRateLimit and formatPolicy return the fields of draft-ietf-httpapi-ratelimit-headers-10: how much is left and
// when the bucket is full again, and the size of the bucket and how long it takes to fill.
func formatRateLimit(l *rate.Limiter, policy string, now time.Time) string {
	tokens := max(l.TokensAt(now), 0)
	full := (float64(l.Burst()) - tokens) / float64(l.Limit())
	return fmt.Sprintf(`"%s";r=%d;t=%d`, policy, int(tokens), int(math.Ceil(full)))
}

func formatPolicy(l *rate.Limiter, policy string) string {
	return fmt.Sprintf(`"%s";q=%d;w=%d`, policy, l.Burst(), int(math.Ceil(float64(l.Burst())/float64(l.Limit()))))
}

// formatSeconds rounds up, so that a client that follows Retry-After is not refused again.
func formatSeconds(d time.Duration) string {
	return fmt.Sprint(max(1, int(math.Ceil(d.Seconds()))))
}

// remoteAddr returns the address that a request comes from.
func remoteAddr(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr()
}

// remoteHost returns what identifies a sender before it is authenticated.
func remoteHost(r *http.Request) netip.Addr { return netid.Host(remoteAddr(r)) }
