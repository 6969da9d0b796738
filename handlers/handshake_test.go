package handlers_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/auth/webhook"
	"sallyport/internal/audit"
)

// newSenders serves a hook for each of the presets. Its path is the name of the preset. The key of discord is a pair.
func newSenders(t *testing.T, limits string, presets ...string) *house {
	t.Helper()
	dir := t.TempDir()
	seed := sha256.Sum256([]byte(goodKey))
	private := ed25519.NewKeyFromSeed(seed[:])
	public, _ := private.Public().(ed25519.PublicKey)
	if err := os.WriteFile(dir+"/public", []byte(hex.EncodeToString(public)), 0o600); err != nil {
		t.Fatal(err)
	}
	var callers, hooks strings.Builder
	for _, name := range presets {
		key := "good"
		if name == "discord" {
			key = "public"
		}
		_, _ = fmt.Fprintf(&callers, "  %s: {hmac: {scheme: %s, keys: [{file: %s}]}}\n", name, name, key)
		_, _ = fmt.Fprintf(&hooks, "  %s: {path: /%s, callers: [%s], command: [%q, %q]}\n", name, name, name, dir+"/job.sh", dir)
	}
	return build(t, dir, "listen: \"localhost:0\"\nstate: state\n"+
		"tls: {cert: certs/server.pem, key: certs/server.key, client_ca: certs/ca.pem}\n"+
		"limits: {"+limits+"}\ncallers:\n"+callers.String()+"hooks:\n"+hooks.String())
}

// from returns a delivery that the sender of a preset has signed.
func (h *house) from(preset, event, body string) delivery {
	h.t.Helper()
	scheme, _ := webhook.Preset(preset)
	secret := goodKey
	if preset == "discord" {
		seed := sha256.Sum256([]byte(goodKey))
		secret = hex.EncodeToString(seed[:])
	}
	header, err := scheme.Sign([]byte(secret), []byte(body), "", h.clock.now())
	if err != nil {
		h.t.Fatal(err)
	}
	header.Set("Content-Type", "application/json")
	if name := scheme.Spec().Event; name.Header != "" {
		header.Set(name.Header, event)
	}
	return delivery{path: "/" + preset, body: body, header: header}
}

// shakeHands is a handshake with the answer that its sender wants.
type shakeHands struct {
	preset, event, body string
	status              int
	answer              string
}

func handshakes() []shakeHands {
	mac := hmac.New(sha256.New, []byte(goodKey))
	mac.Write([]byte("qgg8vlvZRS6UYooatFL8Aw"))
	zoom := `{"encryptedToken":"` + hex.EncodeToString(mac.Sum(nil)) + `","plainToken":"qgg8vlvZRS6UYooatFL8Aw"}`
	huge := `{"zen":"` + strings.Repeat("z", 1<<19) + `"}`
	return []shakeHands{
		{"github", "ping", `{"zen":"Design for failure.","hook_id":1}`, 200, `{"handshake":"ping"}`},
		{"github", "ping", huge, 200, `{"handshake":"ping"}`},
		{"github", "ping", "payload=%7B%7D", 200, `{"handshake":"ping"}`},
		{"github", "ping", "\x00 not JSON", 200, `{"handshake":"ping"}`},
		{"gitea", "ping", `{}`, 200, `{"handshake":"ping"}`},
		{"forgejo", "ping", `{}`, 200, `{"handshake":"ping"}`},
		{"gogs", "ping", `{}`, 200, `{"handshake":"ping"}`},
		{"buildkite", "ping", `{"event":"ping"}`, 200, `{"handshake":"ping"}`},
		{"pagerduty", "", `{"event":{"id":"1","event_type":"pagey.ping"}}`, 200, `{"handshake":"pagey.ping"}`},
		{"bitbucket-server", "diagnostics:ping", `{"test": true}`, 200, `{"handshake":"diagnostics:ping"}`},
		{"slack", "", `{"token":"t","challenge":"3eZb<r>w1","type":"url_verification"}`, 200, `{"challenge":"3eZb<r>w1"}`},
		{"slack", "", `{"type":"url_verification"}`, 400, ""},
		{"slack", "", `{"type":"url_verification","challenge":["a"]}`, 400, ""},
		{"discord", "", `{"id":"1","application_id":"2","type":1}`, 200, `{"type":1}`},
		{"discord", "", `{"version":1,"application_id":"2","type":0}`, 204, ""},
		{"zoom", "", `{"event":"endpoint.url_validation","payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"}}`, 200, zoom},
		{"zoom", "", `{"event":"endpoint.url_validation","payload":{}}`, 400, ""},
		{"zoom", "", `{"event":"endpoint.url_validation","payload":{"plainToken":"v0:1800000000:{}"}}`, 400, ""},
	}
}

