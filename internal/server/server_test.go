package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/config"
	"sallyport/internal/server"
	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/process"
	"sallyport/runner/store"
)

// patience is much longer than any step of these tests takes on an idle machine.
const patience = 30 * time.Second

// served is a server on a separate port.
type served struct {
	t       *testing.T
	server  *server.Server
	address string
	roots   *x509.CertPool
	stop    chan struct{}
	kill    chan struct{}
	ended   chan error
	idle    chan struct{} // receives when a connection becomes idle
}

// surface is a handler that allows a number of connections, from any address.
type surface struct {
	http.Handler

	left       atomic.Int64
	crowded    atomic.Int64
	flooded    atomic.Int64
	unreadable atomic.Int64
	lately     sync.Map // addresses
}

func (s *surface) AllowConnection(netip.Addr) bool   { return s.left.Add(-1) >= 0 }
func (s *surface) CountRejectedConnection()          { s.crowded.Add(1) }
func (s *surface) IsProvedHost(from netip.Addr) bool { _, ok := s.lately.Load(from); return ok }
func (s *surface) ReportFlood(netip.Addr)            { s.flooded.Add(1) }
func (s *surface) ReportUnreadable(netip.AddrPort)   { s.unreadable.Add(1) }

func (s *surface) ReportRefusedCertificate(netip.AddrPort, *x509.Certificate, error) {}

func serve(t *testing.T, limits config.Limits, h http.Handler) *served {
	t.Helper()
	all := &surface{Handler: h}
	all.left.Store(1 << 30)
	return serveSurface(t, limits, all)
}

