package handlers

import (
	"hash/maphash"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"sallyport/auth"
)

// What a host is known by that a delivery was accepted from.
const (
	provedSlots = 1 << 12
	provedFor   = 24 * time.Hour
)

// provedHosts are the hosts from which a delivery was accepted lately. When room is
// short, they are served before strangers. The table never grows: a host takes
// the slot of another that has the same hash.
type provedHosts struct {
	seed  maphash.Seed
	mu    sync.Mutex
	slots []provedHost
}

type provedHost struct {
	host netip.Addr
	at   time.Time
}

func newProvedHosts() *provedHosts {
	return &provedHosts{seed: maphash.MakeSeed(), slots: make([]provedHost, provedSlots)}
}

func (p *provedHosts) of(host netip.Addr) *provedHost {
	return &p.slots[maphash.Comparable(p.seed, host)%uint64(len(p.slots))]
}

func (p *provedHosts) note(host netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*p.of(host) = provedHost{host, now}
}

func (p *provedHosts) lately(host netip.Addr, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := p.of(host)
	return found.host == host && now.Sub(found.at) < provedFor
}

// noteAccepted notes that a delivery was accepted that is not a replay: whoever
// has seen a delivery can send it from anywhere.
func (s *surface) noteAccepted(r *http.Request, who *auth.Identity) {
	if who.Caller != "" { // of an unauthenticated hook it is empty
		s.proved.note(address(r), s.now())
	}
}
