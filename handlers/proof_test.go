package handlers_test

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestWhatReadsRunsStartsNone: an HMAC covers the body alone, and all requests for
// runs have the same one.
func TestWhatReadsRunsStartsNone(t *testing.T) {
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
	if n := h.runs(); n > 0 {
		t.Errorf("%d runs", n)
	}
}

// TestASignatureWithoutATimeChangesNothing: it would be good for ever.
func TestASignatureWithoutATimeChangesNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	for caller, path := range map[string]string{"good": "/start", "guest": "/hooks/other"} {
		run := "/runs/" + runOf(t, h.starts(h.by(caller, "1").to(path)))
		seen := h.by(caller, "")
		seen.method = http.MethodGet
		h.answers(http.StatusOK, seen.to(run))
		started, want := h.runs(), http.StatusOK
		if caller == "good" {
			want = http.StatusForbidden
		}
		seen.method = http.MethodDelete
		h.answers(want, seen.to(run))
		seen.method = http.MethodPost
		for range 3 { // with a time, each is good for one run
			h.answers(want, seen.to(run+"/rerun"))
		}
		if again := h.runs() - started; again != map[string]int{"good": 0, "guest": 1}[caller] {
			t.Errorf("%s started %d runs more", caller, again)
		}
		h.clock.move(10 * time.Minute)
		if caller == "guest" {
			h.answers(http.StatusUnauthorized, seen.to(run+"/rerun"))
		}
	}
}

// TestATokenIsGoodForOneRun: whether that is one it starts, or one it repeats.
func TestATokenIsGoodForOneRun(t *testing.T) {
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
	if n := h.runs(); n != 2 {
		t.Errorf("%d runs by two tokens", n)
	}
}
