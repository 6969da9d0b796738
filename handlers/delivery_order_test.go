package handlers_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/audit"
)

// TestDelivery_OrderOfSteps has a row for each step of a delivery, in their order: refuse has a delivery refused in
// that step, and untouched looks for effects of the next step.
func TestDelivery_OrderOfSteps(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		step, limits      string
		refuse, untouched func(h *house)
		runs              int // that refuse starts; there are no others
	}{
		{
			step: "TLS, then the address limit and the log", limits: "address: {rate: 1/h, burst: 2}",
			refuse: func(h *house) {
				d := h.by("good", "1")
				d.cert = strangersCertificate(h.t)
				for range 3 {
					if a, err := h.send(d); err == nil {
						h.t.Errorf("answered %d", a.status)
					}
				}
			},
			untouched: func(h *house) {
				if lines := h.lines(); len(lines) > 0 {
					h.t.Errorf("in the log: %v", lines)
				}
				h.starts(h.by("good", "1"))
				h.starts(h.by("good", "2"))
				h.answers(http.StatusTooManyRequests, h.by("good", "3"))
			},
		},
		{
			step: "address limit, then the route", limits: "address: {rate: 1/h, burst: 1}",
			refuse: func(h *house) {
				h.answers(http.StatusNotFound, delivery{path: "/nowhere"})
				for _, d := range []delivery{h.by("good", "1"), {path: "/nowhere"}, {method: http.MethodGet}} {
					a := h.answers(http.StatusTooManyRequests, d)
					if a.header.Get("Allow") != "" || h.line(a)["hook"] != nil {
						h.t.Errorf("it was routed: %v %v", a.header, h.line(a))
					}
				}
			},
			untouched: func(h *house) {
				h.clock.advance(time.Hour)
				h.starts(h.by("good", "1"))
			},
		},
		{
			step: "route, then the body", limits: "failures: {rate: 1/h, burst: 1}",
			refuse: func(h *house) {
				for want, d := range map[int]delivery{
					http.StatusNotFound:         h.by("nobody", "1").to("/nowhere"),
					http.StatusMethodNotAllowed: {method: http.MethodPut, body: "1"},
				} {
					if a := h.answers(want, d); a.asked {
						h.t.Errorf("%d, and the body was asked for", want)
					}
				}
			},
			untouched: func(h *house) {
				if a := h.answers(http.StatusUnauthorized, h.by("nobody", "1")); !a.asked {
					h.t.Error("the body of a delivery that gets so far is not asked for, so this test shows nothing")
				}
			},
		},
		{
			step: "the body's length and time, then authentication", limits: "failures: {rate: 1/h, burst: 1}",
			refuse: func(h *house) {
				d := h.by("nobody", "1")
				d.declared = 1025
				if a := h.answers(http.StatusRequestEntityTooLarge, d); a.asked {
					h.t.Error("the body was asked for, although its length was declared")
				}
				d.declared, d.upload = 0, strings.NewReader(strings.Repeat("1", 1025))
				h.answers(http.StatusRequestEntityTooLarge, d)
				body, end := io.Pipe()
				defer func() { _ = end.Close() }()
				d.upload = body
				h.answers(http.StatusRequestTimeout, d.to("/slow"))
			},
			untouched: func(h *house) {
				h.answers(http.StatusUnauthorized, h.by("nobody", "1"))
				h.answers(http.StatusTooManyRequests, h.by("nobody", "1"))
			},
		},
		{
			step: "authentication, then the caller's limit", limits: "failures: {rate: 1/h, burst: 2}, caller: {rate: 1/h, burst: 1}",
			refuse: func(h *house) {
				h.answers(http.StatusUnauthorized, h.by("nobody", "1"))
				forged := h.by("good", "1")
				forged.body = "2"
				h.answers(http.StatusUnauthorized, forged)
				h.answers(http.StatusTooManyRequests, forged)
			},
			untouched: func(h *house) {
				h.starts(h.by("good", "1"))
				h.answers(http.StatusTooManyRequests, h.by("good", "2"))
			},
		},
		{
			step: "the caller's limit, then the callers of the hook", limits: "caller: {rate: 1/h, burst: 1}",
			refuse: func(h *house) {
				h.answers(http.StatusForbidden, h.by("guest", "1"))
				if a := h.answers(http.StatusTooManyRequests, h.by("guest", "2")); h.line(a)["reason"] != "limit by caller" {
					h.t.Errorf("the log has %v", h.line(a))
				}
				h.starts(h.by("good", "1"))
				h.answers(http.StatusTooManyRequests, h.by("good", "2"))
			},
			untouched: func(h *house) {
				h.clock.advance(time.Hour)
				h.starts(h.by("good", "2"))
			},
			runs: 1,
		},
		{
			step: "the callers of the hook, then the conditions",
			refuse: func(h *house) {
				if a := h.answers(http.StatusForbidden, h.by("guest", "1").to("/start?stage=draft")); strings.Contains(a.body, "ignored") {
					h.t.Errorf("the conditions were checked: %s", a.body)
				}
			},
			untouched: func(h *house) { h.ignores(h.by("good", "1").to("/start?stage=draft")) },
		},
		{
			step: "the conditions, then the parameters, the claim and the flight",
			refuse: func(h *house) {
				h.ignores(h.by("good", "1").to("/start?stage=draft&x=c"))
				h.ignores(h.by("good", "1").to("/start?stage=draft"))
				token := h.by("ci", "").to("/start?stage=draft")
				h.ignores(token)
				h.ignores(token)
				h.answers(http.StatusBadRequest, h.by("good", "1").to("/start?stage=draft&x=%zz"))
			},
			untouched: func(h *house) {
				h.starts(h.by("ci", ""))
				h.starts(h.by("good", "1"))
				h.holdCommands()
				h.answers(http.StatusOK, h.by("good", "2"))
				h.ignores(h.by("good", "3").to("/start?stage=draft")) // if the flight were checked, it would be busy
			},
		},
		{
			step: "the callers of the hook, then the parameters",
			refuse: func(h *house) {
				if a := h.answers(http.StatusForbidden, h.by("guest", "1").to("/start?x=%zz")); strings.Contains(a.body, "problems") {
					h.t.Errorf("the parameters were looked at: %s", a.body)
				}
				h.answers(http.StatusForbidden, h.by("guest", "1").to("/start?x=c"))
			},
			untouched: func(h *house) { h.starts(h.by("guest", "1").to("/hooks/other")) },
		},
		{
			step: "the parameters, then the claim",
			refuse: func(h *house) {
				h.answers(http.StatusUnprocessableEntity, h.by("good", "1").to("/start?x=c"))
				h.answers(http.StatusBadRequest, h.by("good", "1").to("/start?x=%zz"))
			},
			untouched: func(h *house) { h.starts(h.by("good", "1").to("/start?x=b")) },
		},
		{
			step: "the claim, then the flight",
			refuse: func(h *house) {
				token := h.by("ci", "")
				h.starts(token)
				h.holdCommands()
				h.answers(http.StatusOK, h.by("good", "1"))
				// If the flight were checked, it would be busy.
				if a := h.answers(http.StatusOK, h.by("good", "1")); a.header.Get("Idempotent-Replayed") != "true" {
					h.t.Errorf("no replay: %v", a.header)
				}
				token.body = "another"
				h.answers(http.StatusUnauthorized, token)
			},
			untouched: func(h *house) {
				h.releaseCommands()
				h.finish(h.by("good", "1"))
				h.starts(h.by("good", "2"))
			},
			runs: 2,
		},
		{
			step: "the flight, then the run",
			refuse: func(h *house) {
				h.holdCommands()
				h.answers(http.StatusOK, h.by("good", "1"))
				if a := h.answers(http.StatusServiceUnavailable, h.by("good", "2")); !strings.Contains(a.body, "urn:sallyport:busy") {
					h.t.Errorf("not busy: %s", a.body)
				}
			},
			untouched: func(h *house) {
				h.releaseCommands()
				h.finish(h.by("good", "1"))
				h.starts(h.by("good", "2")) // its claim was removed, so it is not a replay
			},
			runs: 1,
		},
		{
			step: "the drain, then the run",
			refuse: func(h *house) {
				h.runner.Drain(h.t.Context())
				h.answers(http.StatusServiceUnavailable, h.by("good", "1"))
				h.answers(http.StatusServiceUnavailable, h.by("good", "1"))
			},
			untouched: func(*house) {},
		},
	} {
		t.Run(row.step, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, row.limits)
			row.refuse(h)
			if got := h.startedRuns(); got != row.runs {
				t.Errorf("%d runs were started, want %d", got, row.runs)
			}
			if got := len(h.audited(audit.Line{Decision: audit.Allowed})); got != row.runs {
				t.Errorf("the audit has %d as allowed, want %d", got, row.runs)
			}
			row.untouched(h)
		})
	}
}

// ignores sends a delivery that is not meant for its hook.
func (h *house) ignores(d delivery) {
	h.t.Helper()
	a := h.answers(http.StatusOK, d)
	const reason = `the condition query.stage does not hold: the value is "draft"`
	if a.body != `{"ignored":true,"hook":"start","reason":`+strconv.Quote(reason)+"}\n" || a.header.Get("Location") != "" {
		h.t.Errorf("not ignored: %v %s", a.header, a.body)
	}
	if line := h.line(a); line["level"] != "INFO" || line["reason"] != "ignored: "+reason {
		h.t.Errorf("the log has %v", line)
	}
}

// finish waits for the end of the run that an earlier delivery started.
func (h *house) finish(d delivery) {
	h.t.Helper()
	d.header.Set("Prefer", "wait=60")
	if a := h.answers(http.StatusOK, d); a.header.Get("Idempotent-Replayed") != "true" || !strings.Contains(a.body, `"succeeded"`) {
		h.t.Errorf("not the end of the first run: %s", a.body)
	}
}

func strangersCertificate(t *testing.T) *tls.Certificate {
	t.Helper()
	dir := t.TempDir()
	if _, err := certs.Dev(dir, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}
