package handlers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/netid"
	"sallyport/runner/hook"
)

// A body is held in memory while it is verified, before its sender is authenticated. The first freeBody bytes of each
// request do not count. The bytes beyond them are outside of the heap, and take room, which is reserved in steps as
// the body arrives.
const (
	freeBody = 16 << 10
	bodyStep = 64 << 10

	leastRate = 16 << 10        // bytes per second at which a body must arrive,
	rateAfter = 2 * time.Second // after this time

	answerTime = 30 * time.Second // to send an answer, once the body is complete
)

// unverified is a body from a sender that is not authenticated yet. Its bytes may be used until it is released;
// copyToHeap returns a copy that may be used after that.
type unverified struct {
	bytes  []byte
	region []byte // outside of the heap: address space for the largest body that is allowed
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

// releaseRoom releases the room. It may be called more than once.
func (u *unverified) releaseRoom() {
	u.unmapRegion()
	u.room.releaseUpload(u.upload)
}

func (u *unverified) unmapRegion() {
	if u.region != nil {
		_ = unix.Munmap(u.region) // fails only for memory that is not mapped
		u.region = nil
	}
}

// growRegion makes space for more bytes, if there is room for them.
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

// receiveBody reads the body to its end, which must come after at most most bytes.
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
		// checked again: the new deadline may have replaced the one that stops this upload
		if u.room.mustGiveWay(u.upload) {
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

// readUnverified returns the body of a request. The caller must release it, unless there is an error.
func (b *bodyReader) readUnverified(w http.ResponseWriter, r *http.Request, bound hook.BodySpec) (*unverified, error) {
	if err := checkEncoding(r); err != nil {
		return nil, err
	}
	if r.ContentLength > int64(bound.Max) {
		return nil, refuseTooLarge(w, bound)
	}
	ctl := http.NewResponseController(w)
	// The server sets the deadline for the answer when it has read the header. A slow body would start a run and
	// leave no time for the answer.
	_ = ctl.SetWriteDeadline(time.Now().Add(bound.Timeout + answerTime)) // fails only without a connection
	from := remoteAddr(r)
	u := &unverified{room: b.room, upload: &upload{
		site: netid.Site(from), known: b.proved.provedLately(netid.Host(from), b.now()), begun: time.Now(),
		stop: func() { _ = ctl.SetReadDeadline(time.Unix(1, 0)) },
	}}
	if r.ContentLength == 0 { // net/http already waits for the sender to disconnect, and would take a deadline for that
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

// received reports to the connection how much of a body was read.
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

// liftReadDeadline removes the read deadline once a body is complete: otherwise it would end a request that waits for
// its run. If the body is not complete, the deadline stays, because net/http continues to read what the sender of a
// refused request still sends.
func liftReadDeadline(ctl *http.ResponseController) { _ = ctl.SetReadDeadline(time.Time{}) }

// checkEncoding refuses a body that is encoded, for example with gzip: bodies are not decoded, because the bytes that
// arrive are those that are signed, and because few bytes may decode to very many.
func checkEncoding(r *http.Request) error {
	for _, line := range r.Header["Content-Encoding"] {
		for coding := range strings.SplitSeq(line, ",") {
			coding = strings.Trim(coding, " \t")
			if coding == "" || strings.EqualFold(coding, "identity") {
				continue
			}
			return &refusal{
				status: http.StatusUnsupportedMediaType, kind: "encoding",
				reason: fmt.Sprintf("Content-Encoding %.40q", coding),
				// The connection is closed so that the body is not read.
				header: http.Header{"Accept-Encoding": {"identity"}, "Connection": {"close"}},
				detail: fmt.Sprintf("The body has the Content-Encoding %.40q, and bodies are not decoded. "+
					"Switch compression off at the sender.", coding),
			}
		}
	}
	return nil
}

func refuseTooLarge(w http.ResponseWriter, bound hook.BodySpec) error {
	w.Header().Set("Connection", "close") // so that the rest is not read
	return tooLarge(bound)
}

func tooLarge(bound hook.BodySpec) error {
	return &refusal{
		status: http.StatusRequestEntityTooLarge, kind: "too-large",
		detail: "The body is larger than the " + bound.Max.String() + " that this hook accepts.",
	}
}

func refuseBody(w http.ResponseWriter, u *upload, bound hook.BodySpec, err error) error {
	var limit *http.MaxBytesError
	switch {
	case errors.Is(err, errNoRoom):
		return &refusal{
			status: http.StatusServiceUnavailable, kind: "overloaded",
			detail: "Too many large bodies at once.",
			header: http.Header{"Retry-After": {"1"}, "Connection": {"close"}},
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
