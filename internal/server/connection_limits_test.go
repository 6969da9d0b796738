package server_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/internal/config"
	"sallyport/internal/netid"
	"sallyport/internal/server"
	"sallyport/internal/testenv"
)

// arrivals is a listener for connections from addresses that a test sets.
type arrivals chan net.Addr

func (a arrivals) Accept() (net.Conn, error) {
	from, ok := <-a
	if !ok {
		return nil, net.ErrClosed
	}
	c, _ := net.Pipe()
	return arrival{c, from}, nil
}

func (a arrivals) Close() error   { return nil }
func (a arrivals) Addr() net.Addr { return &net.TCPAddr{} }

type arrival struct {
	net.Conn

	from net.Addr
}

func (a arrival) RemoteAddr() net.Addr { return a.from }

// places is a listener. A test opens its connections one by one.
type places struct {
	t       *testing.T
	come    arrivals
	surface *surface
	limited net.Listener
	open    []net.Conn // all accepted connections, in order
}

func newPlaces(t *testing.T, limits config.Limits) *places {
	t.Helper()
	conf, _ := load(t, limits)
	p := &places{t: t, come: make(arrivals, 1000), surface: new(surface)}
	p.surface.left.Store(1 << 30)
	p.limited = server.Limit(p.come, conf, p.surface)
	t.Cleanup(func() {
		for _, c := range p.open {
			_ = c.Close()
		}
	})
	return p
}

// connect opens connections from these addresses, and returns how many were closed before TLS.
func (p *places) connect(from ...string) (refused int) {
	p.t.Helper()
	for _, a := range from {
		p.come <- &net.TCPAddr{IP: net.ParseIP(a)}
	}
	close(p.come)
	for range from {
		c, err := p.limited.Accept()
		if err != nil {
			refused++
			continue
		}
		p.open = append(p.open, c)
	}
	p.come = make(arrivals, 1000)
	server.SetListener(p.limited, p.come)
	return refused
}

// openAddresses returns the addresses of the connections that are still open, in order.
func (p *places) openAddresses() (all []string) {
	for _, c := range p.open {
		if err := c.SetReadDeadline(time.Unix(1, 0)); err == nil { // fails for a closed pipe
			all = append(all, netid.AddrPort(c.RemoteAddr()).Addr().String())
		}
	}
	return all
}

// count returns how many connections of a site are open.
func (p *places) count(prefix string) int {
	return len(slices.DeleteFunc(p.openAddresses(), func(a string) bool { return !strings.HasPrefix(a, prefix) }))
}

func addresses(form string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf(form, i+1))
	}
	return all
}

// TestPlaces_OfSite connects from many addresses of an IPv6 /48 or an IPv4 /24, and then from another site.
func TestPlaces_OfSite(t *testing.T) {
	t.Parallel()
	for why, row := range map[string]struct {
		limits config.Limits
		site   int // how many places ten addresses of one site get
	}{
		"half of all":                    {config.Limits{Connections: 8, ConnectionsPerAddress: 2}, 4},
		"what a single address may have": {config.Limits{Connections: 8, ConnectionsPerAddress: 6}, 6},
		"all, if one address may":        {config.Limits{Connections: 8, ConnectionsPerAddress: 8}, 8},
	} {
		for form, prefix := range map[string]string{"2001:db8:1:%x::1": "2001:db8:1:", "192.0.2.%d": "192.0.2."} {
			t.Run(why+" of "+prefix, func(t *testing.T) {
				t.Parallel()
				p := newPlaces(t, row.limits)
				if n := p.connect(addresses(form, 10)...); n > 0 || p.count(prefix) != row.site {
					t.Errorf("%d of the site are open, want %d; %d were refused", p.count(prefix), row.site, n)
				}
				if n := p.connect(addresses("198.51.%d.1", 3)...); n > 0 || p.count("198.51.") != 3 {
					t.Errorf("%d from elsewhere are open, want 3; %d were refused", p.count("198.51."), n)
				}
				if open := len(p.openAddresses()); open > row.limits.Connections {
					t.Errorf("%d are open, want %d at most", open, row.limits.Connections)
				}
			})
		}
	}
}

