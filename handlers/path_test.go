package handlers_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"sallyport/internal/audit"
	"sallyport/internal/client"
	"sallyport/runner"
)

// newShared serves hooks at one path. all starts for each delivery, push for a branch main, guests for another caller,
// and large has a higher bound of the body.
func newShared(t *testing.T) *house {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/watched", []byte(watchedKey), 0o600); err != nil {
		t.Fatal(err)
	}
	job := fmt.Sprintf("[%q, %q]", dir+"/job.sh", dir)
	return build(t, dir, fmt.Sprintf(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key, client_ca: certs/ca.pem}
limits: {caller: {rate: 1000/s, burst: 1000}, failures: {rate: 1000/s, burst: 1000}}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
  guest: {hmac: {scheme: slack, keys: [{file: guest}]}}
  ci: {jwt: {issuer: https://ci.example, audience: https://hooks.example.com, keys: [{file: token}]}}
  watched: {observe: true, hmac: {scheme: gitea, keys: [{file: watched}]}}
hooks:
  all: {path: /start, callers: [good, watched, {caller: ci, may: [start, read]}], command: %[1]s}
  guests: {path: /start, callers: [guest], command: %[1]s, body: {max: 64}}
  push:
    path: /start
    callers: [good, watched, ci]
    when: {body.ref: refs/heads/main}
    command: [%[2]q, %[3]q, "{n}"]
    params: {n: {from: body.n, type: int, default: "1"}}
    body: {max: 2MiB}
`, job, dir+"/job.sh", dir))
}

const watchedKey = "the key of a caller that is observed"

// listed is the answer of several hooks.
type listed struct {
	Ignored bool `json:"ignored"`
	Hooks   []struct {
		Hook   string `json:"hook"`
		Status int    `json:"status"`
		Answer struct {
			runner.Run
			Ignored  bool   `json:"ignored"`
			Observed bool   `json:"observed"`
			Would    string `json:"would"`
			Type     string `json:"type"`
		} `json:"answer"`
	} `json:"hooks"`
}

// shares sends a delivery to all hooks of the path, and returns what each did: started, queued, replayed, ignored, or the
// type of a problem.
func (h *house) shares(want int, d delivery) (a answer, did map[string]string, runs map[string]string) {
	h.t.Helper()
	a = h.answers(want, d)
	var list listed
	if err := json.Unmarshal([]byte(a.body), &list); err != nil {
		h.t.Fatal(err, a.body)
	}
	did, runs = map[string]string{}, map[string]string{}
	for _, one := range list.Hooks {
		switch x := one.Answer; {
		case x.Ignored:
			did[one.Hook] = "ignored"
		case x.Observed:
			did[one.Hook] = "would be " + x.Would
		case x.Type != "":
			did[one.Hook] = strings.TrimPrefix(x.Type, "urn:sallyport:")
		default:
			did[one.Hook], runs[one.Hook] = string(x.State), x.ID
		}
	}
	if list.Ignored != (len(runs) == 0 && want == http.StatusOK && !strings.Contains(a.body, "observed")) {
		h.t.Errorf("ignored: %v, but %s", list.Ignored, a.body)
	}
	return a, did, runs
}

func (h *house) did(want, got map[string]string) {
	h.t.Helper()
	for name, what := range want { // a command may have ended already
		if what == "ran" && (got[name] == "running" || got[name] == "succeeded") {
			got[name] = "ran"
		}
	}
	if !maps.Equal(want, got) {
		h.t.Errorf("the hooks did %v, want %v", got, want)
	}
}

const onMain = `{"ref":"refs/heads/main","n":1}`

// TestPath_BothStart checks that each matching hook starts a run, that a repeated delivery starts none, and that the log
// and the audit log have each hook.
func TestPath_BothStart(t *testing.T) {
	t.Parallel()
	h := newShared(t)
	d := h.signed("good", "", onMain)
	a, did, runs := h.shares(http.StatusOK, d)
	h.did(map[string]string{"all": "ran", "push": "ran"}, did)
	if runs["all"] == runs["push"] || a.header.Get("Location") != "" || a.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("%v %s", a.header, a.body)
	}
	line := h.line(a)
	if reason, _ := line["reason"].(string); !strings.Contains(reason, "all: 200 "+runs["all"]) ||
		!strings.Contains(reason, "push: 200 "+runs["push"]) || line["hook"] != "all,guests,push" || line["caller"] != "good" {
		t.Errorf("the log has %v", line)
	}
	allowed := h.audited(audit.Line{Decision: audit.Allowed, Request: a.header.Get("X-Request-Id")})
	if len(allowed) != 2 || allowed[0].Hook != "all" || allowed[1].Hook != "push" || allowed[0].Params == allowed[1].Params {
		t.Errorf("audited as %+v", allowed)
	}
	a, did, again := h.shares(http.StatusOK, d)
	h.did(map[string]string{"all": "ran", "push": "ran"}, did)
	if !maps.Equal(runs, again) || a.header.Get("Idempotent-Replayed") != "true" || h.startedRuns() != 2 {
		t.Errorf("the repetition started something: %v %v, first %v", a.header, again, runs)
	}
}

// TestPath_OneIgnored checks that only the hook with fulfilled conditions starts, and that one ignored hook is neither
// an error nor audited as if the delivery were ignored.
func TestPath_OneIgnored(t *testing.T) {
	t.Parallel()
	h := newShared(t)
	a, did, runs := h.shares(http.StatusOK, h.signed("good", "", `{"ref":"refs/heads/next"}`))
	h.did(map[string]string{"all": "ran", "push": "ignored"}, did)
	if a.header.Get("Location") != "/runs/"+runs["all"] || h.startedRuns() != 1 {
		t.Errorf("%v %s", a.header, a.body)
	}
	if lines := h.audited(audit.Line{Decision: audit.Ignored}); len(lines) != 0 {
		t.Errorf("audited as %+v", lines)
	}
	if n := h.handler.IgnoredDeliveries()["push"]; n != 1 {
		t.Errorf("%d are counted as ignored", n)
	}
}

// TestPath_AllIgnored checks that a delivery that no hook is meant for is ignored.
func TestPath_AllIgnored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	job := fmt.Sprintf("[%q, %q]", dir+"/job.sh", dir)
	h := build(t, dir, fmt.Sprintf(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
callers: {good: {hmac: {scheme: github, keys: [{file: good}]}}}
hooks:
  a: {path: /start, callers: [good], when: {event: push}, command: %[1]s}
  b: {path: /start, callers: [good], when: {event: release}, command: %[1]s}
`, job))
	a, did, _ := h.shares(http.StatusOK, h.from("github", "issues", "{}").to("/start"))
	h.did(map[string]string{"a": "ignored", "b": "ignored"}, did)
	h.auditedIgnored(a, 2)
	if a, _, _ = h.shares(http.StatusOK, h.from("github", "push", "{}").to("/start")); a.header.Get("Location") == "" {
		t.Error("the delivery of an event was claimed by a hook that ignored it")
	}
	if a = h.answers(http.StatusOK, h.from("github", "ping", "{}").to("/start")); a.body != `{"handshake":"ping"}`+"\n" {
		t.Errorf("the ping got %s", a.body)
	}
	if got := h.handler.Handshakes(); got["a"] != 1 || got["b"] != 1 {
		t.Errorf("handshakes: %v", got)
	}
}

