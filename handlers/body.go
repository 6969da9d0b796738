package handlers

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"

	"sallyport/internal/peer"
	"sallyport/runner"
)

// A body is held whole while it is verified, and whoever sends it has proved
// nothing yet. The first freeBody bytes of each request are free; what goes
// beyond comes out of one allowance for all, as it arrives: who declares much
// and sends little holds little. No site may hold more than half of it.
const (
	freeBody  = 16 << 10
	earnest   = 1 << 20 // who has sent so much is given room for the rest
	leastHeld = 16 << 20
	litterMay = 8 << 20 // what bodies leave before it is collected

	answerTime = 30 * time.Second // to send an answer, once the body is there
)

// bodies reads bodies within the allowance.
type bodies struct {
	total int64

	mu   sync.Mutex
	held int64
	by   map[netip.Addr]int64 // only sites that hold something

	litter int64 // what bodies left behind since that was last collected
}

// newBodies makes an allowance of which the largest body of any hook takes at
// most half, so that no single site can keep all others out.
func newBodies(hooks map[string]*runner.Hook) *bodies {
	b := &bodies{total: leastHeld, by: map[netip.Addr]int64{}}
	for _, h := range hooks {
		b.total = max(b.total, 2*(int64(h.Body.Max)+bytes.MinRead))
	}
	return b
}

// or returns the allowance itself if it is right for the hooks, and otherwise a
// new one.
func (b *bodies) or(hooks map[string]*runner.Hook) *bodies {
	fresh := newBodies(hooks)
	if b != nil && b.total == fresh.total {
		return b
	}
	return fresh
}

func (b *bodies) take(from netip.Addr, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held+n > b.total || b.by[from]+n > b.total/2 {
		return false
	}
	b.held += n
	b.by[from] += n
	return true
}

func (b *bodies) give(from netip.Addr, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held -= n
	b.litter += n
	if b.by[from] -= n; b.by[from] == 0 {
		delete(b.by, from)
	}
}

// tidy collects what bodies have left, if there was too much of it with one more
// of this size. By Go's own measure as much as is alive would be left, and so the
// bodies of a few strangers take three times their size. For the rest of what
// is alive that measure is the right one: a limit of the whole would, once
// connections alone reach it, have the collector run without end.
func (b *bodies) tidy(size int64) {
	b.mu.Lock()
	due := b.litter > 0 && b.litter+size > max(litterMay, (alive()-b.held)/2)
	if due {
		b.litter = 0
	}
	b.mu.Unlock()
	if due {
		runtime.GC()
	}
}

// alive is how much was found to be in use when garbage was last collected.
func alive() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64()) //nolint:gosec // G115: no heap is that large
}

// outgrown counts a buffer that another takes the place of.
func (b *bodies) outgrown(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.litter += int64(n)
}

// read returns the body, whole, and what gives its allowance back.
func (b *bodies) read(w http.ResponseWriter, r *http.Request, bound runner.BodySpec, now time.Time) ([]byte, func(), error) {
	none := func() {}
	if r.ContentLength > int64(bound.Max) {
		return nil, none, tooLarge(w, bound)
	}
	// Errors mean that the connection has no deadlines, and it always has.
	ctl := http.NewResponseController(w)
	// The server's own deadline for answers counts from the header on: a body
	// that takes its time would start a run and leave none to say so.
	_ = ctl.SetWriteDeadline(now.Add(bound.Timeout + answerTime))
	if r.ContentLength == 0 { // net/http waits for the sender to leave by now, which a deadline would look like
		arrived(ctl)
		return nil, none, nil
	}
	_ = ctl.SetReadDeadline(now.Add(bound.Timeout))
	most := int64(bound.Max)
	if r.ContentLength >= 0 {
		most = r.ContentLength
	}
	most += bytes.MinRead // room to find its end
	from, held := peer.Site(remote(r)), int64(0)
	release := func() { b.give(from, held); held = 0 }
	body := http.MaxBytesReader(w, r.Body, int64(bound.Max))
	whole := make([]byte, 0, min(most, freeBody))
	for {
		if len(whole) == cap(whole) {
			size := min(2*int64(cap(whole)), most)
			if size > earnest {
				size = most // by doubling, up to three times as much would be held
			}
			if !b.take(from, size-held) {
				release()
				return nil, none, &refusal{
					status: http.StatusServiceUnavailable, kind: "overloaded",
					detail: "Too many large bodies at once.", header: http.Header{"Retry-After": {"1"}, "Connection": {"close"}},
				}
			}
			held = size
			b.tidy(size)
			b.outgrown(cap(whole))
			whole = append(make([]byte, 0, size), whole...)
		}
		n, err := body.Read(whole[len(whole):cap(whole)])
		whole = whole[:len(whole)+n]
		switch {
		case errors.Is(err, io.EOF):
			arrived(ctl)
			return whole, release, nil
		case err != nil:
			release()
			return nil, none, bodyError(w, bound, err)
		}
	}
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
