package handlers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"sallyport/auth"
	"sallyport/internal/guard"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
)

const (
	chunk     = 32 << 10
	pollEvery = 100 * time.Millisecond // for output that is not there yet
	slowest   = 30 * time.Second       // that a reader may take for one chunk
	heartbeat = 15 * time.Second       // of a stream in which nothing happens, for the proxies between
)

// endless is the end of what has none yet, as RFC 8673 has it: a number that no
// output reaches, and that every reader can count to.
const endless = 1<<53 - 1

// errGap ends an answer to a Range at a gap: its bytes must follow one another.
var errGap = errors.New("the output goes on after bytes that are not kept")

// errAgain ends an answer before the run has ended. A reader that asks again, of the next
// server perhaps, continues there, and its access is checked again.
var errAgain = errors.New("the reader must ask again")

// copyOutput sends what is there from off on, up to end, and returns where it
// came to.
func copyOutput(ctx context.Context, to outputWriter, out *output.Reader, off, end int64) (int64, error) {
	buf := make([]byte, chunk)
	for off < end && ctx.Err() == nil {
		at, n, err := out.Next(buf, off)
		if at > off {
			if err := to.writeGap(off, at); err != nil {
				return off, err
			}
		}
		off = at
		if n > 0 {
			if err := to.writePart(buf[:n], at); err != nil {
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

// follower sends the output of a run to one reader as it is written.
type follower struct {
	to      outputWriter
	runner  *runner.Runner
	log     *slog.Logger
	open    func() (*output.Reader, error)
	allowed func(changed bool) bool
	out     *output.Reader // nil until the command was started
	off     int64
}

// followOutput sends the output as it is written, until the run has ended: as
// server-sent events to a reader that accepts them, whose Last-Event-ID is an offset, else
// as it is, from the offset of a Range on (RFC 8673). For a queued run it waits.
// An answer that is not the whole output does not look like it: it has no event
// "end", or is broken off.
func (s *service) followOutput(w http.ResponseWriter, r *http.Request, req *request, run runner.Run) error {
	leave, ok := s.gates.followers.takePlace(r.Context(), req.caller, 0)
	if !ok {
		return refuseTooMany("followers")
	}
	defer leave()
	req.leaveReads()
	f := &follower{
		runner: s.runner, log: s.log,
		open:    func() (*output.Reader, error) { return s.outputs(run.ID) },
		allowed: s.newAccessCheck(r, req, run.ID), //nolint:contextcheck // it is the request's
	}
	if err := f.openOutput(); err != nil {
		return refuseOutput(err)
	}
	defer f.closeOutput()
	f.beginAnswer(&responseSender{w: w, now: s.now, last: s.now()}, r.Header)
	if r.Method == http.MethodHead {
		return nil
	}
	end, err := f.sendUntilEnd(r.Context(), run.ID)
	if err == nil {
		err = f.to.writeEnd(s.latest().rights.redactRun(req.caller, end), f.off)
	} else {
		err = f.to.endEarly(err)
	}
	if err != nil {
		markBroken(req, err)
	}
	return nil
}

// openOutput opens the output if it exists yet.
func (f *follower) openOutput() error {
	if f.out != nil {
		return nil
	}
	out, err := f.open()
	if errors.Is(err, runner.ErrUnknown) {
		return nil
	}
	f.out = out
	return err
}

// judgeEvery is how often the access of a follower is checked again under the same configuration:
// certificates and keys expire.
const judgeEvery = time.Minute

// newAccessCheck returns a function that checks again whether the caller may read an answer that may last
// for hours: when something has changed, and each minute.
func (s *service) newAccessCheck(r *http.Request, req *request, id string) func(changed bool) bool {
	by, at := s, s.now()
	return func(changed bool) bool {
		latest, now := s.latest(), s.now()
		if !changed && latest == by && now.Sub(at) < judgeEvery {
			return true
		}
		by, at = latest, now
		d := &auth.Delivery{Method: r.Method, Authority: r.Host, URL: r.URL, Header: r.Header, TLS: r.TLS, Now: now}
		run, err := s.runner.Get(r.Context(), id)
		return err == nil && by.config.Auth.StillValid(d, req.caller, req.scheme, req.key) &&
			by.rights.hasRight(req.caller, run, hook.MayRead)
	}
}

func (f *follower) closeOutput() {
	if f.out != nil {
		_ = f.out.Close() // only read
	}
}

// beginAnswer starts the answer in the form that the reader asked for, from the offset that it named.
func (f *follower) beginAnswer(reader *responseSender, asked http.Header) {
	status, kind := http.StatusOK, "text/plain; charset=utf-8"
	h := reader.w.Header()
	from, ranged := parseLiveRange(asked.Get("Range"))
	switch {
	case strings.Contains(asked.Get("Accept"), "text/event-stream"):
		kind = "text/event-stream"
		last, _ := strconv.ParseInt(asked.Get("Last-Event-ID"), 10, 64) // from the start, without a valid one
		f.to, f.off = &eventWriter{responseSender: reader}, max(last, 0)
	case ranged:
		status = http.StatusPartialContent
		f.to, f.off = &rangeWriter{plainWriter{reader}}, f.firstKeptOffset(from)
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", f.off, endless-1))
	default:
		f.to = &plainWriter{reader}
	}
	h.Set("Content-Type", kind)
	_ = reader.extendDeadline() // an error means that the reader is gone, and shows when something is sent
	reader.w.WriteHeader(status)
	_ = http.NewResponseController(reader.w).Flush()
}

// firstKeptOffset returns the offset of the first byte that is kept, from an offset on.
func (f *follower) firstKeptOffset(from int64) int64 {
	if f.out != nil {
		if _, d := f.out.State(); from >= d.From && from < d.To {
			return d.To
		}
	}
	return from
}

// parseLiveRange reads a Range from an offset on.
func parseLiveRange(field string) (from int64, ok bool) {
	from, to, ok, err := parseByteRange(field, endless)
	last := strings.HasPrefix(field, "bytes=-") // so many, of what is not there yet
	return from, ok && err == nil && to == endless && !last
}

// sendUntilEnd sends new output until the run has ended. The runner reports the end, and
// the file of the run has the output: the store is not read meanwhile.
func (f *follower) sendUntilEnd(ctx context.Context, id string) (runner.Run, error) {
	type ending struct {
		run runner.Run
		err error
	}
	ended := make(chan ending, 1)
	go func() {
		run, err := guard.Call(f.log, func() (runner.Run, error) { return f.runner.Wait(ctx, id) })
		ended <- ending{run, err}
	}()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	going := f.runner.Going()
	for {
		if err := f.sendWhatIsNew(ctx); err != nil {
			return runner.Run{}, err
		}
		select {
		case <-tick.C:
			if !f.allowed(false) {
				return runner.Run{}, errAgain
			}
			if err := f.to.keepAlive(); err != nil {
				return runner.Run{}, err
			}
		case e := <-ended:
			switch {
			case e.err != nil:
				return e.run, e.err
			case ctx.Err() != nil:
				return e.run, ctx.Err()
			case !e.run.State.Ended(), !f.allowed(true): // another caller may have joined the run since
				return e.run, errAgain
			}
			return e.run, f.sendWhatIsNew(ctx) // what was written before the end
		case <-going:
			going = nil // a running run may still end here; a queued one waits for the next server
			if run, err := f.runner.Get(ctx, id); err != nil || run.State == runner.Queued {
				return run, errors.Join(errAgain, err)
			}
		}
	}
}

// sendWhatIsNew sends what was written since. If the reader waited for the run to start, another
// caller may have joined the run since, and the output be that caller's.
func (f *follower) sendWhatIsNew(ctx context.Context) error {
	waited := f.out == nil
	err := f.openOutput()
	switch {
	case f.out == nil || err != nil:
		return err
	case waited && !f.allowed(true):
		return errAgain
	}
	size, _ := f.out.State()
	if f.off >= size { // most of the time, and a buffer for each look would be garbage
		return nil
	}
	f.off, err = copyOutput(ctx, f.to, f.out, f.off, size)
	return err
}
