package handlers

import (
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"sallyport/auth"
)

// How many hosts are stored from which a delivery was accepted, and for how long.
const (
	provedSlots = 1 << 12
	provedFor   = 24 * time.Hour
)

// provedHosts are the hosts from which a delivery was accepted recently. If room is short, they are served before
// unknown hosts. A host replaces another one in the same slot.
type provedHosts struct {
	slots *slotTable[netip.Addr, atomic.Pointer[provedHost]]
}

type provedHost struct {
	host netip.Addr
	at   time.Time
}

func newProvedHosts() *provedHosts {
	return &provedHosts{newSlotTable[netip.Addr, atomic.Pointer[provedHost]](provedSlots)}
}

func (p *provedHosts) recordHost(host netip.Addr, now time.Time) {
	p.slots.slotOf(host).Store(&provedHost{host, now})
}

func (p *provedHosts) provedLately(host netip.Addr, now time.Time) bool {
	found := p.slots.slotOf(host).Load()
	return found != nil && found.host == host && now.Sub(found.at) < provedFor
}

// noteAccepted notes that a delivery was accepted. It is not called for a replay, because a recorded delivery can be
// sent again from any host.
func (p *provedHosts) noteAccepted(r *http.Request, who *auth.Identity, now time.Time) {
	if who.Caller != "" { // it is empty for an unauthenticated hook
		p.recordHost(remoteHost(r), now)
	}
}