// TestPlaces_WhoIsClosed fills all places, and checks which connections are closed.
func TestPlaces_WhoIsClosed(t *testing.T) {
	t.Parallel()
	limits := config.Limits{Connections: 4, ConnectionsPerAddress: 4}
	for why, row := range map[string]struct {
		before []string
		lately []string // addresses that had a valid credential lately
		proved []int    // open connections that carry a request of a caller
		idle   []int    // open connections that have carried one
		comes  string
		want   []string // that are open at the end
	}{
		"the oldest of the largest site": {
			before: []string{"192.0.2.1", "198.51.100.1", "192.0.2.2", "198.51.101.1"}, comes: "203.0.113.1",
			want: []string{"198.51.100.1", "192.0.2.2", "198.51.101.1", "203.0.113.1"},
		},
		"the oldest of all, when no site has more than another": {
			before: []string{"198.51.100.1", "192.0.2.1", "198.51.101.1", "198.51.102.1"}, comes: "203.0.113.1",
			want: []string{"192.0.2.1", "198.51.101.1", "198.51.102.1", "203.0.113.1"},
		},
		"strangers before callers": {
			before: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1"}, idle: []int{0, 1, 2}, comes: "203.0.113.1",
			want: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "203.0.113.1"},
		},
		"strangers before a caller": {
			before: []string{"192.0.2.1", "192.0.2.1", "192.0.2.1", "198.51.100.1"}, lately: []string{"192.0.2.1"}, comes: "203.0.113.1",
			want: []string{"192.0.2.1", "192.0.2.1", "192.0.2.1", "203.0.113.1"},
		},
		"callers without a request": {
			before: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}, proved: []int{0, 1, 3}, idle: []int{2}, comes: "203.0.113.1",
			want: []string{"192.0.2.1", "192.0.2.2", "192.0.2.4", "203.0.113.1"},
		},
		"none, when all carry requests of callers": {
			before: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}, proved: []int{0, 1, 2, 3}, comes: "203.0.113.1",
			want: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"},
		},
	} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			p := newPlaces(t, limits)
			for _, a := range row.lately {
				p.surface.lately.Store(netip.MustParseAddr(a), true)
			}
			p.connect(row.before...)
			for _, i := range row.proved {
				server.Begin(p.open[i])
				p.open[i].(netid.Connection).Prove()
			}
			for _, i := range row.idle {
				server.Begin(p.open[i])
				p.open[i].(netid.Connection).Prove()
				server.End(p.open[i])
			}
			p.connect(row.comes)
			if got := p.openAddresses(); !slices.Equal(got, row.want) {
				t.Errorf("%v are open, want %v", got, row.want)
			}
			if n := p.surface.crowded.Load(); n != 1 {
				t.Errorf("%d were counted as too many", n)
			}
		})
	}
}

// TestPlaces_FullHostMakesRoom uses all places of one address: its next connection replaces its oldest one, and not one
// of another address.
func TestPlaces_FullHostMakesRoom(t *testing.T) {
	t.Parallel()
	s := serve(t, config.Limits{Connections: 100, ConnectionsPerAddress: 2}, http.HandlerFunc(hello))
	first := s.tls()
	s.tls()
	third := s.tls()
	if got := s.closed(first); got != "" {
		t.Errorf("the first heard %q", got)
	}
	if _, err := io.WriteString(third, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := s.closed(third); !strings.HasSuffix(got, "hello") {
		t.Errorf("the third was answered with %q", got)
	}
}

// dialFrom dials from an address of this machine.
func (s *served) dialFrom(address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	return d.DialContext(s.t.Context(), "tcp4", s.address)
}

// TestPlaces_SilentAddresses fills all places with silent connections from sixteen addresses, which reconnect whenever
// one is closed. Another address must still be served.
func TestPlaces_SilentAddresses(t *testing.T) {
	t.Parallel()
	const silent, each, deliveries = 16, 4, 200
	s := serve(t, config.Limits{Connections: silent * each, ConnectionsPerAddress: each}, http.HandlerFunc(hello))
	s.address = strings.Replace(s.address, "localhost", "127.0.0.1", 1)
	if probe, err := s.dialFrom("127.9.0.1"); err != nil {
		testenv.Skip(t, "silent addresses, because this machine has one loopback address") // Linux has them all
	} else {
		_ = probe.Close()
	}
	var all sync.WaitGroup
	stop := make(chan struct{})
	defer all.Wait()
	defer close(stop)
	var held sync.WaitGroup
	held.Add(silent * each)
	for i := range silent * each {
		all.Go(func() { s.keepOpen(fmt.Sprintf("127.%d.0.1", 10+i%silent), stop, sync.OnceFunc(held.Done)) })
	}
	held.Wait()
	failed := 0
	for range deliveries {
		if err := s.requestFrom("127.9.0.1"); err != nil {
			t.Log(err)
			failed++
		}
	}
	if failed*100 >= deliveries {
		t.Errorf("%d of %d deliveries failed", failed, deliveries)
	}
}

// keepOpen keeps a connection open until stop, and opens another when it is closed, as often as the default limit of an
// address allows for its four connections.
func (s *served) keepOpen(from string, stop <-chan struct{}, opened func()) {
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		if c, err := s.dialFrom(from); err == nil {
			opened()
			closed := make(chan struct{})
			go func() { _, _ = io.Copy(io.Discard, c); close(closed) }()
			select {
			case <-closed:
			case <-stop:
			}
			_ = c.Close()
		}
		select {
		case <-stop:
			return
		case <-again.C:
		}
	}
}

