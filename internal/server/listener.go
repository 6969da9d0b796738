package server

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"sallyport/internal/live"
	"sallyport/internal/peer"
)

// listener bounds how many connections there are, in all and from one address,
// and how often one may connect. What is over the bound is closed before a
// handshake could cost anything.
type listener struct {
	net.Listener
	conf    *live.Configuration
	surface Surface

	mu    sync.Mutex
	sum   int
	hosts map[netip.Addr]int
	sites map[netip.Addr]int
}

func limit(l net.Listener, conf *live.Configuration, s Surface) *listener {
	return &listener{Listener: l, conf: conf, surface: s, hosts: map[netip.Addr]int{}, sites: map[netip.Addr]int{}}
}

// Accept returns the next connection that is within the bounds.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := peer.AddrPort(c.RemoteAddr()).Addr()
		if !l.surface.Connecting(from) {
			_ = c.Close() // it was never used: there is nothing to lose
			continue
		}
		if !l.take(from) {
			l.surface.Crowded()
			_ = c.Close()
			continue
		}
		return &conn{Conn: c, closed: sync.OnceFunc(func() { l.give(from) })}, nil
	}
}

// take lets one site have half of all connections at most, or what a single
// address of it may have if that is more.
func (l *listener) take(from netip.Addr) bool {
	most := &l.conf.Get().Limits
	host, site := peer.Host(from), peer.Site(from)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sum >= most.Connections || l.hosts[host] >= most.ConnectionsPerAddress ||
		l.sites[site] >= max(most.Connections/2, most.ConnectionsPerAddress) {
		return false
	}
	l.sum++
	l.hosts[host]++
	l.sites[site]++
	return true
}

func (l *listener) give(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum--
	less(l.hosts, peer.Host(from))
	less(l.sites, peer.Site(from))
}

func less(open map[netip.Addr]int, a netip.Addr) {
	if open[a]--; open[a] == 0 {
		delete(open, a)
	}
}

// conn is a connection that gives its place back and carries nothing but TLS.
type conn struct {
	net.Conn
	closed func()
}

// Close gives the place back.
func (c *conn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

var errPlaintext = errors.New("refusing to write plaintext")

// Write sends TLS records (RFC 8446, 5.1: content types 20 to 24) and nothing
// else. net/http answers a plaintext request in plaintext, from below TLS; with
// this, who speaks plaintext hears nothing.
func (c *conn) Write(b []byte) (int, error) {
	if len(b) > 0 && (b[0] < 20 || b[0] > 24) {
		return 0, errPlaintext
	}
	return c.Conn.Write(b)
}
