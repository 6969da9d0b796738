package handlers

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"sallyport/runner/hook"
)

// leastRoom is what all unverified bodies may take together, unless a hook takes
// bodies that are larger than half of it.
const leastRoom = 16 << 20

// room is what unverified bodies may take together, beyond what is free for each.
// No site has more than half of it. When it is short, the slowest body of the site
// that holds most gives way; strangers give way to addresses that sent an accepted
// delivery lately.
type room struct {
	total int64

	mu      sync.Mutex
	given   *sync.Cond // when something was given back, or an upload is to give way
	held    int64
	sites   map[netip.Addr]int64 // what they hold; only those that hold something
	uploads map[*upload]struct{} // that hold something, are not there yet, and may have to give way
	leaving int                  // uploads that give way now
}

// upload is a body that arrives.
type upload struct {
	site  netip.Addr
	known bool // its address sent an accepted delivery lately
	begun time.Time
	stop  func() // has the read that waits for more end
	got   int64  // bytes; only the upload itself changes and reads it

	// By the room's mutex.
	held   int64
	lost   bool      // it is to give way
	recent float64   // bytes that came by the time at, each of which counts for less as time goes by
	at     time.Time // of the last ones
}

// nextDeadline is when more must have arrived.
func (u *upload) nextDeadline(timeout time.Duration) time.Time {
	soon := rateAfter + time.Duration(u.got)*time.Second/leastRate
	return u.begun.Add(min(soon, timeout))
}

// recentRate is in bytes per second, for the most part of the last second. The average of
// all the time would be that of a sender that stops just before the end.
func (u *upload) recentRate(now time.Time) float64 {
	return u.recent * math.Exp(-now.Sub(u.at).Seconds())
}

// recordProgress counts bytes that came.
func (r *room) recordProgress(u *upload, n int) {
	u.got += int64(n)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	u.recent, u.at = u.recentRate(now)+float64(n), now
}

// newRoom makes room of which the largest body of any hook takes at most half.
func newRoom(hooks map[string]*hook.Hook) *room {
	r := &room{total: leastRoom, sites: map[netip.Addr]int64{}, uploads: map[*upload]struct{}{}}
	r.given = sync.NewCond(&r.mu)
	for _, h := range hooks {
		r.total = max(r.total, 2*int64(h.Body.Max))
	}
	return r
}

// carryOver returns the room itself if it is right for the hooks, and otherwise a new one.
func (r *room) carryOver(hooks map[string]*hook.Hook) *room {
	fresh := newRoom(hooks)
	if r != nil && r.total == fresh.total {
		return r
	}
	return fresh
}

// reserveUpTo has an upload hold so many bytes in all, if they are free or others give way. It waits
// until they have given way.
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

// evictFor has one upload give way to another.
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

// findSlowerNeighbour is an upload of the same site that gives way: a stranger's to
// that of a known address, or one that is not half as fast.
func (r *room) findSlowerNeighbour(u *upload) *upload {
	now := time.Now()
	most := u.recentRate(now) / 2
	return r.findSlowest(now, func(v *upload) bool {
		return v != u && v.site == u.site && !v.known && (u.known || v.recentRate(now) < most)
	})
}

// findSlowestOfLargest is the slowest upload of the site whose uploads hold most. Uploads
// of strangers give way to that of a known address; otherwise the site must hold more
// than the upload's own would, and its addresses be known only if the upload's is.
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

// mustGiveWay reports whether an upload is to give way.
func (r *room) mustGiveWay(u *upload) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return u.lost
}

// finishUpload says that all of a body is there: it does not give way any more. It
// reports whether the upload has its room still.
func (r *room) finishUpload(u *upload) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.uploads, u)
	return !u.lost
}

// releaseUpload takes back what an upload holds.
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
