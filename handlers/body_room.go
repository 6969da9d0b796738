package handlers

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"sallyport/runner/hook"
)

// leastRoom is how much room all unverified bodies have together, unless a hook accepts bodies that are larger than
// half of it.
const leastRoom = 16 << 20

// room is the memory that all unverified bodies may use together, beyond the free bytes of each. No site has more
// than half of it. If it is exhausted, the slowest upload of the site that holds most is evicted. Uploads of unknown
// addresses are evicted for those of addresses that sent an accepted delivery recently.
type room struct {
	total int64

	mu      sync.Mutex
	given   *sync.Cond // signals that room was released, or that an upload is to be evicted
	held    int64
	sites   map[netip.Addr]int64 // bytes that each site holds; only sites that hold some
	uploads map[*upload]struct{} // uploads that hold room and are not complete, so they may be evicted
	leaving int                  // uploads that are being evicted
}

// upload is a body that is being received.
type upload struct {
	site  netip.Addr
	known bool // its address sent an accepted delivery recently
	begun time.Time
	stop  func() // ends the read that waits for more bytes
	got   int64  // bytes; only the upload itself changes and reads it

	// The mutex of the room protects the fields below.
	held   int64
	lost   bool      // it is to be evicted
	recent float64   // bytes received until the time at, with a weight that falls with their age
	at     time.Time // when the last bytes arrived
}

// nextDeadline returns when more bytes must have arrived.
func (u *upload) nextDeadline(timeout time.Duration) time.Time {
	soon := rateAfter + time.Duration(u.got)*time.Second/leastRate
	return u.begun.Add(min(soon, timeout))
}

// recentRate returns the rate in bytes per second, mainly over the last second. The average over the whole upload
// would hide a sender that stops just before the end.
func (u *upload) recentRate(now time.Time) float64 {
	return u.recent * math.Exp(-now.Sub(u.at).Seconds())
}

// recordProgress counts bytes that were received.
func (r *room) recordProgress(u *upload, n int) {
	u.got += int64(n)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	u.recent, u.at = u.recentRate(now)+float64(n), now
}

// newRoom returns a room of which the largest body of any hook takes at most half.
func newRoom(hooks map[string]*hook.Hook) *room {
	r := &room{total: leastRoom, sites: map[netip.Addr]int64{}, uploads: map[*upload]struct{}{}}
	r.given = sync.NewCond(&r.mu)
	for _, h := range hooks {
		r.total = max(r.total, 2*int64(h.Body.Max))
	}
	return r
}

// carryOver returns the same room if its size is right for the hooks, and otherwise a new one.
func (r *room) carryOver(hooks map[string]*hook.Hook) *room {
	fresh := newRoom(hooks)
	if r != nil && r.total == fresh.total {
		return r
	}
	return fresh
}

// reserveUpTo reserves room until the upload holds size bytes in total, if so much is free or can be freed by
// evicting others. It waits until they are evicted.
func (r *room) reserveUpTo(u *upload, size int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !u.lost {
		more := size - u.held
		crowded := r.sites[u.site]+more > r.total/2
		if !crowded && r.held+more <= r.total {
			r.held += more
			r.sites[u.site] += more
			r.uploads[u] = struct{}{}
			u.held = size
			return true
		}
		if r.leaving == 0 && !r.evictFor(u, crowded, more) {
			return false
		}
		r.given.Wait()
	}
	return false
}

// evictFor evicts one upload for another.
func (r *room) evictFor(u *upload, crowded bool, more int64) bool {
	loser := r.findSlowestOfLargest(u, r.sites[u.site]+more)
	if crowded {
		loser = r.findSlowerNeighbour(u)
	}
	if loser == nil {
		return false
	}
	loser.lost = true
	delete(r.uploads, loser)
	r.leaving++
	r.given.Broadcast() // it may wait for room itself
	loser.stop()
	return true
}

// findSlowerNeighbour returns an upload of the same site that is evicted for u: an upload of an unknown address if
// the address of u is known, or one with less than half the rate of u.
func (r *room) findSlowerNeighbour(u *upload) *upload {
	now := time.Now()
	most := u.recentRate(now) / 2
	return r.findSlowest(now, func(v *upload) bool {
		return v != u && v.site == u.site && !v.known && (u.known || v.recentRate(now) < most)
	})
}

// findSlowestOfLargest returns the slowest upload of the site that holds most. For an upload of a known address, it
// first looks among the uploads of unknown addresses. Otherwise, the site must hold more than the site of u would,
// and uploads of known addresses are evicted only for those of known addresses.
func (r *room) findSlowestOfLargest(u *upload, own int64) *upload {
	for _, known := range []bool{false, true} {
		if known && !u.known {
			break
		}
		held, most := map[netip.Addr]int64{}, int64(0)
		for v := range r.uploads {
			if v != u && v.known == known {
				held[v.site] += v.held
				most = max(most, held[v.site])
			}
		}
		if most > own || most > 0 && u.known && !known {
			return r.findSlowest(time.Now(), func(v *upload) bool {
				return v != u && v.known == known && held[v.site] == most
			})
		}
	}
	return nil
}

func (r *room) findSlowest(now time.Time, among func(*upload) bool) (slow *upload) {
	for v := range r.uploads {
		if among(v) && (slow == nil || v.recentRate(now) < slow.recentRate(now)) {
			slow = v
		}
	}
	return slow
}

// mustGiveWay reports whether an upload is to be evicted.
func (r *room) mustGiveWay(u *upload) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return u.lost
}

// finishUpload marks a body as complete, so that it is not evicted any more. It reports whether the upload still has
// its room.
func (r *room) finishUpload(u *upload) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.uploads, u)
	return !u.lost
}

// releaseUpload releases the room that an upload holds.
func (r *room) releaseUpload(u *upload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.uploads, u)
	r.held -= u.held
	if r.sites[u.site] -= u.held; r.sites[u.site] == 0 {
		delete(r.sites, u.site)
	}
	if u.lost && u.held > 0 {
		r.leaving--
	}
	u.held = 0
	r.given.Broadcast()
}
