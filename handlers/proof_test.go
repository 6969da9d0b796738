package handlers_test

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestProof_ReadStartsNothing: a signature over a request that reads runs does not start one. An HMAC covers only the
// body, which is the same in all such requests.
func TestProof_ReadStartsNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	for caller, path := range map[string]string{"good": "/start?x=b", "guest": "/hooks/other"} {
		seen := h.by(caller, "")
		seen.method = http.MethodGet
		h.answers(http.StatusOK, seen.to("/runs"))
		seen.method = http.MethodPost
		a := h.answers(http.StatusUnauthorized, seen.to(path))
		if line := h.line(a); !strings.Contains(line["reason"].(string), "the body is empty") {
			t.Errorf("%s: the log has %v", caller, line)
		}
	}
	if n := h.startedRuns(); n > 0 {
		t.Errorf("%d runs", n)
	}
}

// TestProof_TimelessSignature: a signature without a time cannot cancel or repeat runs: it never expires.
func TestProof_TimelessSignature(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	for caller, path := range map[string]string{"good": "/start", "guest": "/hooks/other"} {
		run := "/runs/" + runOf(t, h.starts(h.by(caller, "1").to(path)))
		seen := h.by(caller, "")
		seen.method = http.MethodGet
		h.answers(http.StatusOK, seen.to(run))
		started, want := h.startedRuns(), http.StatusOK
		if caller == "good" {
			want = http.StatusForbidden
		}
		seen.method = http.MethodDelete
		h.answers(want, seen.to(run))
		seen.method = http.MethodPost
		for range 3 { // with a time, each starts one run
			h.answers(want, seen.to(run+"/rerun"))
		}
		if again := h.startedRuns() - started; again != map[string]int{"good": 0, "guest": 1}[caller] {
			t.Errorf("%s started %d runs more", caller, again)
		}
		h.clock.advance(10 * time.Minute)
		if caller == "guest" {
			h.answers(http.StatusUnauthorized, seen.to(run+"/rerun"))
		}
	}
}

// TestProof_TokenForOneRun: a token starts or repeats only one run.
func TestProof_TokenForOneRun(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	token := h.by("ci", "")
	first := runOf(t, h.starts(token))
	again := func(id, run string) delivery { return h.asks(http.MethodPost, "/runs/"+run+"/rerun", id) }
	h.answers(http.StatusUnauthorized, again("id-", first)) // the same token
	second := runOf(t, h.answers(http.StatusOK, again("fresh", first)))
	a := h.answers(http.StatusOK, again("fresh", first))
	if a.header.Get("Idempotent-Replayed") != "true" || runOf(t, a) != second {
		t.Errorf("the same request again: %v %s", a.header, a.body)
	}
	h.answers(http.StatusUnauthorized, again("fresh", second))
	late := h.asks(http.MethodPost, "/start", "fresh")
	h.answers(http.StatusUnauthorized, late)
	if n := h.startedRuns(); n != 2 {
		t.Errorf("%d runs by two tokens", n)
	}
}

// TestUsedToken_IsToldApartFromAForgedOne sends a token that was used with another body. Its sender has proved a
// credential, so the answer may say that it was used. A forged token is answered as ever.
func TestUsedToken_IsToldApartFromAForgedOne(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "failures: {rate: 1/h, burst: 3}")
	used := h.by("ci", "1")
	h.starts(used)
	used.body = "2"
	forged := h.by("ci", "3")
	forged.header.Set("Authorization", forged.header.Get("Authorization")[:len(forged.header.Get("Authorization"))-4]+"AAAA")
	for kind, d := range map[string]delivery{"credential-used": used, "unauthorized": forged} {
		a := h.answers(http.StatusUnauthorized, d)
		if !strings.Contains(a.body, `"type":"urn:sallyport:`+kind+`"`) {
			t.Errorf("not %s: %s", kind, a.body)
		}
		if a.header.Get("Www-Authenticate") == "" {
			t.Errorf("%s: no challenge", kind)
		}
	}
	used.body = "1" // the request that it was used for
	if a := h.answers(http.StatusOK, used); a.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("no replay: %v", a.header)
	}
	used.body = "2"
	a := h.answers(http.StatusTooManyRequests, used)
	if got := a.header.Get("Ratelimit"); !strings.Contains(got, "failures") {
		t.Errorf("RateLimit: %q", got)
	}
	if n := h.startedRuns(); n != 1 {
		t.Errorf("%d runs by one token", n)
	}
}

// TestTokenOfEachRequest_StartsEachOnce uses one token for two hooks and two bodies.
func TestTokenOfEachRequest_StartsEachOnce(t *testing.T) {
	t.Parallel()
	h := build(t, t.TempDir(), `
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key, client_ca: certs/ca.pem}
callers:
  ci:
    jwt: {issuer: https://ci.example, audience: https://hooks.example.com, keys: [{file: token}]}
    replay: request
hooks:
  start: {path: /start, callers: [{caller: ci, may: [start, read]}], command: [/bin/true]}
  other: {callers: [ci], command: [/bin/true]}
`)
	run := ""
	for _, d := range []delivery{
		h.signed("ci", "one", "1"), h.signed("ci", "one", "2"), h.signed("ci", "one", "1").to("/hooks/other"),
	} {
		a := h.starts(d)
		if run == "" {
			run = runOf(t, a)
		}
		if a := h.answers(http.StatusOK, d); a.header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("%s of %s again: %v", d.body, d.path, a.header)
		}
	}
	again := h.asks(http.MethodPost, "/runs/"+run+"/rerun", "one")
	second := runOf(t, h.answers(http.StatusOK, again))
	if a := h.answers(http.StatusOK, again); runOf(t, a) != second {
		t.Errorf("a run was repeated twice by one token: %s", a.body)
	}
}
