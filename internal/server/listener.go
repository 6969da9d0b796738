package server

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"sallyport/internal/live"
)

// listener bounds how many connections there are, in all and from one address.
// What is over the bound is closed before a handshake could cost anything.
type listener struct {
	net.Listener
	conf *live.Configuration

	mu   sync.Mutex
	open map[netip.Addr]int
	sum  int
}

func limit(l net.Listener, conf *live.Configuration) *listener {
	return &listener{Listener: l, conf: conf, open: map[netip.Addr]int{}}
}

// Accept returns the next connection that is within the bounds.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := address(c)
		if !l.take(from) {
			_ = c.Close() // it was never used: there is nothing to lose
			continue
		}
		return &conn{Conn: c, closed: sync.OnceFunc(func() { l.give(from) })}, nil
	}
}

func (l *listener) take(from netip.Addr) bool {
	most := &l.conf.Get().Limits
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sum >= most.Connections || l.open[from] >= most.ConnectionsPerAddress {
		return false
	}
	l.sum++
	l.open[from]++
	return true
}

func (l *listener) give(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum--
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
}

// address is an IPv4 address, or the /64 that one IPv6 host can fill at will.
func address(c net.Conn) netip.Addr {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	a := tcp.AddrPort().Addr().Unmap().WithZone("")
	if p, err := a.Prefix(64); err == nil && a.Is6() {
		return p.Addr()
	}
	return a
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
