package handlers

import (
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// endWait says how long an answer waits for the end of its run, and how it then tells the end.
type endWait struct {
	seconds   int
	preferred bool // by the request
	answer    hook.AnswerSpec
}

// preferredWait returns the wait that a request prefers (RFC 7240, 4.3).
func preferredWait(r *http.Request) endWait {
	seconds, _ := parsePreferWait(r.Header)
	return endWait{seconds: seconds, preferred: true}
}

// waitForHook returns the wait of a delivery to a hook: that of the sender, also if it is zero, or else that of the
// hook.
func waitForHook(r *http.Request, h *hook.Hook) endWait {
	seconds, isPreferred := parsePreferWait(r.Header)
	if !isPreferred {
		seconds = int(h.Wait / time.Second)
	}
	return endWait{seconds, isPreferred, h.Answer}
}

// parsePreferWait returns N of wait=N, in seconds, in the Prefer fields. The first wait counts. A wait that is not a
// number is ignored, as are other preferences (RFC 7240, 2).
func parsePreferWait(h http.Header) (seconds int, found bool) {
	for _, field := range h.Values("Prefer") {
		for preference := range strings.SplitSeq(field, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			return int(n), err == nil
		}
	}
	return 0, false
}

// endedRun is the answer with a run that may have ended.
type endedRun struct {
	runner.Run
	Tail string `json:"output_tail,omitempty"` // the end of its output, as the hook says
}

// readTail returns the last bytes of the output of a run, from the first whole character on, for a caller that may read
// it. What is not valid UTF-8 is replaced. If the output cannot be read, the answer does without it.
func (a *runAnswers) readTail(req *request, run runner.Run, most int64) string {
	if most == 0 || !a.latest().rights.hasRight(req.caller, run, hook.MayRead) {
		return ""
	}
	out, err := a.outputs(run.ID)
	if err != nil {
		return "" // the command was not started, or its output is not kept
	}
	defer func() { _ = out.Close() }() // only read
	size, _ := out.State()
	text := make([]byte, 0, most)
	for off := max(0, size-most); off < size; {
		part := make([]byte, size-off)
		at, n, err := out.Next(part, off)
		if err != nil || n == 0 {
			break
		}
		text, off = append(text, part[:n]...), at+int64(n)
	}
	for i := 0; i < utf8.UTFMax && size > most && len(text) > 0 && !utf8.RuneStart(text[0]); i++ {
		text = text[1:]
	}
	return strings.ToValidUTF8(string(text), "\uFFFD")
}
