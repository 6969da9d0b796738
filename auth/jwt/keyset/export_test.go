package keyset

import (
	"context"
	"net"
	"net/http"
)

// SetDialer has the set reach its issuer over dial.
func (s *Set) SetDialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	t := s.client.Transport.(*http.Transport)
	t.DialContext, t.Proxy = dial, nil
}

// The bounds, for tests that walk along them.
const (
	FetchInterval     = fetchInterval
	DemandInterval    = demandInterval
	KeyLifetime       = keyLifetime
	FirstRetry        = firstRetry
	MaxWait           = maxWait
	MaxWaiting        = maxWaiting
	MaxWaitingPerSite = maxWaitingPerSite
	MaxBody           = maxBody
)