// auditedIgnored waits for the lines of an ignored delivery in the audit log.
func (h *house) auditedIgnored(a answer, want int) {
	h.t.Helper()
	var got []audit.Line
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 2000 {
		got = h.audited(audit.Line{Decision: audit.Ignored, Request: a.header.Get("X-Request-Id")})
		if len(got) == want {
			return
		}
		<-tick.C
	}
	h.t.Errorf("%d lines in the audit log, want %d: %v", len(got), want, got)
}

// TestPath_BusyThenRetry checks that a retry after 503 starts only the hook that was busy.
func TestPath_BusyThenRetry(t *testing.T) {
	t.Parallel()
	h := newShared(t)
	h.holdCommands()
	_, did, first := h.shares(http.StatusOK, h.signed("good", "", `{"ref":"refs/heads/next"}`))
	h.did(map[string]string{"all": "running", "push": "ignored"}, did)
	d := h.signed("good", "", onMain)
	a, did, runs := h.shares(http.StatusServiceUnavailable, d)
	h.did(map[string]string{"all": "busy", "push": "running"}, did)
	if a.header.Get("Retry-After") == "" || a.header.Get("Content-Type") != "application/problem+json" ||
		!strings.Contains(a.body, `"type":"urn:sallyport:busy"`) || a.header.Get("Location") != "" {
		t.Errorf("%v %s", a.header, a.body)
	}
	h.releaseCommands()
	h.stands(runner.Run{ID: first["all"]}, runner.Succeeded)
	h.stands(runner.Run{ID: runs["push"]}, runner.Succeeded)
	_, did, again := h.shares(http.StatusOK, d)
	h.did(map[string]string{"all": "ran", "push": "succeeded"}, did)
	if again["push"] != runs["push"] || h.startedRuns() != 3 {
		t.Errorf("the retry has the runs %v, the first delivery had %v; %d started", again, runs, h.startedRuns())
	}
	if lines := h.audited(audit.Line{Decision: audit.Refused}); len(lines) != 1 || lines[0].Hook != "all" || lines[0].Status != 503 {
		t.Errorf("audited as %+v", lines)
	}
}

// TestPath_OneRefused checks that a hook with wrong parameters refuses the delivery, and does not keep the others from
// it.
func TestPath_OneRefused(t *testing.T) {
	t.Parallel()
	h := newShared(t)
	a, did, _ := h.shares(http.StatusUnprocessableEntity, h.signed("good", "", `{"ref":"refs/heads/main","n":"x"}`))
	h.did(map[string]string{"all": "ran", "push": "parameters"}, did)
	if h.startedRuns() != 1 || !strings.Contains(a.body, `"param":"n"`) {
		t.Errorf("%d runs: %s", h.startedRuns(), a.body)
	}
}

