package handlers

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"sallyport/internal/netid"
)

// Events that unknown senders can cause in any number have a limited number of lines in the log: per kind a number
// for each network, and a number for all networks together. The other events are counted, and one line reports their
// number.
const (
	siteBurst    = 100
	siteEvery    = 10 * time.Second // one more line
	kindBurst    = 300
	kindEvery    = 3 * time.Second
	siteSlots    = 1 << 11
	summaryEvery = time.Minute
)

// samples decides which lines are written. Networks that share a slot share a budget.
type samples struct {
	log   *slog.Logger
	sites *slotTable[siteKind, rate.Limiter]

	mu      sync.Mutex
	kinds   map[string]*rate.Limiter // the program defines the kinds, so there are few
	skipped map[string]*skipped
	due     *time.Timer // nil while nothing is skipped
	total   int         // skipped since the start
}

// siteKind is a kind of event from one network.
type siteKind struct {
	kind string
	site netip.Addr
}

// skipped counts lines that were not written.
type skipped struct {
	count int
	since time.Time
}

func newSamples(log *slog.Logger) *samples {
	return &samples{
		log: log, sites: newLimiterTable[siteKind](siteSlots, rate.Every(siteEvery), siteBurst),
		kinds: map[string]*rate.Limiter{}, skipped: map[string]*skipped{},
	}
}

// allowLine reports whether a line about an event of a kind is written, and counts it if not.
func (s *samples) allowLine(kind string, from netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.kinds[kind]
	if all == nil {
		all = rate.NewLimiter(rate.Every(kindEvery), kindBurst)
		s.kinds[kind] = all
	}
	if s.sites.slotOf(siteKind{kind, netid.Site(from)}).AllowN(now, 1) && all.AllowN(now, 1) {
		return true
	}
	k := s.skipped[kind]
	if k == nil {
		k = &skipped{since: now}
		s.skipped[kind] = k
	}
	k.count++
	s.total++
	if s.due == nil {
		s.due = time.AfterFunc(summaryEvery, s.logSummary)
	}
	return false
}

// skippedLines returns how many lines were skipped since the start.
func (s *samples) skippedLines() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// logSummary logs how many lines were skipped since the last summary.
func (s *samples) logSummary() {
	s.mu.Lock()
	counted := s.skipped
	s.skipped = map[string]*skipped{}
	if s.due != nil {
		s.due.Stop()
		s.due = nil
	}
	s.mu.Unlock()
	for kind, k := range counted {
		s.log.Warn("log lines skipped: too many of a kind", "kind", kind, "count", k.count, "since", k.since.UTC())
	}
}