// requestFrom sends one request on a new connection.
func (s *served) requestFrom(from string) error {
	plain, err := s.dialFrom(from)
	if err != nil {
		return err
	}
	c := tls.Client(plain, &tls.Config{RootCAs: s.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13})
	defer c.Close() //nolint:errcheck // it has been read to its end
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	text, err := io.ReadAll(c)
	if err == nil && !strings.HasSuffix(string(text), "hello") {
		err = fmt.Errorf("answered with %q", text)
	}
	return err
}

// TestAnswers_LastOne counts the answers that a connection still gets.
func TestAnswers_LastOne(t *testing.T) {
	t.Parallel()
	for why, row := range map[string]struct {
		proved bool
		status int
		age    time.Duration
		want   int // answers, of 300 at most
	}{
		"refusals of a stranger": {status: http.StatusNotFound, want: 20},
		"an accepted stranger":   {status: http.StatusOK, want: 300},
		"an old stranger":        {status: http.StatusOK, age: time.Minute, want: 1},
		"refusals of a caller":   {proved: true, status: http.StatusTooManyRequests, want: 200},
		"an accepted caller":     {proved: true, status: http.StatusOK, age: time.Hour, want: 300},
	} {
		p := newPlaces(t, plenty())
		p.connect("192.0.2.1")
		c := p.open[0].(netid.Connection)
		if row.proved {
			c.Prove()
		}
		server.Age(p.open[0], row.age)
		n := 1
		for n < 300 && !c.Answer(row.status) {
			n++
		}
		if n != row.want {
			t.Errorf("%s: %d answers, want %d", why, n, row.want)
		}
	}
}

// TestUnreadable_IsReported sends requests that net/http answers itself.
func TestUnreadable_IsReported(t *testing.T) {
	t.Parallel()
	for why, text := range map[string]string{
		"malformed":         "GET / HTTP/1.1\r\nHost: localhost\r\nnot a header\r\n\r\n",
		"a header too long": "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"half a header":     "GET / HTTP/1.1\r\nHost:",
		"not HTTP":          "hello there\r\n\r\n",
	} {
		for _, before := range []int{0, 1, 2} {
			t.Run(fmt.Sprintf("%s after %d requests", why, before), func(t *testing.T) {
				t.Parallel()
				testUnreadable(t, text, before)
			})
		}
	}
}

func testUnreadable(t *testing.T, text string, before int) {
	t.Helper()
	all := &surface{Handler: http.HandlerFunc(hello)}
	all.left.Store(1 << 30)
	s := serveSurface(t, plenty(), all)
	c := s.tls()
	for range before { // these are answered, and not reported
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		for got := ""; !strings.HasSuffix(got, "hello"); {
			b := make([]byte, 1000)
			n, err := c.Read(b)
			if got += string(b[:n]); err != nil {
				t.Fatal(err)
			}
		}
		<-s.idle // bytes before that belong to the request
	}
	_, _ = io.WriteString(c, text) // the server may close before all of it is sent
	if err := c.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Log(err)
	}
	_, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the server keeps the connection open")
	}
	s.stopServer()
	s.ended <- <-s.ended // then every connection is closed
	if n := all.unreadable.Load(); n != 1 {
		t.Errorf("%d were reported, want 1", n)
	}
}

// TestReadable_IsNotReported sends requests in ordinary ways.
func TestReadable_IsNotReported(t *testing.T) {
	t.Parallel()
	all := &surface{Handler: http.HandlerFunc(hello)}
	all.left.Store(1 << 30)
	s := serveSurface(t, plenty(), all)
	for _, h2 := range []bool{false, true} {
		transport := &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: s.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13},
			ForceAttemptHTTP2: h2,
		}
		for i := range 6 {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+s.address, strings.NewReader(strings.Repeat("x", i*1000)))
			if err != nil {
				t.Fatal(err)
			}
			res, err := transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if i == 3 {
				transport.CloseIdleConnections()
			}
		}
		transport.CloseIdleConnections()
	}
	s.stopServer()
	s.ended <- <-s.ended // then every connection is closed
	if n := all.unreadable.Load(); n > 0 {
		t.Errorf("%d were reported", n)
	}
}
