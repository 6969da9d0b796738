package server

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/internal/config"
	"sallyport/internal/netid"
)

// Limits of a connection, stricter while it has not carried a valid credential.
const (
	maxStrangerLife     = time.Minute // after that, the next answer is the last one
	maxStrangerRefusals = 20          // consecutive refusals; then this refusal is the last answer
	maxRefusals         = 200         // the same, for a connection that has carried a valid credential
)

// Limits of the bytes that may arrive on a connection in addition to the bodies that are read. Frames that carry no
// request (PING, SETTINGS, empty DATA and CONTINUATION), and requests that are reset at once, cost time. net/http
// bounds their number only while it cannot write its answers.
const (
	maxOverhead     = 512 << 10 // bytes, including the handshake and the part of a refused body that the window allows
	overheadPer     = 8 << 10   // additional bytes for each answer except 429
	overheadRate    = 1 << 10   // additional bytes per second
	overheadPerByte = 4         // additional bytes per byte of a body, which may arrive in small frames
	overheadWritten = 8         // one additional byte per this many written bytes, which the client acknowledges
)

// listener limits the number of connections in total, from one address and from one site, and the rate of new ones.
// When all places are taken, it closes a connection to make room for a new one. It closes the new one only if every
// other connection carries a request of a caller.
type listener struct {
	net.Listener
	conf    *config.Watcher
	handler Handler

	mu    sync.Mutex
	sum   int
	fresh int // connections that have carried no request yet
	hosts map[netip.Addr]int
	sites map[netip.Addr]*site
}

// site is the open connections from one site.
type site struct {
	conns  map[*conn]struct{}
	counts [ranks]int
}

// rank is the order in which connections are closed to make room.
type rank int

const (
	stranger rank = iota // has not carried a valid credential, nor has another connection from its address lately
	idle                 // carries no request, or its address had a valid credential lately
	busy                 // carries a request of a caller: not closed
	ranks
)

func limitConnections(l net.Listener, conf *config.Watcher, s Handler) *listener {
	return &listener{Listener: l, conf: conf, handler: s, hosts: map[netip.Addr]int{}, sites: map[netip.Addr]*site{}}
}

// Accept returns the next connection that is within the bounds.
func (l *listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := l.newConn(accepted)
		if !l.handler.AllowConnection(c.from) {
			_ = accepted.Close() // it was never used: there is nothing to lose
			continue
		}
		closing, ok := l.admitConnection(c)
		for _, old := range closing {
			l.handler.CountRejectedConnection()
			_ = old.Conn.Close()
		}
		if !ok {
			l.handler.CountRejectedConnection()
			_ = accepted.Close()
			continue
		}
		return c, nil
	}
}

func (l *listener) newConn(accepted net.Conn) *conn {
	from := netid.AddrPort(accepted.RemoteAddr()).Addr()
	now := time.Now()
	c := &conn{
		Conn: accepted, list: l, from: from, host: netid.Host(from), site: netid.Site(from), opened: now,
		standing: standing{since: now},
	}
	c.useful.Store(maxOverhead)
	if l.handler.IsProvedHost(from) {
		c.rank, c.known = idle, true
	}
	return c
}

// admitConnection gives a new connection a place, and returns the connections that lose their places for it.
func (l *listener) admitConnection(c *conn) (closing []*conn, ok bool) {
	most := &l.conf.Get().Limits
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		var old *conn
		same := l.sites[c.site]
		switch {
		case l.hosts[c.host] >= most.ConnectionsPerAddress:
			old = same.firstToClose(c.host)
		case same != nil && len(same.conns) >= max(most.Connections/2, most.ConnectionsPerAddress):
			old = same.firstToClose(netip.Addr{})
		case l.sum >= most.Connections:
			old = l.largestSite().firstToClose(netip.Addr{})
		default:
			l.addConnection(c)
			return closing, true
		}
		if old == nil {
			return closing, false
		}
		l.removeConnection(old)
		closing = append(closing, old)
	}
}

// largestSite returns the site with the most connections of the lowest rank. Of several such sites, it returns the one
// with the oldest connection.
func (l *listener) largestSite() (most *site) {
	var oldest *conn
	for r := stranger; r < busy && most == nil; r++ {
		for _, s := range l.sites {
			if s.counts[r] == 0 || most != nil && s.counts[r] < most.counts[r] {
				continue
			}
			first := s.firstToClose(netip.Addr{})
			if most == nil || s.counts[r] > most.counts[r] || first.since.Before(oldest.since) {
				most, oldest = s, first
			}
		}
	}
	return most
}

