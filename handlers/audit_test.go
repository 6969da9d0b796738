package handlers_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/internal/audit"
)

// decision waits for the audit line of an answer. It removes what the test knows already: where the request came
// from, and its number.
func (h *house) decision(a answer, d audit.Decision) audit.Line {
	h.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 2000 {
		if found := h.audited(audit.Line{Decision: d, Request: a.header.Get("X-Request-Id")}); len(found) > 0 {
			line := found[0]
			if len(found) > 1 || !strings.HasPrefix(line.Address, "127.0.0.1:") && !strings.HasPrefix(line.Address, "[::1]:") || !line.Time.Equal(h.clock.now()) {
				h.t.Errorf("%d lines: %+v", len(found), line)
			}
			line.Seq, line.Time, line.Request, line.Address = 0, time.Time{}, "", ""
			return line
		}
		<-tick.C
	}
	h.t.Fatalf("no line says %s of %v", d, a.header)
	return audit.Line{}
}

func runOf(t *testing.T, a answer) string {
	t.Helper()
	var body struct {
		ID  string
		Run struct{ ID string }
	}
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || body.ID+body.Run.ID == "" {
		t.Fatalf("no run in %s", a.body)
	}
	return body.ID + body.Run.ID
}

// TestAudit_EveryDecision has a row for each possible decision.
func TestAudit_EveryDecision(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "failures: {rate: 1/h, burst: 6}, caller: {rate: 1/h, burst: 100}, address: {rate: 1/h, burst: 100}")
	is := func(a answer, want audit.Line) {
		h.t.Helper()
		if got := h.decision(a, want.Decision); got != want {
			h.t.Errorf("got\n%+v\nwant\n%+v", got, want)
		}
	}
	good := audit.Line{Caller: "good", Kind: "hmac", Key: "1", Hook: "start", Method: "POST", Path: "/start"}
	refused := func(like audit.Line, status int, reason string) audit.Line {
		like.Decision, like.Status, like.Reason = audit.Refused, status, reason
		return like
	}
	a, b := audit.Digest(map[string]string{"x": "a"}), audit.Digest(map[string]string{"x": "b"})

	// Allowed and replayed deliveries.
	h.holdCommands()
	first := h.answers(http.StatusOK, h.by("good", "1").to("/start?x=b"))
	run := runOf(t, first)
	is(first, audit.Line{Decision: audit.Allowed, Action: "start", Caller: "good", Kind: "hmac", Key: "1", Hook: "start", Params: b, Run: run})
	want := good
	want.Decision, want.Status, want.Params, want.Run, want.Reason = audit.Replayed, 200, b, run, "replayed"
	is(h.answers(http.StatusOK, h.by("good", "1").to("/start?x=b")), want)

	// A busy flight, and a one-time token that is sent with another body.
	want = refused(good, 503, "busy")
	want.Params, want.Run = a, run
	is(h.answers(http.StatusServiceUnavailable, h.by("good", "2")), want)
	h.releaseCommands()
	h.finish(h.by("good", "1").to("/start?x=b"))
	token := h.by("ci", "")
	h.starts(token)
	token.body = "another"
	want = refused(audit.Line{Caller: "ci", Kind: "jwt", Key: "1", Hook: "start", Method: "POST", Path: "/start"}, 401,
		"one-time credential used again with another body")
	is(h.answers(http.StatusUnauthorized, token), want)

	// Problems with the parameters, the rights and the request.
	is(h.answers(http.StatusUnprocessableEntity, h.by("good", "3").to("/start?x=c")), refused(good, 422, "parameter x is not one of the allowed values"))
	is(h.answers(http.StatusBadRequest, h.by("good", "3").to("/start?x=%zz")), refused(good, 400, "malformed"))
	is(h.answers(http.StatusForbidden, h.by("guest", "3")), refused(
		audit.Line{Caller: "guest", Kind: "hmac", Key: "1", Hook: "start", Method: "POST", Path: "/start"}, 403, "caller guest may not start this hook"))
	large := h.by("good", strings.Repeat("1", 2000))
	is(h.answers(http.StatusRequestEntityTooLarge, large), refused(audit.Line{Hook: "start", Method: "POST", Path: "/start"}, 413, "too-large"))

	// Requests for runs.
	get := h.by("guest", "")
	get.method = http.MethodGet
	is(h.answers(http.StatusNotFound, get.to("/runs/"+run)), refused(
		audit.Line{Caller: "guest", Kind: "hmac", Key: "1", Method: "GET", Path: "/runs/" + run}, 404, "not-found"))
	remove := h.asks(http.MethodDelete, "/runs/"+run, "delete")
	is(h.answers(http.StatusOK, remove), audit.Line{
		Decision: audit.Allowed, Action: "cancel", Caller: "ci", Kind: "jwt", Key: "1", Hook: "start", Run: run,
	})
	again := h.answers(http.StatusOK, h.asks(http.MethodPost, "/runs/"+run+"/rerun", "rerun"))
	is(again, audit.Line{
		Decision: audit.Allowed, Action: "start", Caller: "ci", Kind: "jwt", Key: "1", Hook: "start", Params: b, Run: runOf(t, again), RerunOf: run,
	})

	// Refused credentials, until there were too many.
	is(h.answers(http.StatusUnauthorized, delivery{}), refused(
		audit.Line{Hook: "start", Method: "POST", Path: "/start"}, 401, "absent credential: the request carries no credential (header or certificate) that any caller uses"))
	wrong := h.answers(http.StatusUnauthorized, h.by("nobody", "4"))
	if line := h.decision(wrong, audit.Refused); line.Kind != "hmac" || line.Caller != "" || !strings.HasPrefix(line.Reason, "wrong credential: ") {
		t.Errorf("got %+v", line)
	}
	stale := h.by("guest", "5")
	h.clock.advance(10 * time.Minute)
	if line := h.decision(h.answers(http.StatusUnauthorized, stale), audit.Refused); line.Caller != "guest" || line.Key != "1" || !strings.HasPrefix(line.Reason, "stale credential: ") {
		t.Errorf("got %+v", line)
	}
	is(h.answers(http.StatusTooManyRequests, delivery{}), refused(audit.Line{Hook: "start", Method: "POST", Path: "/start"}, 429, "limit by failures"))

	// A draining server.
	h.runner.Drain(t.Context())
	want = refused(good, 503, "draining")
	want.Params = a
	is(h.answers(http.StatusServiceUnavailable, h.by("good", "6")), want)
}

