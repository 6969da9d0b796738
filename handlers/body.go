package handlers

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/semaphore"

	"sallyport/runner"
)

// A body is held whole while it is verified, and whoever sends it has proved
// nothing yet. The first smallBody bytes of each are free; what goes beyond
// comes out of one allowance for all, so that memory is bounded by it and not by
// the number of connections, and a flood of large bodies leaves room for the small
// ones that most senders send.
const (
	smallBody  = 64 << 10
	largeTotal = 16 << 20

	answerTime = 30 * time.Second // to send an answer, once the body is there
)

// bodies reads bodies within the allowance.
type bodies struct{ large *semaphore.Weighted }

// newBodies makes an allowance in which the largest body of any hook fits.
func newBodies(hooks map[string]*runner.Hook) *bodies {
	total := int64(largeTotal)
	for _, h := range hooks {
		total = max(total, int64(h.Body.Max))
	}
	return &bodies{large: semaphore.NewWeighted(total)}
}

// read returns the body, whole, and what gives its allowance back.
func (b *bodies) read(w http.ResponseWriter, r *http.Request, bound runner.BodySpec, now time.Time) ([]byte, func(), error) {
	none := func() {}
	if r.ContentLength > int64(bound.Max) {
		return nil, none, tooLarge(w, bound)
	}
	// Errors mean that the connection has no deadlines, and it always has.
	ctl := http.NewResponseController(w)
	_ = ctl.SetReadDeadline(now.Add(bound.Timeout))
	// The server's own deadline for answers counts from the header on: a body
	// that takes its time would start a run and leave none to say so.
	_ = ctl.SetWriteDeadline(now.Add(bound.Timeout + answerTime))
	size := int64(bound.Max)
	if r.ContentLength >= 0 {
		size = r.ContentLength
	}
	body := http.MaxBytesReader(w, r.Body, int64(bound.Max))
	first, err := io.ReadAll(io.LimitReader(body, smallBody))
	if err != nil {
		return nil, none, bodyError(w, bound, err)
	}
	if len(first) < smallBody {
		arrived(ctl)
		return first, none, nil
	}
	if !b.large.TryAcquire(size) {
		return nil, none, &refusal{
			status: http.StatusServiceUnavailable, kind: "overloaded",
			detail: "Too many large bodies at once.", header: http.Header{"Retry-After": {"1"}, "Connection": {"close"}},
		}
	}
	release := func() { b.large.Release(size) }
	// At once, not by doubling, which would hold up to three times as much; a
	// page that nothing is written to takes no memory.
	whole := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead))
	whole.Write(first)
	if _, err := whole.ReadFrom(body); err != nil {
		release()
		return nil, none, bodyError(w, bound, err)
	}
	arrived(ctl)
	return whole.Bytes(), release, nil
}

// arrived lifts the deadline of a body that is there: left standing, it would
// end a request that waits for its run. One that is not there keeps it, for
// net/http goes on reading what a refused request still sends.
func arrived(ctl *http.ResponseController) { _ = ctl.SetReadDeadline(time.Time{}) }

func tooLarge(w http.ResponseWriter, bound runner.BodySpec) error {
	w.Header().Set("Connection", "close") // rather than read what nobody wants
	return &refusal{
		status: http.StatusRequestEntityTooLarge, kind: "too-large",
		detail: "The body is larger than the " + bound.Max.String() + " that this hook takes.",
	}
}

func bodyError(w http.ResponseWriter, bound runner.BodySpec, err error) error {
	var limit *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		return tooLarge(w, bound)
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		return &refusal{
			status: http.StatusRequestTimeout, kind: "too-slow",
			detail: "The body did not arrive within " + bound.Timeout.String() + ".",
		}
	}
	return malformed("The body did not arrive whole.")
}
