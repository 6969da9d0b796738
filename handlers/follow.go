package handlers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

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
	heartbeat = 15 * time.Second       // of a stream in which nothing happens, for what stands between
)

// endless is the end of what has none yet, as RFC 8673 has it: a number that no
// output reaches, and that every reader can count to.
const endless = 1<<53 - 1

// errGap ends an answer to a Range: what is in it follows one another.
var errGap = errors.New("the output goes on behind what is not kept")

// errAgain ends what is followed here: whoever asks again goes on, at the next
// server perhaps, and is judged again.
var errAgain = errors.New("whoever follows is to ask again")

// sink is where output goes.
type sink struct {
	w      http.ResponseWriter
	now    func() time.Time
	events bool      // as server-sent events
	ranged bool      // as the answer to a Range
	last   time.Time // when something was sent
	held   []byte    // of events: the beginning of a character whose rest has not come
}

// renew gives the reader its time for what comes next. The server's own deadline
// is for answers that are made at once.
func (s *sink) renew() error {
	return http.NewResponseController(s.w).SetWriteDeadline(s.now().Add(slowest))
}

func (s *sink) send(b []byte) error {
	if err := s.renew(); err != nil {
		return err
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	s.last = s.now()
	return http.NewResponseController(s.w).Flush()
}

// write sends what stands at the offset at.
func (s *sink) write(b []byte, at int64) error {
	if !s.events {
		return s.send(b)
	}
	text := append(s.held, b...)
	whole := len(text) - unfinished(text)
	s.held = bytes.Clone(text[whole:])
	return s.text(text[:whole], at+int64(len(b)-len(s.held)))
}

// text sends an event whose text ends before the offset end.
func (s *sink) text(b []byte, end int64) error {
	if len(b) == 0 {
		return nil
	}
	// JSON, so that a line of the output is never a line of the stream.
	data, err := json.Marshal(strings.ToValidUTF8(string(b), "\uFFFD"))
	if err != nil {
		return err
	}
	return s.send(fmt.Appendf(nil, "id: %d\nevent: output\ndata: %s\n\n", end, data))
}

// unfinished is how many bytes at the end are the beginning of one character.
func unfinished(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if tail := b[len(b)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}

// cut sends what is held of a character whose rest will not come.
func (s *sink) cut(at int64) error {
	held := s.held
	s.held = nil
	return s.text(held, at)
}

// gap tells a reader that bytes are missing.
func (s *sink) gap(from, to int64) error {
	switch {
	case s.ranged:
		return errGap
	case !s.events:
		return s.send(fmt.Appendf(nil, "\n[%d bytes not kept]\n", to-from))
	}
	if err := s.cut(from); err != nil {
		return err
	}
	return s.send(fmt.Appendf(nil, "id: %d\nevent: gap\ndata: {\"from\":%d,\"to\":%d}\n\n", to, from, to))
}

// beat keeps a stream alive in which nothing happens.
func (s *sink) beat() error {
	if s.events && s.now().Sub(s.last) >= heartbeat {
		return s.send([]byte(":\n\n"))
	}
	return s.renew()
}

// end tells a reader of events how the run ended.
func (s *sink) end(run runner.Run, at int64) error {
	if !s.events {
		return s.renew()
	}
	data, err := json.Marshal(run)
	return errors.Join(err, s.cut(at), s.send(fmt.Appendf(nil, "event: end\ndata: %s\n\n", data)))
}

// copyOutput sends what is there from off on, up to end, and returns where it
// came to.
func copyOutput(ctx context.Context, to *sink, out *output.Reader, off, end int64) (int64, error) {
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

// follower sends the output of a run as it is written.
type follower struct {
	*sink
	open    func() (*output.Reader, error)
	allowed func(changed bool) bool
	out     *output.Reader // nil until the command was started
	off     int64
}

// followOutput sends the output as it is written, until the run has ended: as
// server-sent events to who accepts them, whose Last-Event-ID is an offset, else
// as it is, from the offset of a Range on (RFC 8673). A run that waits is waited
// for. What is not the whole output does not look like it: without an event
// "end", or broken off.
func (s *surface) followOutput(w http.ResponseWriter, r *http.Request, req *request, run runner.Run) error {
	leave, ok := s.followers.enter(r.Context(), req.caller, 0)
	if !ok {
		return tooMany("followers")
	}
	defer leave()
	req.leaveReads()
	f := &follower{
		sink:    &sink{w: w, now: s.now, last: s.now(), events: strings.Contains(r.Header.Get("Accept"), "text/event-stream")},
		open:    func() (*output.Reader, error) { return s.outputs(run.ID) },
		allowed: s.lasting(r, req, run.ID), //nolint:contextcheck // it is the request's
	}
	if err := f.find(); err != nil {
		return noOutput(err)
	}
	defer f.close()
	f.begin(r.Header)
	if r.Method == http.MethodHead {
		return nil
	}
	end, err := s.attend(r.Context(), f, run.ID)
	switch {
	case err == nil:
		err = f.end(s.latest().view(req.caller, end), f.off)
	case errors.Is(err, errAgain) && f.events:
		return nil // who was told of no end comes again
	}
	if err != nil {
		breakOff(req, err)
	}
	return nil
}

// find opens the output if it is there by now.
func (f *follower) find() error {
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

// judgeEvery is how often who follows is judged again though no configuration came
// into force: certificates end, and so do keys.
const judgeEvery = time.Minute

// lasting judges again who reads an answer that may last for hours, when something
// has changed, and each minute.
func (s *surface) lasting(r *http.Request, req *request, id string) func(changed bool) bool {
	by, at := s, s.now()
	return func(changed bool) bool {
		latest, now := s.latest(), s.now()
		if !changed && latest == by && now.Sub(at) < judgeEvery {
			return true
		}
		by, at = latest, now
		d := &auth.Delivery{Method: r.Method, Authority: r.Host, URL: r.URL, Header: r.Header, TLS: r.TLS, Now: now}
		run, err := s.runner.Get(r.Context(), id)
		return err == nil && by.config.Auth.StillValid(d, req.caller, req.scheme, req.key) && by.may(req.caller, run, hook.MayRead)
	}
}

func (f *follower) close() {
	if f.out != nil {
		_ = f.out.Close() // only read
	}
}

// begin answers as the reader asked, from the offset that it named.
func (f *follower) begin(asked http.Header) {
	status, kind := http.StatusOK, "text/plain; charset=utf-8"
	h := f.w.Header()
	if f.events {
		kind = "text/event-stream"
		off, _ := strconv.ParseInt(asked.Get("Last-Event-ID"), 10, 64) // from the start, without a good one
		f.off = max(off, 0)
	} else if from, ok := liveRange(asked.Get("Range")); ok {
		if f.out != nil {
			if _, d := f.out.State(); from >= d.From && from < d.To {
				from = d.To
			}
		}
		status, f.off, f.ranged = http.StatusPartialContent, from, true
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", from, endless-1))
	}
	h.Set("Content-Type", kind)
	_ = f.renew() // an error means that the reader is gone, and shows when something is sent
	f.w.WriteHeader(status)
	_ = http.NewResponseController(f.w).Flush()
}

// liveRange reads a Range from an offset on.
func liveRange(field string) (from int64, ok bool) {
	from, to, ok, err := byteRange(field, endless)
	last := strings.HasPrefix(field, "bytes=-") // so many, of what is not there yet
	return from, ok && err == nil && to == endless && !last
}

// attend sends what comes until the run has ended. Of that the runner tells, and
// of the output the run's file: nobody asks the record meanwhile.
func (s *surface) attend(ctx context.Context, f *follower, id string) (runner.Run, error) {
	type ending struct {
		run runner.Run
		err error
	}
	ended := make(chan ending, 1)
	go func() {
		run, err := guard.Call(s.log, func() (runner.Run, error) { return s.runner.Wait(ctx, id) })
		ended <- ending{run, err}
	}()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	going := s.runner.Going()
	for {
		if err := f.more(ctx); err != nil {
			return runner.Run{}, err
		}
		select {
		case <-tick.C:
			if !f.allowed(false) {
				return runner.Run{}, errAgain
			}
			if err := f.beat(); err != nil {
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
			return e.run, f.more(ctx) // what was written before the end
		case <-going:
			going = nil // what runs may still end here; what waits waits for the next server
			if run, err := s.runner.Get(ctx, id); err != nil || run.State == runner.Queued {
				return run, errors.Join(errAgain, err)
			}
		}
	}
}

// more sends what is there by now. Whoever waited for the run to start may have
// been joined by somebody else since, whose output this is.
func (f *follower) more(ctx context.Context) error {
	waited := f.out == nil
	err := f.find()
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
	f.off, err = copyOutput(ctx, f.sink, f.out, f.off, size)
	return err
}
