package handlers_test

import (
	"bytes"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
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

// TestUsedToken_IsRefusedLikeAForgedOne sends a token that was used with another body, and compares the answer with
// that to a forged token.
func TestUsedToken_IsRefusedLikeAForgedOne(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "failures: {rate: 1/h, burst: 3}")
	used := h.by("ci", "1")
	h.starts(used)
	used.body = "2"
	forged := h.by("ci", "3")
	forged.header.Set("Authorization", forged.header.Get("Authorization")[:len(forged.header.Get("Authorization"))-4]+"AAAA")
	var names []string
	var first []byte
	for i, d := range []delivery{used, forged} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/start", strings.NewReader(d.body))
		r.Header = d.header
		w := httptest.NewRecorder()
		start := time.Now()
		h.server.Config.Handler.ServeHTTP(w, r)
		if took := time.Since(start); w.Code != http.StatusUnauthorized || took < 5*time.Millisecond {
			t.Errorf("status %d after %s", w.Code, took)
		}
		got := slices.Sorted(maps.Keys(w.Header()))
		text := regexp.MustCompile(`"request_id":"[^"]*"`).ReplaceAll(w.Body.Bytes(), nil)
		if i == 0 {
			names, first = got, text
		} else if !slices.Equal(got, names) || !bytes.Equal(text, first) {
			t.Errorf("a used token is answered with %v %s, a forged one with %v %s", names, first, got, text)
		}
	}
	for range 3 {
		h.answers(http.StatusUnauthorized, used)
	}
	a := h.answers(http.StatusTooManyRequests, used)
	if got := a.header.Get("Ratelimit"); !strings.Contains(got, "failures") {
		t.Errorf("RateLimit: %q", got)
	}
}