// load reads a configuration with these limits, from a new folder.
func load(t *testing.T, limits config.Limits) (c *config.Watcher, dir string) {
	t.Helper()
	dir = t.TempDir()
	if _, err := certs.Dev(dir, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "sallyport.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
listen: "localhost:0"
state: state
tls: {cert: server.pem, key: server.key}
limits: {connections: %d, connections_per_address: %d}
drain: %s
hooks: {nothing: {dangerously_unauthenticated: true, command: [/bin/true]}}
`, limits.Connections, limits.ConnectionsPerAddress, patience), 0o600); err != nil {
		t.Fatal(err)
	}
	c, found := config.NewWatcher(file, config.Env{}, slog.New(slog.DiscardHandler))
	if c == nil {
		t.Fatal(found)
	}
	return c, dir
}

func serveSurface(t *testing.T, limits config.Limits, all *surface) *served {
	t.Helper()
	c, dir := load(t, limits)
	log := slog.New(slog.DiscardHandler)
	procs, err := process.NewLocal(filepath.Join(dir, "runs"), c.Hook, log)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), filepath.Join(dir, "state"), time.Now, log)
	if err != nil {
		t.Fatal(err)
	}
	run := runner.New(st, procs, c.Hook, time.Now, log)
	l, _, err := server.InheritListener(t.Context(), c.Get(), false)
	if err != nil {
		t.Fatal(err)
	}
	srv := server.New(l, c, all, run, nil, log)
	s := &served{
		t: t, server: srv, address: srv.Addr().String(), roots: x509.NewCertPool(),
		stop: make(chan struct{}), kill: make(chan struct{}), ended: make(chan error, 1), idle: make(chan struct{}, 100),
	}
	server.OnState(srv, func(_ net.Conn, state http.ConnState) {
		if state == http.StateIdle {
			select {
			case s.idle <- struct{}{}:
			default: // no test waits for so many
			}
		}
	})
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.roots.AppendCertsFromPEM(ca)
	go func() {
		_, err := srv.Serve(server.Signals{Stop: s.stop, Kill: s.kill})
		s.ended <- errors.Join(err, st.Close())
	}()
	t.Cleanup(func() {
		s.stopServer()
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *served) stopServer() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
}

// dial opens a connection without TLS.
func (s *served) dial() net.Conn {
	s.t.Helper()
	c, err := new(net.Dialer).DialContext(s.t.Context(), "tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *served) handshake(version uint16) (*tls.Conn, error) {
	s.t.Helper()
	c := tls.Client(s.dial(), &tls.Config{RootCAs: s.roots, ServerName: "localhost", MinVersion: version, MaxVersion: version})
	return c, c.HandshakeContext(s.t.Context())
}

func (s *served) tls() *tls.Conn {
	s.t.Helper()
	c, err := s.handshake(tls.VersionTLS13)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// closed reads until the server closes the connection, and returns what the server sent.
func (s *served) closed(c net.Conn) string {
	s.t.Helper()
	b, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Errorf("the server keeps the connection open; it sent %q", b)
	}
	return string(b)
}

func plenty() config.Limits { return config.Limits{Connections: 100, ConnectionsPerAddress: 100} }

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

// TestPlaintext_NoAnswer: a plaintext request gets no answer.
func TestPlaintext_NoAnswer(t *testing.T) {
	t.Parallel()
	s := serve(t, plenty(), http.HandlerFunc(hello))
	for _, text := range []string{
		"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "POST / HTTP/1.0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x16\x03", "SSH-2.0-OpenSSH\r\n", strings.Repeat("\x00", 100),
	} {
		c := s.dial()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		got := s.closed(c)
		if len(got) > 0 && got[0] != 21 { // a TLS alert only shows that this is TLS
			t.Errorf("%q was answered with %q", text, got)
		}
		if strings.HasPrefix(text, "GET") && got != "" {
			t.Errorf("a browser's request was answered with %q", got)
		}
	}
}

// TestConnections_SilentAreClosed: connections without traffic are closed.
func TestConnections_SilentAreClosed(t *testing.T) {
	t.Parallel()
	s := serve(t, plenty(), http.HandlerFunc(hello))
	silent := s.dial()
	half := s.dial()
	if _, err := half.Write([]byte{22, 3, 1, 2, 0, 1}); err != nil { // the beginning of a ClientHello
		t.Fatal(err)
	}
	idle := s.tls()
	header := s.tls()
	if _, err := io.WriteString(header, "GET / HTTP/1.1\r\nHost: localhost\r\nX-More: "); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]net.Conn{"silent": silent, "half a handshake": half, "no request": idle, "half a header": header} {
		if got := s.closed(c); strings.Contains(got, "200") {
			t.Errorf("%s: answered with %q", what, got)
		}
	}
}

// TestConnections_WithoutRequest: a connection counts as one without a request until its first request or its end, over
// HTTP/2 also after the preface.
func TestConnections_WithoutRequest(t *testing.T) {
	t.Parallel()
	s := serve(t, plenty(), http.HandlerFunc(hello))
	fresh := func(want int) {
		t.Helper()
		if n := server.Fresh(s.server); n != want {
			t.Errorf("%d connections without a request, want %d", n, want)
		}
	}
	first := s.tls()
	h2 := tls.Client(s.dial(), &tls.Config{RootCAs: s.roots, ServerName: "localhost", NextProtos: []string{"h2"}})
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	if _, err := io.WriteString(h2, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+settings); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(h2, make([]byte, 9)); err != nil { // the header of the server's SETTINGS
		t.Fatal(err)
	}
	fresh(2)
	if _, err := io.WriteString(first, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := s.closed(first); !strings.Contains(got, "hello") {
		t.Errorf("the first connection got %q", got)
	}
	fresh(1)
	_ = h2.Close()
	testenv.WaitUntil(t, "the end of the second connection", func() bool { return server.Fresh(s.server) == 0 })
}

// TestConnections_TooOften: an address that connects too often is closed before a handshake.
func TestConnections_TooOften(t *testing.T) {
	t.Parallel()
	all := &surface{Handler: http.HandlerFunc(hello)}
	all.left.Store(2)
	s := serveSurface(t, plenty(), all)
	for range 2 {
		c := s.tls()
		if err := c.Close(); err != nil { // the limit counts closed connections, too
			t.Fatal(err)
		}
	}
	if _, err := s.handshake(tls.VersionTLS13); err == nil {
		t.Error("a third connection got through")
	}
	if got := s.closed(s.dial()); got != "" {
		t.Errorf("a fourth one heard %q", got)
	}
	if all.crowded.Load() > 0 {
		t.Error("it is counted as too many at once")
	}
}

// TestTLS_OldVersion: old versions of TLS are refused.
func TestTLS_OldVersion(t *testing.T) {
	t.Parallel()
	s := serve(t, plenty(), http.HandlerFunc(hello))
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
		if _, err := s.handshake(version); err == nil {
			t.Errorf("%s was spoken", tls.VersionName(version))
		}
	}
}

// TestTLS_HybridKeyExchange: a connection that is recorded now must not be readable with a later quantum computer
// (ML-KEM, FIPS 203), if the client supports that.
func TestTLS_HybridKeyExchange(t *testing.T) {
	t.Parallel()
	s := serve(t, plenty(), http.HandlerFunc(hello))
	type ids = []tls.CurveID
	for why, row := range map[string]struct {
		client ids
		want   tls.CurveID
	}{
		"what Go's client offers":     {nil, tls.X25519MLKEM768},
		"in any order":                {ids{tls.CurveP256, tls.X25519MLKEM768}, tls.X25519MLKEM768},
		"a client without it":         {ids{tls.CurveP256}, tls.CurveP256},
		"nothing but it, and is fine": {ids{tls.X25519MLKEM768}, tls.X25519MLKEM768},
	} {
		c := tls.Client(s.dial(), &tls.Config{RootCAs: s.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, CurvePreferences: row.client})
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Errorf("%s: %v", why, err)
		} else if got := c.ConnectionState().CurveID; got != row.want {
			t.Errorf("%s: %v, want %v", why, got, row.want)
		}
	}
}

// TestServe_FinishesAnswers: an answer in progress is finished before the server ends.
func TestServe_FinishesAnswers(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}), make(chan struct{})
	s := serve(t, plenty(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-answer
		hello(w, r)
	}))
	c := s.tls()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-asked
	s.stopServer()
	// Once connections are refused, the server has begun to close.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		probe, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.address)
		if err != nil {
			break
		}
		_ = probe.Close()
		<-tick.C
	}
	close(answer)
	if got := s.closed(c); !strings.HasSuffix(got, "hello") {
		t.Errorf("answered with %q", got)
	}
}

func TestDescriptors_AreWarnedAbout(t *testing.T) {
	t.Parallel()
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	for connections, want := range map[int]bool{1: false, int(files.Cur): true} {
		var text strings.Builder
		server.WarnOfDescriptors(config.Limits{Connections: connections}, slog.New(slog.NewTextHandler(&text, nil)))
		if strings.Contains(text.String(), "limits.connections is above the limit of open files") != want {
			t.Errorf("%d connections, %d files: %q", connections, files.Cur, text.String())
		}
	}
}