// firstToClose returns the connection of a site, or of one host there, to close first: the one that has had the lowest
// rank for the longest time.
func (s *site) firstToClose(host netip.Addr) (first *conn) {
	if s == nil {
		return nil
	}
	for c := range s.conns {
		if c.rank == busy || host.IsValid() && c.host != host {
			continue
		}
		if first == nil || c.rank < first.rank || c.rank == first.rank && c.since.Before(first.since) {
			first = c
		}
	}
	return first
}

func (l *listener) addConnection(c *conn) {
	s := l.sites[c.site]
	if s == nil {
		s = &site{conns: map[*conn]struct{}{}}
		l.sites[c.site] = s
	}
	s.conns[c] = struct{}{}
	s.counts[c.rank]++
	l.hosts[c.host]++
	l.sum++
}

// removeConnection frees the place of a connection, if it has one.
func (l *listener) removeConnection(c *conn) {
	s := l.sites[c.site]
	if s == nil {
		return
	}
	if _, ok := s.conns[c]; !ok {
		return
	}
	delete(s.conns, c)
	s.counts[c.rank]--
	if len(s.conns) == 0 {
		delete(l.sites, c.site)
	}
	if l.hosts[c.host]--; l.hosts[c.host] == 0 {
		delete(l.hosts, c.host)
	}
	l.sum--
}

// conn is a connection that has a place among others and carries nothing but TLS.
type conn struct {
	net.Conn
	standing // guarded by the listener's mutex
	progress // guarded by the listener's mutex

	list       *listener
	from       netip.Addr
	host, site netip.Addr
	opened     time.Time
	known      bool         // its address had a valid credential lately
	read       atomic.Int64 // bytes that have arrived
	useful     atomic.Int64 // bytes that may have arrived, not counting those allowed for its age
}

// standing is what the rank of a connection depends on.
type standing struct {
	rank     rank
	since    time.Time // when it got this rank
	proved   bool
	requests int // in progress
	refused  int // in a row
}

// Prove implements netid.Connection.
func (c *conn) Prove() {
	c.list.mu.Lock()
	defer c.list.mu.Unlock()
	c.proved = true
	c.updateRank()
}

// Answer implements netid.Connection.
func (c *conn) Answer(status int) (last bool) {
	if status != http.StatusTooManyRequests {
		c.useful.Add(overheadPer)
	}
	c.list.mu.Lock()
	defer c.list.mu.Unlock()
	if c.refused++; status < http.StatusBadRequest {
		c.refused = 0
	}
	if c.proved {
		return c.refused >= maxRefusals
	}
	return c.refused >= maxStrangerRefusals || time.Since(c.opened) >= maxStrangerLife
}

// Received implements netid.Connection.
func (c *conn) Received(n int) { c.useful.Add(int64(n) * overheadPerByte) }

// updateRank sets the current rank of the connection.
func (c *conn) updateRank() {
	now := stranger
	switch {
	case c.proved && c.requests > 0:
		now = busy
	case c.proved, c.known:
		now = idle
	}
	s := c.list.sites[c.site]
	if s == nil || now == c.rank {
		return
	}
	if _, ok := s.conns[c]; ok {
		s.counts[c.rank]--
		s.counts[now]++
		c.rank, c.since = now, time.Now()
	}
}

var errFlood = errors.New("the connection received more than its requests need")

// Read closes the connection if too many bytes arrived that its requests do not need.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	over := c.read.Add(int64(n)) - c.useful.Load()
	if n == 0 || over <= 0 || over <= int64(time.Since(c.opened).Seconds()*overheadRate) {
		return n, err
	}
	c.list.handler.ReportFlood(c.from)
	return 0, errors.Join(errFlood, c.Close()) // nothing can be read after that
}

// Close frees the place of the connection, and closes it.
func (c *conn) Close() error {
	c.list.mu.Lock()
	c.list.removeConnection(c)
	c.list.mu.Unlock()
	return c.Conn.Close()
}

var errPlaintext = errors.New("refusing to write plaintext")

// Write only sends TLS records (RFC 8446, 5.1: content types 20 to 24). net/http would answer a plaintext request in
// plaintext, without TLS. With this check, a plaintext client gets no answer.
func (c *conn) Write(b []byte) (int, error) {
	if len(b) > 0 && (b[0] < 20 || b[0] > 24) {
		return 0, errPlaintext
	}
	n, err := c.Conn.Write(b)
	c.useful.Add(int64(n) / overheadWritten)
	return n, err
}
