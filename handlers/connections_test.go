package handlers_test

import (
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

// TestConnections_OwnBudget: the connections of an address have a separate limit from its requests.
func TestConnections_OwnBudget(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "address: {rate: 1/m, burst: 3}")
	handler := h.newHandler(slog.New(slog.DiscardHandler))
	connect := func(text string, want bool) {
		t.Helper()
		if handler.AllowConnection(netip.MustParseAddr(text)) != want {
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
		connect("2001:db8::"+string(rune('1'+i)), i < 3) // the network of one host
	}
	// The limit of its requests is not affected.
	for i := range 4 {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz", http.NoBody)
		r.RemoteAddr = "192.0.2.1:1"
		handler.ServeHTTP(w, r)
		if (w.Code == http.StatusOK) != (i < 3) {
			t.Errorf("request %d: status %d", i+1, w.Code)
		}
	}
	h.clock.advance(time.Minute)
	connect("192.0.2.1", true)
	connect("192.0.2.1", false)

	// A changed limit takes effect at once, and an unchanged one keeps what was spent.
	handler.Update()
	connect("192.0.2.1", false)
	reload(t, h, "address: {rate: 1/m, burst: 3}", "address: {rate: 1/m, burst: 4}")
	handler.Update()
	for i := range 5 {
		connect("192.0.2.1", i < 4)
	}
}

// TestAddressLimits_Size: all tables of addresses together take at most 4 MiB.
func TestAddressLimits_Size(t *testing.T) {
	if handlers.Tables > 4<<20 {
		t.Errorf("%d bytes", handlers.Tables)
	}
}

// reload puts another configuration text into effect.
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

// TestAddressLimit_ParallelFirstUse sends many requests of one address at once to an unused limiter: together they
// must not get more than one burst.
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

// TestFlooded_CostsConnections reports a flood from an address.
func TestFlooded_CostsConnections(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "address: {rate: 1/m, burst: 3}")
	handler := h.newHandler(slog.New(slog.DiscardHandler))
	from, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if !handler.AllowConnection(from) {
		t.Fatal("it cannot connect at all")
	}
	handler.ReportFlood(from) // leaves the address one token below zero
	h.clock.advance(time.Minute)
	if handler.AllowConnection(from) {
		t.Error("after a flood it connects as if nothing had been")
	}
	h.clock.advance(time.Minute)
	if !handler.AllowConnection(from) || !handler.AllowConnection(other) {
		t.Error("it, or another address, cannot connect when the flood is paid for")
	}

	// An attacker that shares an address with a caller cannot make that address pay.
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/start", strings.NewReader("1"))
	r.Header, r.RemoteAddr = h.by("good", "1").header, "192.0.2.3:1"
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	handler.ReportFlood(netip.MustParseAddr("192.0.2.3"))
	if !handler.AllowConnection(netip.MustParseAddr("192.0.2.3")) {
		t.Errorf("an address from which a delivery was accepted (%d) pays for a flood", w.Code)
	}
}

// TestUnreadable_CostsFailures sends requests that net/http refuses: the log has as many of them as the address has
// failures.
func TestUnreadable_CostsFailures(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "failures: {rate: 1/h, burst: 2}")
	handler := h.newHandler(slog.New(slog.NewJSONHandler(h.log, nil)))
	for range 5 {
		handler.ReportUnreadable(netip.MustParseAddrPort("192.0.2.1:5"))
	}
	if n := strings.Count(h.log.String(), `"msg":"request not read","address":"192.0.2.1:5"`); n != 2 {
		t.Errorf("%d lines, want 2", n)
	}
}

// TestProved_ByAcceptedDeliveryOnly checks after each delivery whether its address counts as one with an accepted
// delivery.
func TestProved_ByAcceptedDeliveryOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := build(t, dir, `
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
hooks:
  start: {path: /start, callers: [good], command: [/bin/true]}
  open: {path: /open, dangerously_unauthenticated: true, command: [/bin/true]}
`)
	handler := h.newHandler(slog.New(slog.DiscardHandler))
	send := func(from string, d delivery, want int) bool {
		t.Helper()
		path := d.path
		if path == "" {
			path = "/start"
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(d.body))
		r.Header, r.RemoteAddr = d.header, from+":1"
		if r.Header == nil {
			r.Header = http.Header{}
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: answered %d, want %d: %s", from, w.Code, want, w.Body)
		}
		return handler.IsProvedHost(netip.MustParseAddr(from))
	}
	good := h.by("good", "1")
	if send("192.0.2.1", h.by("nobody", "1"), http.StatusUnauthorized) {
		t.Error("known by a refused credential")
	}
	if send("192.0.2.2", delivery{path: "/open"}, http.StatusOK) {
		t.Error("known by a hook without authentication")
	}
	if !send("192.0.2.3", good, http.StatusOK) {
		t.Error("not known by a delivery that was accepted")
	}
	if send("192.0.2.4", good, http.StatusOK) {
		t.Error("known by a replay, which needs no key")
	}
	h.clock.advance(24 * time.Hour)
	if handler.IsProvedHost(netip.MustParseAddr("192.0.2.3")) {
		t.Error("known for longer than a day")
	}
}
