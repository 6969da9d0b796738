package server

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"sallyport/internal/netid"
)

// trackRequests counts the requests in progress on each connection. It reports requests that net/http answers itself,
// with 400 or 431, and requests that were not sent completely. net/http gives no access to these answers: they are
// plain text without a request id.
func trackRequests(s *http.Server, surface Handler) {
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if own, ok := belowTLS(c); ok {
			ctx = netid.WithConnection(ctx, own)
		}
		return ctx
	}
	s.ConnState = func(c net.Conn, state http.ConnState) {
		if own, ok := belowTLS(c); ok && own.trackState(state, isHTTP2(c, state)) {
			surface.ReportUnreadable(netid.AddrPort(c.RemoteAddr()))
		}
	}
	all := s.Handler
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := netid.ConnectionOf(r).(*conn); ok {
			c.beginRequest()
			defer c.endRequest()
		}
		all.ServeHTTP(w, r)
	})
}

func belowTLS(c net.Conn) (*conn, bool) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, false
	}
	own, ok := t.NetConn().(*conn)
	return own, ok
}

// isHTTP2 reports whether a connection speaks HTTP/2, once its handshake is over.
func isHTTP2(c net.Conn, state http.ConnState) bool {
	t, ok := c.(*tls.Conn)
	return ok && state == http.StateActive && t.ConnectionState().NegotiatedProtocol == "h2"
}

// farewell is the most that a client sends to end a connection, in bytes: a TLS alert.
const farewell = 32

// progress is how far a connection has come with its requests.
type progress struct {
	fresh   bool // has carried no request yet
	greeted bool // the first request or the HTTP/2 preface has arrived
	http2   bool
	unseen  bool  // part of a request has arrived that no handler has seen
	idleAt  int64 // value of read when the connection last became idle; 0 when it is not idle
}

// trackState records the state of a connection, and reports whether a request has ended that no handler saw. net/http
// reports the state "active" for the first request on a connection, but not for each later one.
func (c *conn) trackState(state http.ConnState, http2 bool) (unseen bool) {
	c.list.mu.Lock()
	defer c.list.mu.Unlock()
	switch state {
	case http.StateNew:
		c.setFresh(true)
	case http.StateActive:
		c.unseen = !http2 || c.greeted // HTTP/2 is active after its preface, too
		c.greeted, c.http2 = true, http2
	case http.StateIdle:
		unseen, c.unseen = c.unseen, false
		c.idleAt = c.read.Load()
	case http.StateClosed, http.StateHijacked:
		c.setFresh(false)
		again := !c.http2 && c.idleAt > 0 && c.read.Load()-c.idleAt > farewell
		unseen, c.unseen = c.unseen || again, false
	}
	return unseen
}

// setFresh records whether a connection has carried no request yet. The caller holds the mutex of the listener.
func (c *conn) setFresh(fresh bool) {
	if fresh == c.fresh {
		return
	}
	c.fresh = fresh
	if fresh {
		c.list.fresh++
	} else {
		c.list.fresh--
	}
}

// beginRequest and endRequest record that a request is in progress.
func (c *conn) beginRequest() { c.countRequests(1) }
func (c *conn) endRequest()   { c.countRequests(-1) }

func (c *conn) countRequests(n int) {
	c.list.mu.Lock()
	defer c.list.mu.Unlock()
	c.requests += n
	c.setFresh(false)
	c.unseen, c.idleAt = false, 0
	c.updateRank()
}

// awaitFirstRequests returns when every open connection has carried a request, or after a time limit. If a connection
// is closed before, its sender takes that for a refusal: over HTTP/2 some senders do not retry after a GOAWAY before
// their first request.
func (l *listener) awaitFirstRequests(patience time.Duration) {
	end := time.After(patience)
	for {
		l.mu.Lock()
		count := l.fresh
		l.mu.Unlock()
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
