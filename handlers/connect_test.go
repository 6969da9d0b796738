package handlers_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/handlers"
	"sallyport/internal/config"
)

func TestConnectionsOfAnAddressAreBoundedApartFromItsRequests(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "address: {rate: 1/m, burst: 3}")
	surface := handlers.New(h.config, h.runner, h.outputs, h.audit, nil, h.clock.now, slog.New(slog.DiscardHandler))
	connect := func(text string, want bool) {
		t.Helper()
		if surface.Connecting(netip.MustParseAddr(text)) != want {
			t.Errorf("%s may connect: %v", text, !want)
		}
	}
	for range 3 {
		connect("192.0.2.1", true)
	}
	connect("192.0.2.1", false)
	connect("::ffff:192.0.2.1", false)
	connect("192.0.2.2", true)
	for i := range 4 {
		connect("2001:db8::"+string(rune('1'+i)), i < 3) // one host's own network
	}
	// Its requests are as many as ever.
	for i := range 4 {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz", http.NoBody)
		r.RemoteAddr = "192.0.2.1:1"
		surface.ServeHTTP(w, r)
		if (w.Code == http.StatusOK) != (i < 3) {
			t.Errorf("request %d: status %d", i+1, w.Code)
		}
	}
	h.clock.move(time.Minute)
	connect("192.0.2.1", true)
	connect("192.0.2.1", false)

	// A limit that is changed counts at once, and one that is not goes on as it is.
	surface.Update()
	connect("192.0.2.1", false)
	reload(t, h, "address: {rate: 1/m, burst: 3}", "address: {rate: 1/m, burst: 4}")
	surface.Update()
	for i := range 5 {
		connect("192.0.2.1", i < 4)
	}
}

func TestAllTablesOfAddressesTakeFourMiBAtMost(t *testing.T) {
	if handlers.Tables > 4<<20 {
		t.Errorf("%d bytes", handlers.Tables)
	}
}

// reload has another text of the file be in force.
func reload(t *testing.T, h *house, old, new string) {
	t.Helper()
	name := h.dir + "/sallyport.yaml"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(text), old, new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	hup, done := make(chan os.Signal, 1), make(chan struct{})
	hup <- nil
	go h.config.Watch(t.Context(), hup, func(*config.Config) error { return nil }, func(*config.Config) { close(done) })
	<-done
}

// TestOneSiteCannotHoldAllRoomForBodies has bodies stall that are large enough for
// half of the room, from two networks of one site and from another site.
func TestOneSiteCannotHoldAllRoomForBodies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := build(t, dir, `
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
hooks:
  large: {path: /large, callers: [good], command: [/bin/true], body: {max: 16MiB, timeout: 1m}}
`)
	surface := handlers.New(h.config, h.runner, h.outputs, h.audit, nil, h.clock.now, slog.New(slog.DiscardHandler))
	// upload sends what takes the room of a whole body, and returns the status; 0
	// while the server waits for more.
	upload := func(from string) (status int, end func()) {
		body, send := io.Pipe()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/large", body)
		r.RemoteAddr, r.ContentLength = "["+from+"]:1", 16<<20
		answered := make(chan int, 1)
		go func() {
			w := httptest.NewRecorder()
			surface.ServeHTTP(w, r)
			_ = body.Close()
			answered <- w.Code
		}()
		for range 3 << 20 / (64 << 10) {
			if _, err := send.Write(make([]byte, 64<<10)); err != nil {
				return <-answered, func() {}
			}
		}
		return 0, func() { _ = send.CloseWithError(io.ErrUnexpectedEOF); <-answered }
	}
	held, end := upload("2001:db8:1:1::1")
	neighbour, _ := upload("2001:db8:1:2::1")
	other, endOther := upload("2001:db8:2:1::1")
	if held != 0 || neighbour != http.StatusServiceUnavailable || other != 0 {
		t.Errorf("answered %d, %d and %d, want 0, 503 and 0", held, neighbour, other)
	}
	end()
	endOther()
	again, end := upload("2001:db8:1:2::1")
	if again != 0 {
		t.Errorf("room that is free again is refused: %d", again)
	}
	end()
}

// TestAddressLimit_ParallelFirstUse has many requests of one address arrive at
// an unused limiter at once: they must not get more than one burst.
func TestAddressLimit_ParallelFirstUse(t *testing.T) {
	t.Parallel()
	const burst, goroutines, each = 100, 8, 100
	now := time.Now()
	for range 300 {
		allow := handlers.NewAddressLimit(config.Limit{Rate: 1, Burst: burst})
		var allowed atomic.Int64
		var all sync.WaitGroup
		start := make(chan struct{})
		for range goroutines {
			all.Go(func() {
				<-start
				for range each {
					if allow(netip.MustParseAddr("192.0.2.1"), now) {
						allowed.Add(1)
					}
				}
			})
		}
		close(start)
		all.Wait()
		if n := allowed.Load(); n != burst {
			t.Fatalf("%d requests were allowed at once, want %d", n, burst)
		}
	}
}
