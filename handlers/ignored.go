package handlers

import (
	"maps"
	"net/http"
	"sync"
)

// ignoredKind is the kind of deliveries that are verified and not meant for the hook.
const ignoredKind = "ignored"

// ignored is the answer to a verified delivery that is not meant for the hook. It is not an error: GitHub shows those
// in red, and GitLab disables a webhook after a few of them.
type ignored struct {
	Ignored bool   `json:"ignored"` // true
	Hook    string `json:"hook"`
	Reason  string `json:"reason"`
}

// answerIgnored answers a delivery that a condition of the hook excludes.
func (s *service) answerIgnored(w http.ResponseWriter, req *request, why string) error {
	if req.observed {
		req.reason = why
		writeObservation(w, req, observation{Would: ignoredKind, Status: http.StatusOK, Reason: why})
		return nil
	}
	req.kind, req.reason = ignoredKind, "ignored: "+why
	s.ignored.countOne(req.hook)
	writeJSON(w, http.StatusOK, "application/json", ignored{true, req.hook, why})
	return nil
}

// deliveryCounts counts deliveries that started nothing, by hook.
type deliveryCounts struct {
	mu     sync.Mutex
	byHook map[string]int
}

func newDeliveryCounts() *deliveryCounts { return &deliveryCounts{byHook: map[string]int{}} }

func (c *deliveryCounts) countOne(hook string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byHook[hook]++
}

func (c *deliveryCounts) copyCounts() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.byHook)
}

// IgnoredDeliveries returns how many deliveries each hook has ignored since the start.
func (h *Handler) IgnoredDeliveries() map[string]int { return h.current.Load().ignored.copyCounts() }
