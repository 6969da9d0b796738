package handlers_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"sallyport/handlers"
)

// TestPanic_AfterHeaderAbortsAnswer has a handler panic in the middle of an
// answer: over HTTP/1.1 and HTTP/2 its reader must see that the rest is missing.
func TestPanic_AfterHeaderAbortsAnswer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := build(t, dir, `
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
metrics: {callers: [good]}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
hooks:
  start: {callers: [good], command: [/bin/true]}
`)
	half := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, "half of it")
		_ = make([]int, 0)[len(r.Method)] // panics
	})
	h.serve(handlers.New(h.config, h.runner, h.outputs, h.audit, h.check, half, h.clock.now, slog.New(slog.NewJSONHandler(h.log, nil))))
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{TLSClientConfig: h.clientTLS(), ForceAttemptHTTP2: protocol == "HTTP/2.0"}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.server.URL+"/metrics", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = h.get("/metrics").header
		res, err := transport.RoundTrip(r)
		if err != nil {
			continue // aborted before the header was sent, which is also correct
		}
		text, err := io.ReadAll(res.Body)
		if err == nil {
			t.Errorf("%s: the reader takes %q for a whole answer", res.Proto, text)
		}
		if res.Proto != protocol {
			t.Errorf("spoke %s, want %s", res.Proto, protocol)
		}
		_ = res.Body.Close()
		transport.CloseIdleConnections()
		if line := h.line(answer{header: res.Header}); !strings.Contains(fmt.Sprint(line["error"]), "index out of range") {
			t.Errorf("%s: the log does not say why: %v", protocol, line)
		}
	}
}
