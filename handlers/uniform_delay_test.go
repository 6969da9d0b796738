package handlers_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sallyport/handlers"
)

// TestUniformDelay_Least has a hook of many keys, so that the cost of a wrong signature would show in comparison with
// a missing one. A refusal never takes less than the span for the length of its body. BenchmarkRefusals reports
// whether it takes more.
func TestUniformDelay_Least(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var keys []string
	for i := range 40 {
		keys = append(keys, fmt.Sprintf("{id: k%d, file: good}", i))
	}
	h := build(t, dir, fmt.Sprintf(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {address: {rate: 1000/s, burst: 1000}, failures: {rate: 1/h, burst: 5}}
callers:
  good: {hmac: {scheme: github, keys: [%s]}}
hooks:
  start: {path: /start, callers: [good], command: [/bin/true]}
`, strings.Join(keys, ", ")))
	const length = 256 << 10
	span := 40 * length * 10 * time.Nanosecond // the span is at least this
	body := strings.Repeat("x", length)
	send := func(want int, method, path, body string, header http.Header) time.Duration {
		r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		r.Header = header
		w := httptest.NewRecorder()
		start := time.Now()
		h.server.Config.Handler.ServeHTTP(w, r)
		if took := time.Since(start); w.Code == want {
			return took
		}
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, w.Code, want, w.Body)
		return 0
	}
	for why, header := range map[string]http.Header{
		"missing": {}, "wrong": {"X-Hub-Signature-256": {"sha256=" + strings.Repeat("0", 64)}}, "malformed": {"X-Hub-Signature-256": {"x"}},
	} {
		if took := send(http.StatusUnauthorized, http.MethodPost, "/start", body, header); took < span {
			t.Errorf("%s: answered after %s, want %s at least", why, took, span)
		}
	}
	for range 2 {
		if took := send(http.StatusUnauthorized, http.MethodGet, "/runs", "", http.Header{}); took < 5*time.Millisecond {
			t.Errorf("the run API answered after %s", took)
		}
	}
	if took := send(http.StatusTooManyRequests, http.MethodPost, "/start", body, http.Header{}); took < span {
		t.Errorf("one too many was answered after %s, want %s at least", took, span)
	}
}

// TestUniformDelay_EndsEarly: the delay of a refusal ends when its sender disconnects or the server drains.
func TestUniformDelay_EndsEarly(t *testing.T) {
	t.Parallel()
	gone, leave := context.WithCancel(t.Context())
	leave()
	drains := make(chan struct{})
	close(drains)
	// Without that, each of these would last longer than the test.
	handlers.Wait(gone, nil, time.Hour)
	handlers.Wait(t.Context(), drains, time.Hour)
	handlers.Wait(t.Context(), nil, 0)
}