// TestHandshake_AnsweredAsDemanded sends the handshakes of all senders. None starts or claims anything, also if it is
// repeated, and one with a wrong signature is refused.
func TestHandshake_AnsweredAsDemanded(t *testing.T) {
	t.Parallel()
	all := handshakes()
	var presets []string
	for _, one := range all {
		presets = append(presets, one.preset)
	}
	slices.Sort(presets)
	h := newSenders(t, "failures: {rate: 1000/s, burst: 1000}", slices.Compact(presets)...)
	answered := map[string]int{}
	for _, one := range all {
		d := h.from(one.preset, one.event, one.body)
		for range 2 {
			a := h.answers(one.status, d)
			if one.status == http.StatusBadRequest {
				continue
			}
			answered[one.preset]++
			if strings.TrimSuffix(a.body, "\n") != one.answer || a.header.Get("Content-Type") != "application/json" ||
				a.header.Get("Location") != "" || a.header.Get("Idempotent-Replayed") != "" {
				t.Errorf("%s: %q %v, want %q", one.preset, a.body, a.header, one.answer)
			}
			line := h.line(a)
			if reason, _ := line["reason"].(string); line["level"] != "INFO" || !strings.HasPrefix(reason, "handshake: ") {
				t.Errorf("the log has %v", line)
			}
			h.auditedHandshake(a, one.preset)
		}
		d.body += " "
		if a := h.answers(http.StatusUnauthorized, d); !strings.Contains(a.body, "urn:sallyport:unauthorized") {
			t.Errorf("%s: with a wrong signature %s", one.preset, a.body)
		}
	}
	if n := h.startedRuns(); n != 0 {
		t.Errorf("%d runs were started", n)
	}
	for name, n := range h.handler.Handshakes() {
		if answered[name] != n {
			t.Errorf("%d handshakes of %s are counted, want %d", n, name, answered[name])
		}
	}
}

// auditedHandshake waits for the line of a handshake in the audit log. caller is empty without a signature.
func (h *house) auditedHandshake(a answer, caller string) {
	h.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 2000 {
		lines := h.audited(audit.Line{Decision: audit.Handshake, Request: a.header.Get("X-Request-Id")})
		if len(lines) == 1 {
			if lines[0].Caller != caller || lines[0].Run != "" || lines[0].Status != a.status {
				h.t.Errorf("audited as %+v", lines[0])
			}
			return
		}
		<-tick.C
	}
	h.t.Error("the handshake is not in the audit log")
}

// TestHandshake_EventsStart checks that events that resemble a handshake start runs.
func TestHandshake_EventsStart(t *testing.T) {
	t.Parallel()
	h := newSenders(t, "caller: {rate: 1000/s, burst: 1000}", "github", "slack", "discord", "zoom", "bitbucket-server")
	h.starts(h.from("github", "push", `{}`))
	h.starts(h.from("slack", "", `{"type":"event_callback","event_id":"1","challenge":"x"}`))
	h.starts(h.from("discord", "", `{"id":"1","type":2}`))
	h.starts(h.from("discord", "", `{"type":1,"event":{"type":"APPLICATION_AUTHORIZED"}}`))
	h.starts(h.from("zoom", "", `{"event":"meeting.started"}`))
	h.starts(h.from("bitbucket-server", "repo:refs_changed", `{"test": true}`))
}

// TestHandshake_NeedsRight checks that the other steps before a handshake are not left out: rights and limits. Whoever
// recorded a handshake cannot spend the tokens of its caller.
func TestHandshake_NeedsRight(t *testing.T) {
	t.Parallel()
	h := newSenders(t, "caller: {rate: 1/h, burst: 2}", "github", "gogs")
	h.answers(http.StatusForbidden, h.from("github", "ping", "{}").to("/gogs"))
	h.answers(http.StatusOK, h.from("github", "ping", "{}"))
	h.answers(http.StatusOK, h.from("github", "ping", "{}")) // the same again spends no token of the caller
	h.answers(http.StatusTooManyRequests, h.from("github", "ping", "[]"))
	h.answers(http.StatusOK, h.from("gogs", "ping", "{}"))
}

// TestHandshake_UnsignedTest sends the connection test of Bitbucket Server, which has no signature. Nothing else without
// a signature is accepted, and no other hook accepts it.
func TestHandshake_UnsignedTest(t *testing.T) {
	t.Parallel()
	h := newSenders(t, "failures: {rate: 1/h, burst: 15}", "bitbucket-server", "github")
	test := delivery{
		path: "/bitbucket-server", body: `{"test": true}`, header: http.Header{"X-Event-Key": {"diagnostics:ping"}},
	}
	a := h.answers(http.StatusOK, test)
	if a.body != "" || a.header.Get("Location") != "" {
		t.Errorf("it says %q %v", a.body, a.header)
	}
	h.auditedHandshake(a, "")
	for _, body := range []string{"", "{}", `{"test":false}`, `{"test":"true"}`, `{"test":true,"ref":"x"}`, `[true]`, `{"test":true`, `{"test":true` + strings.Repeat(" ", 64) + `}`} {
		d := test
		d.body = body
		h.answers(http.StatusUnauthorized, d)
	}
	h.answers(http.StatusUnauthorized, test.to("/github"))
	for name, values := range map[string][]string{
		"X-Event-Key": {"repo:refs_changed"}, "X-Hub-Signature": {"sha256=" + strings.Repeat("0", 64)},
		"X-Hub-Signature-256": {"sha256=" + strings.Repeat("0", 64)},
	} {
		d := test
		d.header = test.header.Clone()
		d.header[name] = values
		h.answers(http.StatusUnauthorized, d)
	}
	twice := test
	twice.header = http.Header{"X-Event-Key": {"diagnostics:ping", "diagnostics:ping"}}
	h.answers(http.StatusUnauthorized, twice)
	h.answers(http.StatusOK, test)
	h.answers(http.StatusTooManyRequests, test)
	if h.startedRuns() != 0 {
		t.Error("a run was started")
	}
	h.starts(h.from("bitbucket-server", "repo:refs_changed", `{"ref": 1}`))
}
