package handlers

import (
	"hash/maphash"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"sallyport/auth"
)

// How many hosts are stored from which a delivery was accepted, and for how long.
const (
	provedSlots = 1 << 12
	provedFor   = 24 * time.Hour
)

// provedHosts are the hosts from which a delivery was accepted recently. If room is short, they are served before
// unknown hosts. The table has a fixed size: a host replaces another with the same hash.
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

func (p *provedHosts) slotOf(host netip.Addr) *provedHost {
	return &p.slots[maphash.Comparable(p.seed, host)%uint64(len(p.slots))]
}

func (p *provedHosts) recordHost(host netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*p.slotOf(host) = provedHost{host, now}
}

func (p *provedHosts) provedLately(host netip.Addr, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := p.slotOf(host)
	return found.host == host && now.Sub(found.at) < provedFor
}

// noteAccepted notes that a delivery was accepted. It is not called for a replay, because a recorded delivery can be
// sent again from any host.
func (p *provedHosts) noteAccepted(r *http.Request, who *auth.Identity, now time.Time) {
	if who.Caller != "" { // it is empty for an unauthenticated hook
		p.recordHost(remoteHost(r), now)
	}
}
