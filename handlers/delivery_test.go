package handlers_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestReplays_SpendNothingOfTheCaller: an attacker that has recorded a delivery can send it again, and must not use
// up the budget of its caller. Too many replays are refused by the limit of the address.
func TestReplays_SpendNothingOfTheCaller(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "caller: {rate: 1/h, burst: 3}, failures: {rate: 1/h, burst: 5}")
	seen := h.by("good", "seen")
	h.starts(seen)
	for range 5 {
		if a := h.answers(http.StatusOK, seen); a.header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("a repeated delivery was not recognised: %v", a.header)
		}
	}
	if a := h.answers(http.StatusTooManyRequests, seen); h.line(a)["reason"] != "limit by replays" {
		t.Errorf("got %v", h.line(a))
	}
	h.starts(h.by("good", "2"))
	h.starts(h.by("good", "3"))
	h.answers(http.StatusTooManyRequests, h.by("good", "4"))
}

// TestIgnored_RepeatSpendsFailures: an attacker that has recorded an ignored delivery can send it again, and must not
// use up the budget of its caller.
func TestIgnored_RepeatSpendsFailures(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "caller: {rate: 1/h, burst: 2}, failures: {rate: 1/h, burst: 3}")
	seen := h.by("good", "seen").to("/start?stage=test")
	for range 4 {
		if a := h.answers(http.StatusOK, seen); !strings.Contains(a.body, `"ignored":true`) {
			t.Errorf("got %s", a.body)
		}
	}
	if a := h.answers(http.StatusTooManyRequests, seen); h.line(a)["reason"] != "limit by replays" {
		t.Errorf("got %v", h.line(a))
	}
	h.starts(h.by("good", "2"))
	h.answers(http.StatusTooManyRequests, h.by("good", "3"))
}

// TestReplays_BeforeConditions: a delivery that was accepted is a replay, although it now has a value that is not
// signed and that a condition excludes.
func TestReplays_BeforeConditions(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	h.starts(h.by("good", "seen"))
	a := h.answers(http.StatusOK, h.by("good", "seen").to("/start?stage=test"))
	if a.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("got %s", a.body)
	}
}

// TestReplays_UsedTokenSpendsNothing: an attacker that has seen a used token can send it with other bodies.
func TestReplays_UsedTokenSpendsNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "caller: {rate: 1/h, burst: 2}")
	h.starts(h.signed("ci", "token", "{}"))
	used := h.signed("ci", "token", "{}")
	used.body = `{"other": 1}`
	for range 3 {
		h.answers(http.StatusUnauthorized, used)
	}
	h.starts(h.signed("ci", "another token", "{}"))
}

// TestDelivery_JudgedWhenItsBodyIsThere: a body may take minutes. A caller, key or hook that was removed in the
// meantime starts nothing, nor does a body that is larger than the limit is by then.
func TestDelivery_JudgedWhenItsBodyIsThere(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		old, new string
		want     int
	}{
		"nothing changes": {"", "", http.StatusOK},
		"caller removed":  {"callers: [good, {caller: ci, may: [start, read, cancel]}]", "callers: [ci]", http.StatusForbidden},
		"key replaced":    {"keys: [{file: good}]", "keys: [{file: token}]", http.StatusUnauthorized},
		"hook moved":      {"path: /start", "path: /elsewhere", http.StatusNotFound},
		"smaller bodies":  {"body: {max: 1KiB, timeout: 1m}", "body: {max: 4, timeout: 1m}", http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, "")
			d := h.by("good", "a body")
			read, write := io.Pipe()
			d.upload = read
			status := make(chan int)
			go func() {
				a, err := h.send(d)
				if err != nil {
					t.Error(err)
				}
				status <- a.status
			}()
			if _, err := io.WriteString(write, "a "); err != nil { // once this is read, the server waits for the rest
				t.Error(err)
			}
			if row.old != "" {
				reload(t, h, row.old, row.new)
				h.handler.Update()
			}
			if _, err := io.Copy(write, strings.NewReader("body")); err != nil {
				t.Error(err)
			}
			_ = write.Close()
			if got := <-status; got != row.want {
				t.Errorf("status %d, want %d", got, row.want)
			}
		})
	}
}
