package server

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// newConnections are the connections that have not carried a request yet. If one is closed, its sender takes that for a
// refusal: over HTTP/2 some senders do not retry after a GOAWAY before their first request.
type newConnections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

type connKey struct{}

// watchServer records the connections of s that have carried no request.
func (n *newConnections) watchServer(s *http.Server) {
	n.open = map[net.Conn]struct{}{}
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	s.ConnState = func(c net.Conn, state http.ConnState) {
		n.mu.Lock()
		defer n.mu.Unlock()
		switch state {
		case http.StateNew:
			n.open[c] = struct{}{}
		case http.StateClosed, http.StateHijacked:
			delete(n.open, c)
		case http.StateActive, http.StateIdle: // over HTTP/2, also before the first request
		}
	}
	all := s.Handler
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
			n.mu.Lock()
			delete(n.open, c)
			n.mu.Unlock()
		}
		all.ServeHTTP(w, r)
	})
}

// awaitRequests returns when none of these connections is left, or after a time limit.
func (n *newConnections) awaitRequests(patience time.Duration) {
	end := time.After(patience)
	for {
		n.mu.Lock()
		count := len(n.open)
		n.mu.Unlock()
		if count == 0 {
			return
		}
		select {
		case <-end:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}
