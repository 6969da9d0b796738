package handlers_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sallyport/runner"
)

// observing serves a hook for each policy to good, and to guest and ci, which are only observed. Commands run while
// there is a file named hold.
func observing(t *testing.T) *house {
	t.Helper()
	dir := t.TempDir()
	var hooks strings.Builder
	for name, busy := range map[string]string{"reject": "reject", "queue": "{queue: 1}", "join": "join", "replace": "replace"} {
		_, _ = fmt.Fprintf(&hooks, `
  %s:
    callers: [good, ci, {caller: guest, may: [start, read, cancel]}]
    command: [%q, %q, "{x}"]
    params: {x: {from: query.x, enum: [a, b], default: a}}
    busy: %s
    grace: 10ms`, name, dir+"/job.sh", dir, busy)
	}
	return build(t, dir, `
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {failures: {rate: 1000/s, burst: 1000}, caller: {rate: 1/h, burst: 20}}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}, limit: {rate: 1000/s, burst: 1000}}
  guest: {hmac: {scheme: slack, keys: [{file: guest}]}, observe: true, limit: {rate: 1000/s, burst: 1000}}
  ci: {jwt: {issuer: https://ci.example, audience: https://hooks.example.com, keys: [{file: token}]}, observe: true}
hooks:`+hooks.String()+`
  others: {callers: [good], command: [/bin/true]}
`)
}

// observed sends a delivery of an observed caller and checks what would have happened to it.
func (h *house) observed(d delivery, would string, status int) map[string]any {
	h.t.Helper()
	a := h.answers(http.StatusOK, d)
	var o map[string]any
	if err := json.Unmarshal([]byte(a.body), &o); err != nil {
		h.t.Fatal(err)
	}
	if o["observed"] != true || o["would"] != would || o["status"] != float64(status) || a.header.Get("Location") != "" || a.header.Get("Retry-After") != "" {
		h.t.Errorf("%s: answered %v %s, want %s (%d)", d.path, a.header, a.body, would, status)
	}
	if line := h.line(a); line["observed"] != would || line["level"] != "INFO" {
		h.t.Errorf("the log has %v", line)
	}
	return o
}

// TestObserved_StartsNothing: no delivery of an observed caller starts a run, under any policy.
func TestObserved_StartsNothing(t *testing.T) {
	t.Parallel()
	for hook, busy := range map[string]struct{ running, waiting func(h *house, d delivery) }{
		"reject": {
			func(h *house, d delivery) {
				if o := h.observed(d, "refused", http.StatusServiceUnavailable); !strings.Contains(fmt.Sprint(o["problem"]), "urn:sallyport:busy") {
					h.t.Errorf("not busy: %v", o)
				}
			}, nil,
		},
		"queue": {
			func(h *house, d delivery) { h.positioned(d, 1) },
			func(h *house, d delivery) { h.observed(d, "refused", http.StatusServiceUnavailable) },
		},
		"join":    {func(h *house, d delivery) { h.positioned(d, 1) }, func(h *house, d delivery) { h.positioned(d, 1) }},
		"replace": {func(h *house, d delivery) { h.positioned(d, 1) }, nil},
	} {
		t.Run(hook, func(t *testing.T) {
			t.Parallel()
			h := observing(t)
			path := "/hooks/" + hook
			if o := h.observed(h.by("guest", "1").to(path), "started", http.StatusOK); o["flight"] != hook {
				t.Errorf("the flight is %v", o["flight"])
			}
			token := h.by("ci", "").to(path)
			h.observed(token, "started", http.StatusOK)
			h.observed(token, "started", http.StatusOK) // the delivery was not claimed
			h.holdCommands()
			run := h.answers(http.StatusOK, h.by("good", "1").to(path)).header.Get("Location")
			busy.running(h, h.by("guest", "2").to(path))
			busy.running(h, h.by("ci", "2").to(path))
			runs := 1
			if busy.waiting != nil {
				h.answers(http.StatusAccepted, h.by("good", "2").to(path))
				busy.waiting(h, h.by("guest", "3").to(path))
				runs = 2
			}

			by := func(method, path string) delivery {
				d := h.by("guest", "").to(path)
				d.method = method
				return d
			}
			h.answers(http.StatusForbidden, by(http.MethodDelete, run))
			h.answers(http.StatusForbidden, by(http.MethodPost, run+"/rerun"))
			if a := h.answers(http.StatusOK, by(http.MethodGet, run)); !strings.Contains(a.body, `"running"`) {
				t.Errorf("the run that was there is %s", a.body)
			}
			h.releaseCommands()
			h.finish(h.by("good", "1").to(path))
			if busy.waiting != nil {
				h.finish(h.by("good", "2").to(path))
			}
			h.answers(http.StatusForbidden, by(http.MethodPost, run+"/rerun"))
			h.observed(h.by("guest", "4").to(path), "started", http.StatusOK)
			if got := h.startedRuns(); got != runs {
				t.Errorf("%d runs were started, want the %d of good", got, runs)
			}
			for _, caller := range []string{"guest", "ci"} {
				if list, _, err := h.runner.List(t.Context(), runner.Filter{Callers: []string{caller}}); err != nil || len(list) > 0 {
					t.Errorf("recorded for %s: %v, %v", caller, list, err)
				}
			}
		})
	}
}

