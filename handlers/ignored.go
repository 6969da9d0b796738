package handlers

import (
	"crypto/sha256"
	"net/http"
	"sync"

	"sallyport/runner/hook"
)

// ignoredKind is the kind of deliveries that are verified and not meant for the hook.
const ignoredKind = "ignored"

// ignored is the answer to a verified delivery that is not meant for the hook. It is not an error: GitHub shows those
// in red, and GitLab disables a webhook after a few of them. A sender that is not authenticated does not get the
// reason.
type ignored struct {
	Ignored bool   `json:"ignored"` // true
	Hook    string `json:"hook,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// whyIgnored returns why a delivery is not meant for the hook, or an empty text. A delivery that the hook has accepted
// before is not checked again: it gets the answer to a replay, although parts of it that are not signed may differ.
func (c candidate) whyIgnored(in hook.Input) (string, error) {
	if c.isRepeated() {
		return "", nil
	}
	return c.hook.WhyIgnored(in)
}

// checkConditions answers a delivery that a condition of the hook excludes.
func (v *verified) checkConditions(w http.ResponseWriter, req *request, c candidate, in hook.Input) (bool, error) {
	why, err := c.whyIgnored(in)
	if err != nil || why == "" {
		return false, err
	}
	v.answerIgnored(w, req, c, why)
	return true, nil
}

func (v *verified) answerIgnored(w http.ResponseWriter, req *request, c candidate, why string) {
	if req.observed {
		req.reason = why
		writeObservation(w, req, observation{Would: ignoredKind, Status: http.StatusOK, Reason: why})
		return
	}
	req.kind, req.reason = ignoredKind, "ignored: "+why
	v.ignored.countOne(req.hook)
	v.ignoredBefore.add(c)
	answer := ignored{true, req.hook, why}
	if c.hook.Unauthenticated {
		answer = ignored{Ignored: true}
	}
	writeJSON(w, http.StatusOK, "application/json", answer)
}

// ignoredSlots is how many ignored deliveries are remembered, in 512 KiB.
const ignoredSlots = 1 << 14

// ignoredDeliveries remembers deliveries that hooks have ignored, and handshakes. It never grows: a newer delivery
// replaces an older one of its slot.
type ignoredDeliveries struct {
	mu    sync.Mutex
	table *slotTable[[sha256.Size]byte, [sha256.Size]byte]
}

func newIgnoredDeliveries() *ignoredDeliveries {
	return &ignoredDeliveries{table: newSlotTable[[sha256.Size]byte, [sha256.Size]byte](ignoredSlots)}
}

func digestCandidate(c candidate) [sha256.Size]byte {
	return sha256.Sum256([]byte(c.hook.Name + "\x00" + c.claim.Key))
}

// add remembers a delivery, unless it has no claim: its sender may repeat it.
func (d *ignoredDeliveries) add(c candidate) {
	if c.claim.Key == "" {
		return
	}
	sum := digestCandidate(c)
	d.mu.Lock()
	defer d.mu.Unlock()
	*d.table.slotOf(sum) = sum
}

func (d *ignoredDeliveries) has(c candidate) bool {
	sum := digestCandidate(c)
	d.mu.Lock()
	defer d.mu.Unlock()
	return *d.table.slotOf(sum) == sum
}

// IgnoredDeliveries returns how many deliveries each hook has ignored since the start.
func (h *Handler) IgnoredDeliveries() map[string]int { return h.current.Load().ignored.copyCounts() }
