package handlers_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sallyport/internal/audit"
	"sallyport/internal/testenv"
)

// logged counts the lines of the log from a level on, by their message and kind of refusal.
func (h *house) logged(level string) (lines map[string]int, skipped int) {
	h.t.Helper()
	lines = map[string]int{}
	for text := range strings.Lines(h.log.String()) {
		var line struct {
			Level, Msg, Reason, Kind string
			Status, Count            int
		}
		mustSucceed(h.t, json.Unmarshal([]byte(text), &line))
		if line.Level != level {
			continue
		}
		lines[fmt.Sprint(line.Msg, line.Status)]++
		skipped += line.Count
	}
	return lines, skipped
}

// TestLog_StrangersFillNothing: requests of unknown senders, from one network and from many, have few lines, and all
// of them are counted. All lines of a caller are written.
func TestLog_StrangersFillNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t, unlimited+", caller: {rate: 1000000/s, burst: 1000000}")
	one, many := testenv.AttackCount(600, 3000), testenv.AttackCount(500, 2000) // more than have lines
	ask := func(address, method, path string) {
		r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
		r.RemoteAddr = address
		h.server.Config.Handler.ServeHTTP(httptest.NewRecorder(), r)
	}
	for range one {
		ask("192.0.2.1:1", http.MethodGet, "/"+strings.Repeat("%00", 1000))
	}
	for i := range many {
		ask(fmt.Sprintf("[2001:db8:%x::1]:1", i), http.MethodPut, "/healthz")
		ask(fmt.Sprintf("[2001:db8:%x::1]:1", i), http.MethodGet, "/healthz")
	}
	for i := range 120 { // more than an unknown network may have
		h.line(h.answers(http.StatusUnprocessableEntity, h.by("good", fmt.Sprint(i)).to("/start?x=c")))
	}
	h.handler.Close()
	got, skipped := h.logged("WARN")
	if got["request404"] != 100 || got["request405"] != 300 || got["request422"] != 120 || got["log lines skipped: too many of a kind0"] != 2 {
		t.Errorf("warned of %v", got)
	}
	info, _ := h.logged("INFO")
	if info["request200"] != 0 || skipped != one-100+many-300 { // probes that succeed are not at this level
		t.Errorf("%v, and %d are counted", info, skipped)
	}
	if n := h.handler.SkippedLines(); n != skipped {
		t.Errorf("%d lines are counted, and the log says %d", n, skipped)
	}
	for text := range strings.Lines(h.log.String()) {
		if len(text) > 700 {
			t.Fatalf("%d bytes: %s", len(text), text)
		}
	}
	h.clock.advance(10 * time.Second)
	ask("192.0.2.1:1", http.MethodGet, "/")
	if got, _ := h.logged("WARN"); got["request404"] != 101 {
		t.Errorf("later, %v", got)
	}
}

// TestShorten_CountsWhatIsWritten: the length of a line is that of its escaped form.
func TestShorten_CountsWhatIsWritten(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"\x00", "\xff", "\u2028", "<", `"`, `\`, "é", "€", "𝄞", "\U000e0001", "\u202e", "\ufffd", "\n", "a",
	} {
		text, err := json.Marshal(audit.Shorten(strings.Repeat(s, 1000), 200))
		mustSucceed(t, err)
		if n := len(text) - len(`"…"`); n > 200 || n < 60/len(s) || !strings.HasSuffix(string(text), `…"`) {
			t.Errorf("%q takes %d bytes: %s", s, n, text)
		}
		if short := strings.Repeat(s, 10); audit.Shorten(short, 200) != short {
			t.Errorf("%q is cut", short)
		}
	}
}
