package handlers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"sallyport/runner"
)

// outputWriter sends the output of a run to one reader, in the form that the reader asked for.
type outputWriter interface {
	// writePart sends bytes that begin at an offset of the output.
	writePart(b []byte, at int64) error
	// writeGap sends that the bytes between two offsets are not kept.
	writeGap(from, to int64) error
	// keepAlive is called while there is nothing to send.
	keepAlive() error
	// writeEnd sends how the run ended. The output ends before the offset at.
	writeEnd(run runner.Run, at int64) error
	// endEarly returns how an incomplete answer ends: with an error, unless the reader can see from what it has that
	// the output continues.
	endEarly(cause error) error
}

// responseSender sends bytes at once, and sets the deadline of the reader for each piece.
type responseSender struct {
	w    http.ResponseWriter
	now  func() time.Time
	last time.Time // when something was sent
}

// extendDeadline sets the deadline for the next piece. The default deadline of the server is for answers that do not
// wait.
func (s *responseSender) extendDeadline() error {
	return http.NewResponseController(s.w).SetWriteDeadline(s.now().Add(slowest))
}

func (s *responseSender) sendAndFlush(b []byte) error {
	if err := s.extendDeadline(); err != nil {
		return err
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	s.last = s.now()
	return http.NewResponseController(s.w).Flush()
}

// plainWriter sends the output as it is, with a line of text in each gap.
type plainWriter struct{ *responseSender }

func (p *plainWriter) writePart(b []byte, _ int64) error { return p.sendAndFlush(b) }

func (p *plainWriter) writeGap(from, to int64) error {
	return p.sendAndFlush(fmt.Appendf(nil, "\n[%d bytes not kept]\n", to-from))
}

func (p *plainWriter) keepAlive() error { return p.extendDeadline() }

func (p *plainWriter) writeEnd(runner.Run, int64) error { return p.extendDeadline() }

func (p *plainWriter) endEarly(cause error) error { return cause }

// rangeWriter answers a Range: plain text that ends at a gap, because the bytes of a Range must be contiguous.
type rangeWriter struct{ plainWriter }

func (*rangeWriter) writeGap(_, _ int64) error { return errGap }

// eventWriter sends server-sent events. The id of an event is the offset after its text.
type eventWriter struct {
	*responseSender

	held []byte // the first bytes of a character that is not complete yet
}

func (e *eventWriter) writePart(b []byte, at int64) error {
	text := append(e.held, b...)
	whole := len(text) - countUnfinished(text)
	e.held = bytes.Clone(text[whole:])
	return e.sendText(text[:whole], at+int64(len(b)-len(e.held)))
}

// sendText sends an event. Its text ends before the offset end.
func (e *eventWriter) sendText(b []byte, end int64) error {
	if len(b) == 0 {
		return nil
	}
	// The text is JSON, so that a line break in the output is not one in the stream.
	data, err := json.Marshal(strings.ToValidUTF8(string(b), "\uFFFD"))
	if err != nil {
		return err
	}
	return e.sendAndFlush(fmt.Appendf(nil, "id: %d\nevent: output\ndata: %s\n\n", end, data))
}

// sendHeld sends the held bytes of a character that stays incomplete.
func (e *eventWriter) sendHeld(at int64) error {
	held := e.held
	e.held = nil
	return e.sendText(held, at)
}

func (e *eventWriter) writeGap(from, to int64) error {
	if err := e.sendHeld(from); err != nil {
		return err
	}
	return e.sendAndFlush(fmt.Appendf(nil, "id: %d\nevent: gap\ndata: {\"from\":%d,\"to\":%d}\n\n", to, from, to))
}

// keepAlive sends a comment when nothing was sent for a while.
func (e *eventWriter) keepAlive() error {
	if e.now().Sub(e.last) >= heartbeat {
		return e.sendAndFlush([]byte(":\n\n"))
	}
	return e.extendDeadline()
}

func (e *eventWriter) writeEnd(run runner.Run, at int64) error {
	data, err := json.Marshal(run)
	return errors.Join(err, e.sendHeld(at), e.sendAndFlush(fmt.Appendf(nil, "event: end\ndata: %s\n\n", data)))
}

// endEarly returns nil for a run that continues elsewhere: a reader that got no event "end" connects again.
func (e *eventWriter) endEarly(cause error) error {
	if errors.Is(cause, errAgain) {
		return nil
	}
	return cause
}

// countUnfinished returns how many bytes at the end belong to an incomplete character.
func countUnfinished(b []byte) int {
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