// TestPath_DifferentCallers checks that a delivery only reaches the hooks that its caller may start.
func TestPath_DifferentCallers(t *testing.T) {
	t.Parallel()
	h := newShared(t)
	_, did, _ := h.shares(http.StatusOK, h.signed("guest", "", onMain))
	h.did(map[string]string{"guests": "ran"}, did)
	d := h.signed("guest", "", onMain)
	d.body += " "
	h.answers(http.StatusUnauthorized, d)
	h.answers(http.StatusUnauthorized, h.signed("nobody", "", onMain))
	if h.startedRuns() != 1 {
		t.Errorf("%d runs", h.startedRuns())
	}
	long := `{"ref":"refs/heads/main","x":"` + strings.Repeat("x", 3<<19) + `"}`
	_, did, _ = h.shares(http.StatusRequestEntityTooLarge, h.signed("good", "", long)) // the bound of push is larger
	h.did(map[string]string{"all": "too-large", "push": "ran"}, did)
	h.explained(h.signed("good", "", long), http.StatusRequestEntityTooLarge, "all body: refused with 413")
	h.answers(http.StatusRequestEntityTooLarge, h.signed("good", "", long+strings.Repeat(" ", 1<<19)))
}

// TestPath_OneUseToken checks that a token for one use starts one hook, also if the delivery matches two.
func TestPath_OneUseToken(t *testing.T) {
	t.Parallel()
	h := newShared(t)
	next := h.signed("ci", "1", `{"ref":"refs/heads/next"}`)
	_, did, runs := h.shares(http.StatusOK, next)
	h.did(map[string]string{"all": "ran", "push": "ignored"}, did)
	a, _, again := h.shares(http.StatusOK, next)
	if a.header.Get("Idempotent-Replayed") != "true" || !maps.Equal(runs, again) {
		t.Errorf("not a repetition: %v %s", a.header, a.body)
	}
	h.stands(runner.Run{ID: runs["all"]}, runner.Succeeded)
	next.body = onMain
	h.answers(http.StatusUnauthorized, next)
	_, did, _ = h.shares(http.StatusUnauthorized, h.signed("ci", "2", onMain))
	h.did(map[string]string{"all": "ran", "push": "credential-used"}, did)
	if h.startedRuns() != 2 {
		t.Errorf("%d runs", h.startedRuns())
	}
}

// TestPath_TokenForEachRequest checks that a token that each request may use starts all hooks that are meant, once.
func TestPath_TokenForEachRequest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := build(t, dir, fmt.Sprintf(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
callers:
  ci:
    replay: request
    jwt: {issuer: https://ci.example, audience: https://hooks.example.com, keys: [{file: token}]}
hooks:
  a: {path: /start, callers: [ci], command: [%[1]q, %[2]q]}
  b: {path: /start, callers: [ci], command: [%[1]q, %[2]q]}
`, dir+"/job.sh", dir))
	d := h.signed("ci", "1", "{}")
	_, did, runs := h.shares(http.StatusOK, d)
	h.did(map[string]string{"a": "ran", "b": "ran"}, did)
	a, _, again := h.shares(http.StatusOK, d)
	if a.header.Get("Idempotent-Replayed") != "true" || !maps.Equal(runs, again) || h.startedRuns() != 2 {
		t.Errorf("%d runs: %v %s", h.startedRuns(), a.header, a.body)
	}
}

// TestPath_PreferIsIgnored checks that the answer for several hooks does not wait for their runs.
func TestPath_PreferIsIgnored(t *testing.T) {
	t.Parallel()
	h := newShared(t)
	h.holdCommands()
	d := h.signed("good", "", onMain)
	d.header.Set("Prefer", "wait=60")
	a, did, _ := h.shares(http.StatusOK, d)
	h.did(map[string]string{"all": "running", "push": "running"}, did)
	if a.header.Get("Preference-Applied") != "" {
		t.Errorf("%v", a.header)
	}
}

// TestPath_Observed checks that the deliveries of an observed caller get the answer of each hook, and start nothing.
func TestPath_Observed(t *testing.T) {
	t.Parallel()
	h := newShared(t)
	sign, err := client.HMAC("gitea", []byte(watchedKey))
	if err != nil {
		t.Fatal(err)
	}
	d := delivery{body: `{"ref":"refs/heads/next"}`}
	if d.header, err = sign("", []byte(d.body), h.clock.now()); err != nil {
		t.Fatal(err)
	}
	d.header.Set("Content-Type", "application/json")
	a, did, _ := h.shares(http.StatusOK, d)
	h.did(map[string]string{"all": "would be started", "push": "would be ignored"}, did)
	if h.startedRuns() != 0 || h.line(a)["caller"] != "watched" {
		t.Errorf("%d runs, %v", h.startedRuns(), h.line(a))
	}
}
