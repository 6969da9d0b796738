package handlers

import (
	"maps"
	"net/http"
	"strings"
	"sync"
)

// counts has a number for each key. Its keys come from the configuration and the program, so there are few.
type counts[K comparable] struct {
	mu     sync.Mutex
	values map[K]int
}

func newCounts[K comparable]() *counts[K] { return &counts[K]{values: map[K]int{}} }

func (c *counts[K]) countOne(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.values[key]++
}

func (c *counts[K]) copyCounts() map[K]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.values)
}

// HookOutcome is what became of deliveries to a hook: accepted, replayed, observed, busy, refused or failed. Those that
// were ignored or handshakes are counted apart.
type HookOutcome = struct{ Hook, Outcome string }

// Deliveries returns how many deliveries to each hook had each outcome since the start.
func (h *Handler) Deliveries() map[HookOutcome]int { return h.current.Load().outcomes.copyCounts() }

// Refusals returns how many requests and connections were refused for each reason since the start.
func (h *Handler) Refusals() map[string]int { return h.current.Load().refusals.copyCounts() }

// countDelivery counts a request to a path of hooks, for each hook that it was meant for.
func (s *shared) countDelivery(req *request, status int) {
	outcome := req.outcome(status)
	if outcome == "" {
		return
	}
	for name := range strings.SplitSeq(req.hook, ",") {
		s.outcomes.countOne(HookOutcome{name, outcome})
	}
}

// outcome returns what became of a delivery, or an empty text for one that is counted elsewhere.
func (req *request) outcome(status int) string {
	switch {
	case req.kind == ignoredKind, req.kind == handshakeKind:
		return ""
	case req.would != "":
		return "observed"
	case req.reason == replayed:
		return replayed
	case req.kind == "busy", req.kind == "paused", req.kind == "draining":
		return "busy"
	case status >= http.StatusInternalServerError:
		return "failed"
	case status >= http.StatusBadRequest:
		return "refused"
	}
	return "accepted"
}
