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

// What a connection may do that has not carried a valid credential.
const (
	maxStrangerLife     = time.Minute // then the next answer is the last one
	maxStrangerRefusals = 20          // so is this refusal, counted since the last answer that was not one
	maxRefusals         = 200         // the same, of a connection that has carried a valid credential
)

// What may arrive on a connection beyond the bodies that are read. Frames that ask
// for nothing (PING, SETTINGS, empty DATA and CONTINUATION, requests that are
// reset at once) cost time, and net/http bounds their number only while it
// cannot write its answers.
const (
	maxOverhead     = 512 << 10 // bytes, with the handshake and what the window lets come of a body that is refused
	overheadPer     = 8 << 10   // and so much more for each answer but a 429
	overheadRate    = 1 << 10   // and per second
	overheadPerByte = 4         // and per byte of a body, which may come in small frames
	overheadWritten = 8         // and a byte for so many that were written, which have to be acknowledged
)

// listener bounds how many connections there are, in all, from one address and
// from one site, and how often one may connect. When all places are taken, it
// closes a connection to make room for a new one, and closes the new one only
// when every other is in use by a caller.
type listener struct {
	net.Listener
	conf    *config.Watcher
	handler Handler

	mu    sync.Mutex
	sum   int
	hosts map[netip.Addr]int
	sites map[netip.Addr]*site
}

// site is what is open from one site.
type site struct {
	conns  map[*conn]struct{}
	counts [ranks]int
}

// rank says which connections are closed first to make room.
type rank int

const (
	stranger rank = iota // has not carried a valid credential, from an address that has not either
	idle                 // carries no request, or comes from an address with a credential that was verified lately
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
		Conn: accepted, list: l, from: from, host: netid.Host(from), site: netid.Site(from), opened: now, since: now,
	}
	c.useful.Store(maxOverhead)
	if l.handler.IsProvedHost(from) {
		c.rank, c.known = idle, true
	}
	return c
}

// admitConnection gives a new connection a place, and returns the connections that lose
// theirs for it.
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

// largestSite is the site with the most connections of the lowest rank that there is:
// of several, the one with the oldest.
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

// firstToClose is the connection of a site, or of one host there, that is to be closed
// first: the one that has had the lowest rank for the longest time.
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

// removeConnection gives the place of a connection back, if it has one.
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

// conn is a connection that has a place among others and carries nothing but TLS. Its many fields are the state of
// one connection: what it used, and, under the mutex of the listener, what its rank depends on.
type conn struct {
	net.Conn
	list       *listener
	from       netip.Addr
	host, site netip.Addr
	opened     time.Time
	known      bool         // its address had a valid credential lately
	read       atomic.Int64 // bytes that have come
	useful     atomic.Int64 // bytes that may have arrived, not counting those allowed for its age

	// By the listener's mutex.
	rank     rank
	since    time.Time // when it got this rank
	proved   bool
	requests int  // in progress
	refused  int  // in a row
	greeted  bool // something has come
	http2    bool
	unseen   bool  // something of a request has come that no handler has seen
	idleAt   int64 // bytes that had come when it last became idle; 0 when it is not
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

// updateRank gives the connection the rank that it has by now.
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

var errFlood = errors.New("more came on the connection than its requests need")

// Read ends a connection on which too much came that is of no use.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	over := c.read.Add(int64(n)) - c.useful.Load()
	if n == 0 || over <= 0 || over <= int64(time.Since(c.opened).Seconds()*overheadRate) {
		return n, err
	}
	c.list.handler.ReportFlood(c.from)
	return 0, errors.Join(errFlood, c.Close()) // from which nothing can be read any more
}

// Close gives the place back.
func (c *conn) Close() error {
	c.list.mu.Lock()
	c.list.removeConnection(c)
	c.list.mu.Unlock()
	return c.Conn.Close()
}

var errPlaintext = errors.New("refusing to write plaintext")

// Write sends TLS records (RFC 8446, 5.1: content types 20 to 24) and nothing
// else. net/http answers a plaintext request in plaintext, from below TLS; with
// this, a plaintext client gets no answer.
func (c *conn) Write(b []byte) (int, error) {
	if len(b) > 0 && (b[0] < 20 || b[0] > 24) {
		return 0, errPlaintext
	}
	n, err := c.Conn.Write(b)
	c.useful.Add(int64(n) / overheadWritten)
	return n, err
}
