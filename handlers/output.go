package handlers

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
)

// getOutput answers with the output of a command, stdout and stderr in one. Offsets count all bytes that were
// written, so they stay valid although the middle of a long output is not kept. Every reader reads the file of the
// run independently, so that no reader slows the command or another reader.
func (s *service) getOutput(w http.ResponseWriter, r *http.Request, req *request) error {
	run, _, err := s.authorizeRun(w, r, req, hook.MayRead)
	if err != nil {
		return err
	}
	w.Header().Set("Accept-Ranges", "bytes")
	if r.URL.Query().Has("follow") {
		return s.followOutput(w, r, req, run)
	}
	out, err := s.outputs(run.ID)
	if err != nil {
		return refuseOutput(err)
	}
	defer func() { _ = out.Close() }() // only read
	size, dropped := out.State()
	h := w.Header()
	if dropped.Bytes() > 0 {
		h.Set("X-Output-Dropped", fmt.Sprintf("%d-%d", dropped.From, dropped.To-1))
	}
	from, to, ranged, err := parseByteRange(r.Header.Get("Range"), size)
	if err != nil {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return err
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if ranged {
		return sendRange(w, out, from, to, size)
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := copyOutput(r.Context(), &plainWriter{&responseSender{w: w, now: s.now}}, out, 0, size); err != nil {
		markBroken(req, err)
	}
	return nil
}

// refuseOutput returns the refusal for an output that cannot be opened.
func refuseOutput(err error) error {
	detail := "The run has no output: its command was not started."
	switch {
	case errors.Is(err, output.ErrNotKept):
		detail = "The output of the run is not kept any more."
	case !errors.Is(err, runner.ErrUnknown):
		return err
	}
	return &refusal{status: http.StatusNotFound, kind: "not-found", detail: detail}
}

// markBroken marks an answer to be broken off, so that its reader does not take it for a complete one.
func markBroken(req *request, cause error) { req.broken, req.cause = true, cause }

// parseByteRange parses a Range of one part (RFC 9110, 14.2). It ignores a Range that it does not understand, as the
// RFC requires.
func parseByteRange(field string, size int64) (from, to int64, ok bool, err error) {
	spec, isBytes := strings.CutPrefix(field, "bytes=")
	first, last, isRange := strings.Cut(spec, "-")
	if !isBytes || !isRange || strings.Contains(spec, ",") {
		return 0, size, false, nil
	}
	a, errA := strconv.ParseUint(first, 10, 62)
	b, errB := strconv.ParseUint(last, 10, 62)
	switch {
	case first == "" && errB == nil: // the last b bytes
		from, to = max(size-int64(b), 0), size
	case errA == nil && last == "":
		from, to = int64(a), size
	case errA == nil && errB == nil && a <= b:
		from, to = int64(a), min(int64(b)+1, size)
	default:
		return 0, size, false, nil
	}
	if from >= to {
		return 0, 0, false, &refusal{
			status: http.StatusRequestedRangeNotSatisfiable, kind: "range",
			detail: "The range is behind the end of the output.",
		}
	}
	return from, to, true, nil
}

// sendRange answers with the first contiguous bytes of a range that are kept. An answer may have fewer bytes than
// were requested (RFC 9110, 15.3.7).
func sendRange(w http.ResponseWriter, out *output.Reader, from, to, size int64) error {
	buf := make([]byte, min(to-from, 1<<20))
	at, n, err := out.Next(buf, from)
	if err != nil && n == 0 || at >= to {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return &refusal{
			status: http.StatusRequestedRangeNotSatisfiable, kind: "range",
			detail: "That part of the output is not kept.",
		}
	}
	n = int(min(int64(n), to-at))
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, at+int64(n)-1, size))
	w.Header().Set("Content-Length", strconv.Itoa(n))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(buf[:n]) //nolint:gosec // G705: it is plain text, and nosniff says so
	return nil
}
