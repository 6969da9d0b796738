package handlers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sallyport/runner"
	"sallyport/runner/process"
)

const (
	chunk     = 32 << 10
	pollEvery = 100 * time.Millisecond // for output that is not there yet
	slowest   = 30 * time.Second       // that a reader may take for one chunk
)

// getOutput answers with what a command wrote, stdout and stderr as one. Byte
// offsets are those of all that was written, so they stay true although the
// middle of a long output is not kept. Every reader reads the run's file for
// itself, so none of them slows the command or another reader.
func (s *Server) getOutput(w http.ResponseWriter, r *http.Request, req *request) error {
	run, _, err := s.run(w, r, req, runner.MayRead)
	if err != nil {
		return err
	}
	out, err := process.OpenOutput(filepath.Join(s.config.State, "runs"), run.ID)
	if err != nil {
		if errors.Is(err, process.ErrUnknown) {
			return notFound() // it never started, or its output was removed
		}
		return err
	}
	defer func() { _ = out.Close() }() // only read
	h := w.Header()
	h.Set("Accept-Ranges", "bytes")
	if r.URL.Query().Has("follow") {
		return s.followOutput(w, r, run, out)
	}
	size, dropped := out.State()
	if dropped.Bytes() > 0 {
		h.Set("X-Output-Dropped", fmt.Sprintf("%d-%d", dropped.From, dropped.To-1))
	}
	from, to, ranged, err := byteRange(r.Header.Get("Range"), size)
	if err != nil {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return err
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if ranged {
		return sendRange(w, out, from, to, size)
	}
	w.WriteHeader(http.StatusOK)
	sink := &sink{w: w, now: s.now}
	_, _ = copyOutput(r.Context(), sink, out, 0, size) // the reader is gone; nobody is left to tell
	return nil
}

// byteRange reads a Range of one part (RFC 9110, 14.2). What it does not
// understand it ignores, as the RFC has it.
func byteRange(field string, size int64) (from, to int64, ok bool, err error) {
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
			status: http.StatusRequestedRangeNotSatisfiable, kind: "range", detail: "The output does not reach that far.",
		}
	}
	return from, to, true, nil
}

// sendRange answers with the bytes of a range that are kept and follow one
// another: RFC 9110, 15.3.7, lets an answer have less than was asked for.
func sendRange(w http.ResponseWriter, out *process.Output, from, to, size int64) error {
	buf := make([]byte, min(to-from, 1<<20))
	at, n, err := out.Next(buf, from)
	if err != nil && n == 0 || at >= to {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return &refusal{status: http.StatusRequestedRangeNotSatisfiable, kind: "range", detail: "That part of the output is not kept."}
	}
	n = int(min(int64(n), to-at))
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, at+int64(n)-1, size))
	w.Header().Set("Content-Length", strconv.Itoa(n))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(buf[:n]) //nolint:gosec // G705: it is plain text, and nosniff says so
	return nil
}

// sink is where output goes. at is the offset of what is written.
type sink struct {
	w      http.ResponseWriter
	now    func() time.Time
	events bool // as server-sent events
}

func (s *sink) write(b []byte, at int64) error {
	ctl := http.NewResponseController(s.w)
	if err := ctl.SetWriteDeadline(s.now().Add(slowest)); err != nil {
		return err
	}
	if s.events {
		var text strings.Builder
		// JSON, so that a line of the output is never a line of the stream.
		data, err := json.Marshal(strings.ToValidUTF8(string(b), "\uFFFD"))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "id: %d\nevent: output\ndata: %s\n\n", at+int64(len(b)), data)
		b = []byte(text.String())
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return ctl.Flush()
}

// gap tells a reader that bytes are missing.
func (s *sink) gap(from, to int64) error {
	if !s.events {
		_, err := fmt.Fprintf(s.w, "\n[%d bytes not kept]\n", to-from)
		return err
	}
	_, err := fmt.Fprintf(s.w, "id: %d\nevent: gap\ndata: {\"from\":%d,\"to\":%d}\n\n", to, from, to)
	return err
}

// copyOutput sends what is there from off on, up to end, and returns where it
// came to.
func copyOutput(ctx context.Context, to *sink, out *process.Output, off, end int64) (int64, error) {
	buf := make([]byte, chunk)
	for off < end && ctx.Err() == nil {
		at, n, err := out.Next(buf, off)
		if at > off {
			if err := to.gap(off, at); err != nil {
				return off, err
			}
		}
		off = at
		if n > 0 {
			if err := to.write(buf[:n], at); err != nil {
				return off, err
			}
			off += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return off, nil
		}
		if err != nil {
			return off, err
		}
	}
	return off, ctx.Err()
}

// followOutput sends the output as it is written, until the run has ended: as
// server-sent events to who accepts them, whose Last-Event-ID is an offset,
// else as it is.
func (s *Server) followOutput(w http.ResponseWriter, r *http.Request, run runner.Run, out *process.Output) error {
	to := &sink{w: w, now: s.now, events: strings.Contains(r.Header.Get("Accept"), "text/event-stream")}
	off, _ := strconv.ParseInt(r.Header.Get("Last-Event-ID"), 10, 64)
	off = max(off, 0)
	kind := "text/plain; charset=utf-8"
	if to.events {
		kind = "text/event-stream"
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		// Asked before reading: what was written before the end is then read.
		now, err := s.runner.Get(r.Context(), run.ID)
		if err != nil {
			return nil //nolint:nilerr // the answer is under way, and ends
		}
		size, _ := out.State()
		if off, err = copyOutput(r.Context(), to, out, off, size); err != nil {
			return nil //nolint:nilerr // the reader is gone
		}
		if size, _ = out.State(); now.State.Ended() && off >= size {
			return to.end(now)
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return nil
		}
	}
}

// end tells a reader of events how the run ended.
func (s *sink) end(run runner.Run) error {
	if !s.events {
		return nil
	}
	data, err := json.Marshal(run)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(s.w, "event: end\ndata: %s\n\n", data) // the reader is gone; nobody is left to tell
	return nil
}
