package handlers

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/netid"
	"sallyport/runner/hook"
)

// A body is held in memory while it is verified, and its sender is not authenticated
// yet. The first freeBody bytes of each request are free. What goes beyond is
// outside of the heap, and takes room that is given in steps, as it arrives.
const (
	freeBody = 16 << 10
	bodyStep = 64 << 10

	leastRate = 16 << 10        // bytes per second that a body must come with,
	rateAfter = 2 * time.Second // after so long

	answerTime = 30 * time.Second // to send an answer, once the body is there
)

// unverified is a body whose sender is not authenticated yet. Its bytes may be used
// until it is released; copyToHeap returns what is needed for longer.
type unverified struct {
	bytes  []byte
	region []byte // outside of the heap: address space for all that may come
	upload *upload
	room   *room
}

// copyToHeap copies the bytes to the heap, once they are verified.
func (u *unverified) copyToHeap() []byte {
	if u.region != nil {
		u.bytes = bytes.Clone(u.bytes)
		u.unmapRegion()
	}
	return u.bytes
}

// releaseRoom gives the room back. It may be called more than once.
func (u *unverified) releaseRoom() {
	u.unmapRegion()
	u.room.releaseUpload(u.upload)
}

func (u *unverified) unmapRegion() {
	if u.region != nil {
		_ = unix.Munmap(u.region) // fails only for what is not mapped
		u.region = nil
	}
}

// growRegion makes place for more bytes, if there is room for them.
func (u *unverified) growRegion(most int64) error {
	size := min(int64(cap(u.bytes))+bodyStep, most)
	if !u.room.reserveUpTo(u.upload, size) {
		return errNoRoom
	}
	if u.region == nil {
		region, err := reserveMemory(most)
		if err != nil {
			return errNoRoom
		}
		u.region = region
		copy(region, u.bytes)
	}
	u.bytes = u.region[:len(u.bytes):size]
	return nil
}

var errNoRoom = errors.New("no memory is left for the body")

// receiveBody reads the body up to its end, which comes after most bytes at the latest.
func (u *unverified) receiveBody(
	ctl *http.ResponseController, from io.Reader, most int64, timeout time.Duration,
) error {
	var due time.Time
	var end [1]byte // to find the end when the buffer is full
	for {
		if next := u.upload.nextDeadline(timeout); next.Sub(due) > time.Second/10 {
			due = next
			_ = ctl.SetReadDeadline(due) // fails only without a connection
		}
		if u.room.mustGiveWay(u.upload) { // or the new deadline would have taken the place of the one that says so
			return errNoRoom
		}
		if len(u.bytes) == cap(u.bytes) && int64(cap(u.bytes)) < most {
			if err := u.growRegion(most); err != nil {
				return err
			}
		}
		into := u.bytes[len(u.bytes):cap(u.bytes)]
		if len(into) == 0 {
			into = end[:]
		}
		n, err := from.Read(into)
		u.room.recordProgress(u.upload, n)
		u.bytes = u.bytes[:min(len(u.bytes)+n, cap(u.bytes))]
		switch {
		case err != nil && !u.room.finishUpload(u.upload):
			return errNoRoom
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// bodyReader reads bodies of senders that are not authenticated yet.
type bodyReader struct {
	room   *room
	proved *provedHosts
	now    func() time.Time
}

// readUnverified returns the body of a request. Unless there is an error, it must be released.
func (b *bodyReader) readUnverified(w http.ResponseWriter, r *http.Request, bound hook.BodySpec) (*unverified, error) {
	if r.ContentLength > int64(bound.Max) {
		return nil, refuseTooLarge(w, bound)
	}
	ctl := http.NewResponseController(w)
	// The server's own deadline for answers counts from the header on: a body
	// that takes its time would start a run and leave none to say so.
	_ = ctl.SetWriteDeadline(time.Now().Add(bound.Timeout + answerTime)) // fails only without a connection
	from := remoteAddr(r)
	u := &unverified{room: b.room, upload: &upload{
		site: netid.Site(from), known: b.proved.provedLately(netid.Host(from), b.now()), begun: time.Now(),
		stop: func() { _ = ctl.SetReadDeadline(time.Unix(1, 0)) },
	}}
	if r.ContentLength == 0 { // net/http waits for the sender to leave by now, which a deadline would look like
		liftReadDeadline(ctl)
		return u, nil
	}
	most := int64(bound.Max)
	if r.ContentLength > 0 {
		most = r.ContentLength
	}
	u.bytes = make([]byte, 0, min(most, freeBody))
	body := &received{http.MaxBytesReader(w, r.Body, int64(bound.Max)), netid.ConnectionOf(r)}
	if err := u.receiveBody(ctl, body, most, bound.Timeout); err != nil {
		u.releaseRoom()
		return nil, refuseBody(w, u.upload, bound, err)
	}
	liftReadDeadline(ctl)
	return u, nil
}

// received reports to the connection what is read of a body.
type received struct {
	io.Reader
	conn netid.Connection
}

// Read implements io.Reader.
func (b *received) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.conn.Received(n)
	return n, err
}

// liftReadDeadline lifts the deadline of a body that is there: left standing, it would
// end a request that waits for its run. One that is not there keeps it, for
// net/http goes on reading what a refused request still sends.
func liftReadDeadline(ctl *http.ResponseController) { _ = ctl.SetReadDeadline(time.Time{}) }

func refuseTooLarge(w http.ResponseWriter, bound hook.BodySpec) error {
	w.Header().Set("Connection", "close") // rather than read the rest
	return &refusal{
		status: http.StatusRequestEntityTooLarge, kind: "too-large",
		detail: "The body is larger than the " + bound.Max.String() + " that this hook takes.",
	}
}

func refuseBody(w http.ResponseWriter, u *upload, bound hook.BodySpec, err error) error {
	var limit *http.MaxBytesError
	switch {
	case errors.Is(err, errNoRoom):
		return &refusal{
			status: http.StatusServiceUnavailable, kind: "overloaded",
			detail: "Too many large bodies at once.", header: http.Header{"Retry-After": {"1"}, "Connection": {"close"}},
		}
	case errors.As(err, &limit):
		return refuseTooLarge(w, bound)
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		detail := "The body did not arrive within " + bound.Timeout.String() + "."
		if time.Since(u.begun) < bound.Timeout {
			detail = "The body arrived too slowly: 16 KiB per second are needed."
		}
		return &refusal{status: http.StatusRequestTimeout, kind: "too-slow", detail: detail}
	}
	return malformed("The body is incomplete.")
}