// TestAudit_NoLineForReads: reads and requests of scanners have no lines.
func TestAudit_NoLineForReads(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	get := h.by("good", "")
	get.method = http.MethodGet
	h.answers(http.StatusOK, get.to("/runs"))
	h.answers(http.StatusOK, get.to("/healthz"))
	h.answers(http.StatusOK, get.to("/readyz"))
	// The log line is written after the audit line.
	h.line(h.answers(http.StatusNotFound, delivery{path: "/wp-login.php"}))
	h.line(h.answers(http.StatusMethodNotAllowed, delivery{method: http.MethodPut}))
	if err := h.audit.Close(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []audit.Decision{audit.Allowed, audit.Refused, audit.Replayed, audit.Void} {
		if lines := h.audited(audit.Line{Decision: d}); len(lines) > 0 {
			t.Errorf("there is %+v", lines)
		}
	}
	counted := map[string]int{}
	for _, line := range h.audited(audit.Line{}) {
		if line.Event == audit.Suppressed {
			counted[line.Reason] += line.Count
		}
	}
	if len(counted) != 2 || counted["not-found"] != 1 || counted["method-not-allowed"] != 1 {
		t.Errorf("counted %v", counted)
	}
}

// TestAudit_FloodIsCounted: a flood from many addresses is counted, because the limits by address do not see it.
func TestAudit_FloodIsCounted(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	const n = 5000
	var flood sync.WaitGroup // at once, because each answer is delayed
	for i := range n {
		flood.Go(func() {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/start", strings.NewReader("x"))
			r.RemoteAddr = fmt.Sprintf("[2001:db8:%x::1]:1", i)
			h.server.Config.Handler.ServeHTTP(httptest.NewRecorder(), r)
		})
	}
	flood.Wait()
	h.starts(h.by("good", "1")) // a delivery is accepted during the flood
	if err := h.audit.Close(); err != nil {
		t.Fatal(err)
	}
	refused, counted := len(h.audited(audit.Line{Decision: audit.Refused})), 0
	for _, line := range h.audited(audit.Line{}) {
		counted += line.Count
	}
	if refused+counted != n || refused > 300 || len(h.audited(audit.Line{Decision: audit.Allowed})) != 1 {
		t.Errorf("of %d, %d have lines and %d are counted", n, refused, counted)
	}
}

// TestAudit_FailureStopsStarts: without the audit log nothing starts, and the server is not ready.
func TestAudit_FailureStopsStarts(t *testing.T) {
	t.Parallel()
	h := newHouse(t, unlimited)
	h.holdCommands()
	run := runOf(t, h.answers(http.StatusOK, h.by("good", "0")))
	away := filepath.Join(h.dir, "away")
	if err := os.Rename(h.config.Get().State+"/audit", away); err != nil {
		t.Fatal(err)
	}
	for _, d := range []delivery{
		h.by("good", "1").to("/start?x=b"), h.asks(http.MethodPost, "/runs/"+run+"/rerun", "rerun"), h.asks(http.MethodDelete, "/runs/"+run, "delete"),
	} {
		a := h.answers(http.StatusServiceUnavailable, d)
		if !strings.Contains(a.body, "urn:sallyport:") {
			t.Errorf("got %s", a.body)
		}
	}
	h.releaseCommands()
	h.finish(h.by("good", "0")) // a run that was in progress continues
	a := h.answers(http.StatusServiceUnavailable, h.by("good", "1"))
	if !strings.Contains(a.body, "urn:sallyport:unavailable") || a.header.Get("Retry-After") == "" {
		t.Errorf("got %v %s", a.header, a.body)
	}
	h.answers(http.StatusServiceUnavailable, delivery{method: http.MethodGet, path: "/readyz"})
	h.answers(http.StatusOK, delivery{method: http.MethodGet, path: "/healthz"})
	if h.startedRuns() != 1 {
		t.Errorf("%d runs", h.startedRuns())
	}
	if err := os.Rename(away, h.config.Get().State+"/audit"); err != nil {
		t.Fatal(err)
	}
	h.starts(h.by("good", "1")) // the refused delivery did not claim it
	h.becomes(http.StatusOK, "/readyz")
}
