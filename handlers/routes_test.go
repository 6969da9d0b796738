package handlers_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"sallyport/handlers"
	"sallyport/internal/audit"
	"sallyport/internal/client"
	"sallyport/runner"
	"sallyport/runner/store"
)

// TestProblem_FaultHidesText: the answer for an internal error does not contain its text.
func TestProblem_FaultHidesText(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	// There is no runner, so code that uses it dereferences a nil pointer.
	h.serve(handlers.New(h.config, nil, nil, h.audit, h.check, nil, h.clock.now, slog.New(slog.NewJSONHandler(h.log, nil))))
	a := h.answers(http.StatusInternalServerError, h.by("good", "1"))
	if a.header.Get("Content-Type") != "application/problem+json" || !strings.Contains(a.body, "urn:sallyport:internal") {
		t.Errorf("no problem: %v %s", a.header, a.body)
	}
	id := a.header.Get("X-Request-Id")
	if id == "" || !strings.Contains(a.body, id) {
		t.Errorf("no request id: %v %s", a.header, a.body)
	}
	for _, inside := range []string{"nil", "pointer", "panic", "goroutine", ".go"} {
		if strings.Contains(a.body, inside) {
			t.Errorf("%q is in the answer: %s", inside, a.body)
		}
	}
	if line := h.line(a); line["level"] != "ERROR" || !strings.Contains(fmt.Sprint(line["error"]), "nil pointer") {
		t.Errorf("the operator does not read why: %v", line)
	}
	if log := h.log.String(); !strings.Contains(log, `"msg":"fault","request":"`+id) || !strings.Contains(log, "runner.go") {
		t.Error("the operator does not read where")
	}
	// The panic ends one request and not the server.
	h.answers(http.StatusOK, delivery{method: http.MethodGet, path: "/healthz"})
}

// TestBody_SlowBodyLeavesTime serves with a write deadline that has passed when the body is complete.
func TestBody_SlowBodyLeavesTime(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	log := slog.New(slog.NewJSONHandler(h.log, nil))
	all := h.newHandler(log)
	h.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Unix(1, 0)); err != nil {
			t.Error(err)
		}
		all.ServeHTTP(w, r)
	}))
	h.answers(http.StatusOK, h.by("good", "1"))
}

// manyHooks returns a configuration of n hooks, h0, h1, and so on.
func manyHooks(n int) string {
	var b strings.Builder
	b.WriteString(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {address: {rate: 1000000/s, burst: 1000000}, caller: {rate: 1000000/s, burst: 1000000}}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
hooks:
`)
	for i := range n {
		_, _ = fmt.Fprintf(&b, "  h%d: {callers: [good], command: [/bin/echo, \"{x}\"], params: {x: {from: query.x, type: int}}}\n", i)
	}
	return b.String()
}

// TestRoutes_TenThousandHooks: the last of ten thousand hooks answers like the only one.
func TestRoutes_TenThousandHooks(t *testing.T) {
	t.Parallel()
	h := build(t, t.TempDir(), manyHooks(10_000))
	if len(h.config.Get().Hooks) != 10_000 {
		t.Fatalf("%d hooks", len(h.config.Get().Hooks))
	}
	h.starts(h.by("good", "1").to("/hooks/h9999?x=1"))
	h.starts(h.by("good", "1").to("/hooks/h0?x=1"))
	if a := h.answers(http.StatusUnprocessableEntity, h.by("good", "2").to("/hooks/h9999?x=a")); h.line(a)["hook"] != "h9999" {
		t.Errorf("the log has %v", h.line(a))
	}
	h.answers(http.StatusNotFound, h.by("good", "1").to("/hooks/h10000?x=1"))
}

func BenchmarkHooks1(b *testing.B)     { benchmarkHooks(b, 1) }
func BenchmarkHooks10000(b *testing.B) { benchmarkHooks(b, 10_000) }

// benchmarkHooks sends deliveries to the last hook. They pass all steps up to the parameters, which are refused, so
// that no process adds to the time.
func benchmarkHooks(b *testing.B, n int) {
	b.Helper()
	c := load(b, b.TempDir(), manyHooks(n))
	if err := os.Mkdir(c.Get().State, 0o700); err != nil {
		b.Fatal(err)
	}
	trail, err := audit.Open(c.Get().Audit, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer trail.Close() //nolint:errcheck // of no use any more
	st, err := store.Open(b.Context(), c.Get().State, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()                                                            //nolint:errcheck // of no use any more
	run := runner.New(st, nil, c.Hook, time.Now, slog.New(slog.DiscardHandler)) // the runner starts nothing
	handler := handlers.New(c, run, nil, trail, nil, nil, time.Now, slog.New(slog.DiscardHandler))
	sign, err := client.HMAC("github", []byte(goodKey))
	if err != nil {
		b.Fatal(err)
	}
	signed, err := sign("", []byte("1"), time.Now())
	if err != nil {
		b.Fatal(err)
	}
	target := fmt.Sprintf("/hooks/h%d?x=a", n-1)
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, target, strings.NewReader("1"))
		r.Header = signed.Clone()
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusUnprocessableEntity {
			b.Fatalf("status %d: %s", w.Code, w.Body)
		}
	}
}
