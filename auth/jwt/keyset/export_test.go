package keyset

import (
	"context"
	"net"
	"net/http"
)

// Dial has the set reach its issuer over dial.
func (s *Set) Dial(dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	t := s.client.Transport.(*http.Transport)
	t.DialContext, t.Proxy = dial, nil
}

// The bounds, for tests that walk along them.
const (
	Interval   = interval
	OnDemand   = onDemand
	Believed   = believed
	FirstRetry = firstRetry
	MaxWait    = maxWait
	MaxWaiting = maxWaiting
	MaxFrom    = maxFrom
	MaxBody    = maxBody
)