func (h *house) positioned(d delivery, position int) {
	h.t.Helper()
	if o := h.observed(d, "queued", http.StatusAccepted); o["position"] != float64(position) {
		h.t.Errorf("the position is %v, want %d", o["position"], position)
	}
}

// TestObserved_RefusalIsShown: the answer to an observed caller says why its delivery would be refused.
func TestObserved_RefusalIsShown(t *testing.T) {
	t.Parallel()
	h := observing(t)
	for want, d := range map[int]delivery{
		http.StatusForbidden:           h.by("guest", "1").to("/hooks/others"),
		http.StatusUnprocessableEntity: h.by("guest", "1").to("/hooks/reject?x=c"),
		http.StatusBadRequest:          h.by("guest", "1").to("/hooks/reject?x=%zz"),
	} {
		o := h.observed(d, "refused", want)
		if p, _ := o["problem"].(map[string]any); p["status"] != float64(want) || p["type"] == nil || p["request_id"] == "" {
			t.Errorf("the problem is %v", o["problem"])
		}
	}
	for range 20 {
		h.observed(h.by("ci", "1").to("/hooks/reject"), "started", http.StatusOK)
	}
	h.observed(h.by("ci", "1").to("/hooks/reject"), "refused", http.StatusTooManyRequests)
	h.runner.Drain(t.Context())
	h.observed(h.by("guest", "1").to("/hooks/reject"), "refused", http.StatusServiceUnavailable)
	if got := h.startedRuns(); got != 0 {
		t.Errorf("%d runs were started", got)
	}
}

// TestObserved_ResembledIsLogged: a delivery that fails is refused, and logged with the observed caller that it
// resembles.
func TestObserved_ResembledIsLogged(t *testing.T) {
	t.Parallel()
	h := observing(t)
	stale := h.by("guest", "1").to("/hooks/reject")
	stale.header.Set("X-Slack-Request-Timestamp", "1")
	wrong := h.by("guest", "1").to("/hooks/reject")
	wrong.body = "2"
	token := h.by("ci", "").to("/hooks/reject")
	token.header.Set("Authorization", token.header.Get("Authorization")[:len(token.header.Get("Authorization"))-8]+"AAAAAAAA")
	garbage := delivery{path: "/hooks/reject", header: http.Header{"X-Slack-Signature": {"v0=?"}}}
	for want, deliveries := range map[string][]delivery{
		"guest": {wrong, stale, garbage},
		"ci":    {token},
		"":      {{path: "/hooks/reject"}, h.by("nobody", "1").to("/hooks/reject"), {path: "/hooks/others", header: wrong.header}},
	} {
		for _, d := range deliveries {
			a := h.answers(http.StatusUnauthorized, d)
			if strings.Contains(a.body, "observed") {
				t.Errorf("the answer says: %s", a.body)
			}
			if got, _ := h.line(a)["resembles"].(string); got != want {
				t.Errorf("resembles %q, want %q: %v", got, want, h.line(a))
			}
		}
	}
	old := h.by("guest", "1").to("/hooks/reject")
	h.clock.advance(time.Hour)
	if line := h.line(h.answers(http.StatusUnauthorized, old)); !strings.Contains(fmt.Sprint(line["reason"]), "stale") || line["resembles"] != "guest" {
		t.Errorf("the log has %v", line)
	}
}
