package server

import (
	"net"
	"net/http"
	"time"

	"sallyport/internal/config"
)

// Limit bounds the connections of a listener.
func Limit(l net.Listener, conf *config.Watcher, s Handler) net.Listener {
	return limitConnections(l, conf, s)
}

// Open is openListener.
var Open = openListener //nolint:gochecknoglobals // a function

// SetListener makes a limited listener accept its connections from another.
func SetListener(limited, from net.Listener) { limited.(*listener).Listener = from }

// Begin reports that a request begins on a connection.
func Begin(c net.Conn) { c.(*conn).beginRequest() }

// End reports the end of a request that Begin reported.
func End(c net.Conn) { c.(*conn).endRequest() }

// Fresh returns how many connections have carried no request yet.
func Fresh(s *Server) int {
	s.limited.mu.Lock()
	defer s.limited.mu.Unlock()
	return s.limited.fresh
}

// OnState also passes the states of connections to f. It must be called before Serve.
func OnState(s *Server, f func(net.Conn, http.ConnState)) {
	inner := s.http.ConnState
	s.http.ConnState = func(c net.Conn, state http.ConnState) {
		inner(c, state)
		f(c, state)
	}
}

// Age makes a connection older.
func Age(c net.Conn, by time.Duration) { c.(*conn).opened = c.(*conn).opened.Add(-by) }
