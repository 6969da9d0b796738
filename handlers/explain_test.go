package handlers_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"sallyport/handlers"
)

// explain returns what is explained of a delivery, with or without the store.
func (h *house) explain(d delivery, history bool) *handlers.Explanation {
	h.t.Helper()
	if d.method == "" {
		d.method = http.MethodPost
	}
	if d.path == "" {
		d.path = "/start"
	}
	r := httptest.NewRequestWithContext(h.t.Context(), d.method, d.path, http.NoBody)
	r.Header = d.header.Clone()
	var known handlers.History
	if history {
		known = h.record
	}
	return handlers.Explain(h.t.Context(), h.config.Get(), r, []byte(d.body), h.clock.now(), known, errors.New("unread"))
}

// explained explains a delivery and then sends it: the status must be the same, and only the sent one starts a run.
func (h *house) explained(d delivery, status int, step string) {
	h.t.Helper()
	before := h.startedRuns()
	e := h.explain(d, true)
	if h.startedRuns() != before {
		h.t.Error("an explanation started a run")
	}
	var text strings.Builder
	for _, s := range e.Steps {
		text.WriteString(s.Name + ": " + s.Text + "\n")
	}
	if !strings.Contains(text.String(), step) {
		h.t.Errorf("no step %q in\n%s", step, &text)
	}
	for _, secret := range []string{goodKey, guestKey, tokenKey} {
		if strings.Contains(text.String(), secret) {
			h.t.Errorf("a secret is in\n%s", &text)
		}
	}
	if a := h.answers(status, d); e.Status != a.status {
		h.t.Errorf("explained with status %d, answered with %d:\n%s", e.Status, a.status, &text)
	}
}

// TestExplain_SameAsServer explains deliveries of every outcome and sends them.
func TestExplain_SameAsServer(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "failures: {rate: 1000/s, burst: 1000}, caller: {rate: 1000/s, burst: 1000}")
	with := func(d delivery, name, value string) delivery {
		d.header = d.header.Clone()
		d.header.Set(name, value)
		return d
	}
	ended := func(d delivery) delivery { return with(d, "Prefer", "wait=60") }
	h.explained(ended(h.by("good", "new")), http.StatusOK, "start result: would be started (200)")
	h.explained(ended(h.by("good", "new")), http.StatusOK, "start replay: delivery accepted before")
	h.explained(h.by("good", "new").to("/start?stage=1"), http.StatusOK, "start replay: delivery accepted before")
	h.explained(ended(h.by("ci", "{}")), http.StatusOK, "credential: caller ci, jwt, key 1")
	h.explained(h.by("ci", "{}").to("/hooks/other"), http.StatusUnauthorized, "replay: refused with 401")
	h.explained(h.by("ci", "[]").to("/hooks/other"), http.StatusForbidden, "caller ci may not start this hook")
	h.explained(h.by("nobody", "x"), http.StatusUnauthorized, "it has the form of the caller good")
	h.explained(delivery{body: "x", header: http.Header{}}, http.StatusUnauthorized, "accepts the callers good, ci")
	h.explained(with(h.by("good", "ping"), "X-GitHub-Event", "ping"), http.StatusOK, "start handshake: ping")
	h.explained(h.by("good", "stage").to("/start?stage=1"), http.StatusOK, "the condition query.stage does not hold")
	h.explained(h.by("good", "c").to("/start?x=c"), http.StatusUnprocessableEntity, "parameter x is not one of")
	h.explained(h.by("good", "d").to("/start?%zz"), http.StatusBadRequest, "The query is malformed.")
	h.explained(h.by("good", "e").to("/start/"), http.StatusNotFound, "the paths are /hooks/other, /slow, /start")
	h.explained(ended(h.by("good", "f").to("/st%61rt")), http.StatusOK, "would be started")
	h.explained(h.by("good", strings.Repeat("f", 1025)), http.StatusRequestEntityTooLarge, "larger than the 1KiB")
	h.explained(with(h.by("good", "g"), "Sec-Fetch-Site", "cross-site"), http.StatusForbidden, "page of another site")
	h.explained(with(h.by("good", "h"), "Content-Encoding", "gzip"), http.StatusUnsupportedMediaType, "gzip")
	d := h.by("good", "i")
	d.method = http.MethodPut
	h.explained(d, http.StatusMethodNotAllowed, "use POST")

	h.holdCommands()
	defer h.releaseCommands()
	h.explained(h.by("good", "first"), http.StatusOK, "a delivery is refused with 503")
	h.explained(h.by("good", "second"), http.StatusServiceUnavailable, "start result: refused with 503")
	if e := h.explain(h.by("good", "third"), false); !e.Starts || e.Status != http.StatusOK {
		t.Errorf("without a store: %+v", e)
	}
}

// TestExplain_Policies explains deliveries to busy flights, as an observed caller gets them explained by the server.
func TestExplain_Policies(t *testing.T) {
	t.Parallel()
	h := observing(t)
	h.holdCommands()
	defer h.releaseCommands()
	for _, c := range []struct {
		hook   string
		status int
		step   string
	}{
		{"reject", http.StatusServiceUnavailable, "reject result: refused with 503"},
		{"queue", http.StatusAccepted, "queue result: would be queued (202), at position 1"},
		{"join", http.StatusAccepted, "join flight: join; while a run of it is in progress, a delivery is joined"},
	} {
		h.answers(http.StatusOK, h.by("good", c.hook).to("/hooks/"+c.hook))
		h.explained(h.by("good", c.hook+"2").to("/hooks/"+c.hook), c.status, c.step)
	}
	h.explained(h.by("good", "queue3").to("/hooks/queue"), http.StatusServiceUnavailable, "queued, up to 1 of them")
	e := h.explain(h.by("guest", "x").to("/hooks/others"), true)
	if !e.Observed || e.Starts || e.Status != http.StatusForbidden {
		t.Errorf("an observed caller without the right: %+v", e)
	}
}
