package handlers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/time/rate"

	"sallyport/auth"
	"sallyport/internal/config"
	"sallyport/internal/netid"
	"sallyport/runner/hook"
)

// NewAddressLimit returns the limiter of a table with a single slot.
func NewAddressLimit(limit config.Limit) func(netip.Addr, time.Time) bool {
	return newAddressLimits(limit, 1).allowAddress
}

// Tables returns how many bytes the tables of addresses take.
const Tables = (connectionSlots + addressSlots + failureSlots) * unsafe.Sizeof(rate.Limiter{})

// Wait waits for a beat that is at least d from now, as a refusal does.
func Wait(ctx context.Context, going <-chan struct{}, d time.Duration) {
	newBeats().waitForBeat(ctx, going, d)
}

// Bind takes the parameters of a hook from a delivery of the caller c, which sends JSON, or forms with JSON.
func Bind(r *http.Request, body []byte, h *hook.Hook) (hook.Values, error) {
	in, err := openDelivery(r, body, &auth.Identity{Caller: "c", PayloadForm: true}, h)
	if err != nil {
		return nil, err
	}
	return bindParameters(in, h)
}

// Held returns how much room unverified bodies hold.
func (h *Handler) Held() int64 {
	r := h.current.Load().bodies.room
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// Bounds of what a caller has in progress at once.
const (
	MaxReads     = maxReads
	MaxFollowers = maxFollowers
	MaxWaits     = maxWaits
	MaxNames     = maxNames
)

// FixedPaths returns the paths of the server itself, as the router has them.
func FixedPaths() (paths []string) {
	for path := range (&service{shared: &shared{}}).fixedRoutes() {
		paths = append(paths, path)
	}
	return paths
}

// Traceparent returns what is passed on to the command of a delivery.
func Traceparent(h http.Header) string { return validTraceparent(h) }

// Room is the room for unverified bodies.
type Room struct{ *room }

// NewRoom returns a room of so many bytes.
func NewRoom(total int64) Room {
	r := &room{total: total, sites: map[netip.Addr]int64{}, uploads: map[*upload]struct{}{}}
	r.given = sync.NewCond(&r.mu)
	return Room{r}
}

// Body is an unverified body that arrives from a connection.
type Body struct {
	*unverified

	conn net.Conn
}

// NewBody begins a body from an address.
func (r Room) NewBody(conn net.Conn, from netip.Addr, known bool) Body {
	return Body{&unverified{room: r.room, upload: &upload{
		site: netid.Site(from), known: known, begun: time.Now(), stop: func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) },
	}, bytes: make([]byte, 0, freeBody)}, conn}
}

// deadlines is the part of a ResponseWriter that sets the deadlines.
type deadlines struct {
	http.ResponseWriter
	net.Conn
}

// Write implements http.ResponseWriter.
func (d deadlines) Write(p []byte) (int, error) { return d.Conn.Write(p) }

// Receive reads the body, and releases it unless it is complete.
func (b Body) Receive(from io.Reader, most int64) error {
	err := b.receiveBody(http.NewResponseController(deadlines{Conn: b.conn}), from, most, time.Minute)
	if err != nil {
		b.releaseRoom()
	}
	return err
}

// Release releases the room of the body.
func (b Body) Release() { b.releaseRoom() }

// Lost reports whether the body is to be evicted, or was evicted.
func (b Body) Lost() bool { return b.room.mustGiveWay(b.upload) }

// Check returns what is wrong with the accounting of the room, which bodies hold room, and how much is held.
func (r Room) Check(bodies []Body) (held int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sites, sum := map[netip.Addr]int64{}, int64(0)
	for _, b := range bodies {
		if b.upload.held < 0 {
			err = errors.Join(err, fmt.Errorf("a body holds %d bytes", b.upload.held))
		}
		if b.upload.held > 0 {
			sites[b.upload.site] += b.upload.held
			sum += b.upload.held
		}
	}
	for site, n := range sites {
		if n > r.total/2 {
			err = errors.Join(err, fmt.Errorf("site %s holds %d bytes, which is more than half", site, n))
		}
	}
	if !maps.Equal(sites, r.sites) {
		err = errors.Join(err, fmt.Errorf("sites hold %v, and %v is counted", sites, r.sites))
	}
	if sum != r.held || r.held > r.total || r.leaving != 0 {
		err = errors.Join(err, fmt.Errorf("bodies hold %d bytes, and %d of %d are counted; %d bodies give way", sum, r.held, r.total, r.leaving))
	}
	for u := range r.uploads {
		if u.held == 0 || u.lost {
			err = errors.Join(err, fmt.Errorf("a body may have to give way that holds %d bytes, lost: %t", u.held, u.lost))
		}
	}
	return r.held, err
}
