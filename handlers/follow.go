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
	pollEvery = 100 * time.Millisecond // interval at which the file is checked for new output
	slowest   = 30 * time.Second       // the most time that a reader may take for one chunk
	heartbeat = 15 * time.Second       // interval of comments in an idle stream, so that proxies do not close it
)

// endless is the end of a Range of an output with a length that is not known yet (RFC 8673): a number that no output
// reaches, and that every reader can represent.
const endless = 1<<53 - 1

// errGap ends an answer to a Range at a gap, because the bytes of a Range must be contiguous.
var errGap = errors.New("the output goes on after bytes that are not kept")

// errAgain ends an answer before the run has ended. A reader that asks again, perhaps at the next server, continues
// there, and its access is checked again.
var errAgain = errors.New("the reader must ask again")

// copyOutput sends the existing output from off to end, and returns the offset that it reached.
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

// follower sends the output of a run to one reader while it is written.
type follower struct {
	to     outputWriter
	runner *runner.Runner
	log    *slog.Logger
	open   func() (*output.Reader, error)
	access accessCheck
	out    *output.Reader // nil until the command was started
	off    int64
}

// followOutput sends the output while it is written, until the run has ended. A reader that accepts server-sent
// events gets these, from the offset in its Last-Event-ID. Other readers get the plain output, from the offset of
// their Range (RFC 8673). For a queued run, followOutput waits until it starts. An incomplete answer can be
// recognized: it has no event "end", or the connection is broken off.
func (s *service) followOutput(w http.ResponseWriter, r *http.Request, req *request, run runner.Run) error {
	leave, ok := s.gates.followers.takePlace(r.Context(), req.caller, 0)
	if !ok {
		return refuseTooMany("followers")
	}
	defer leave()
	req.leaveReads()
	f := &follower{
		runner: s.runner, log: s.log,
		open:   func() (*output.Reader, error) { return s.outputs(run.ID) },
		access: accessCheck{r: r, req: req, run: run.ID, under: s, at: s.now()},
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

// judgeEvery is how often the access of a follower is checked again under the same configuration, because
// certificates and keys expire.
const judgeEvery = time.Minute

// accessCheck checks again whether a caller may read an answer, which may last for hours.
type accessCheck struct {
	r     *http.Request
	req   *request
	run   string
	under *service  // with the configuration of the last check
	at    time.Time // of the last check
}

// mayStillRead checks only if the configuration has changed, or if the last check was a minute ago.
func (c *accessCheck) mayStillRead(ctx context.Context) bool {
	return c.under.latest() == c.under && c.under.now().Sub(c.at) < judgeEvery || c.mayReadNow(ctx)
}

// mayReadNow checks in any case.
func (c *accessCheck) mayReadNow(ctx context.Context) bool {
	c.under, c.at = c.under.latest(), c.under.now()
	d := &auth.Delivery{
		Method: c.r.Method, Authority: c.r.Host, URL: c.r.URL, Header: c.r.Header, TLS: c.r.TLS, Now: c.at,
		Address: remoteAddr(c.r),
	}
	run, err := c.under.runner.Get(ctx, c.run)
	return err == nil && c.under.config.Auth.StillValid(d, c.req.caller, c.req.credentialKind, c.req.key) &&
		c.under.rights.hasRight(c.req.caller, run, hook.MayRead)
}

func (f *follower) closeOutput() {
	if f.out != nil {
		_ = f.out.Close() // only read
	}
}

// beginAnswer starts the answer in the format and from the offset that the reader requested.
func (f *follower) beginAnswer(reader *responseSender, asked http.Header) {
	status, kind := http.StatusOK, "text/plain; charset=utf-8"
	h := reader.w.Header()
	from, ranged := parseLiveRange(asked.Get("Range"))
	switch {
	case strings.Contains(asked.Get("Accept"), "text/event-stream"):
		kind = "text/event-stream"
		last, _ := strconv.ParseInt(asked.Get("Last-Event-ID"), 10, 64) // from the start, if it is not valid
		f.to, f.off = &eventWriter{responseSender: reader}, max(last, 0)
	case ranged:
		status = http.StatusPartialContent
		f.to, f.off = &rangeWriter{plainWriter{reader}}, f.firstKeptOffset(from)
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", f.off, endless-1))
	default:
		f.to = &plainWriter{reader}
	}
	h.Set("Content-Type", kind)
	_ = reader.extendDeadline() // an error means that the reader is gone; the next write returns it too
	reader.w.WriteHeader(status)
	_ = http.NewResponseController(reader.w).Flush()
}

// firstKeptOffset returns the offset of the first byte at or after from that is kept.
func (f *follower) firstKeptOffset(from int64) int64 {
	if f.out != nil {
		if _, d := f.out.State(); from >= d.From && from < d.To {
			return d.To
		}
	}
	return from
}

// parseLiveRange parses a Range from an offset to the end.
func parseLiveRange(field string) (from int64, ok bool) {
	from, to, ok, err := parseByteRange(field, endless)
	last := strings.HasPrefix(field, "bytes=-") // the last bytes of an output that is not complete
	return from, ok && err == nil && to == endless && !last
}

// sendUntilEnd sends new output until the run has ended. It does not read the store: the runner reports the end, and
// the output is in the file of the run.
func (f *follower) sendUntilEnd(ctx context.Context, id string) (runner.Run, error) {
	type ending struct {
		run runner.Run
		err error
	}
	ended := make(chan ending, 1)
	go func() {
		run, err := guard.Call(f.log, func() (runner.Run, error) { return f.runner.WaitAttempt(ctx, id) })
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
			if !f.access.mayStillRead(ctx) {
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
			case !e.run.State.Ended(), !f.access.mayReadNow(ctx): // another caller may have joined the run since
				return e.run, errAgain
			}
			return e.run, f.sendWhatIsNew(ctx) // sends the output that was written before the end
		case <-going:
			going = nil // a running run may still end here; a queued one is left to the next server
			if run, err := f.runner.Get(ctx, id); err != nil || run.State == runner.Queued {
				return run, errors.Join(errAgain, err)
			}
		}
	}
}

// sendWhatIsNew sends the output since the last call. If the reader waited for the run to start, the access is
// checked first: another caller may have joined the run, so that the output belongs to that caller.
func (f *follower) sendWhatIsNew(ctx context.Context) error {
	waited := f.out == nil
	err := f.openOutput()
	switch {
	case f.out == nil || err != nil:
		return err
	case waited && !f.access.mayReadNow(ctx):
		return errAgain
	}
	size, _ := f.out.State()
	if f.off >= size { // usually there is nothing new, so no buffer is allocated
		return nil
	}
	f.off, err = copyOutput(ctx, f.to, f.out, f.off, size)
	return err
}
