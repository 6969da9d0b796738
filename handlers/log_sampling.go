package handlers

import (
	"hash/maphash"
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

// samples decides which lines are written. Networks with the same seeded hash share a slot, and so a budget.
type samples struct {
	log  *slog.Logger
	seed maphash.Seed

	mu      sync.Mutex
	sites   []rate.Limiter
	kinds   map[string]*rate.Limiter // the program defines the kinds, so there are few
	skipped map[string]*skipped
	due     *time.Timer // nil while nothing is skipped
	total   int         // skipped since the start
}

// skipped counts lines that were not written.
type skipped struct {
	count int
	since time.Time
}

func newSamples(log *slog.Logger) *samples {
	s := &samples{
		log: log, seed: maphash.MakeSeed(), sites: make([]rate.Limiter, siteSlots),
		kinds: map[string]*rate.Limiter{}, skipped: map[string]*skipped{},
	}
	for i := range s.sites {
		s.sites[i].SetLimitAt(time.Time{}, rate.Every(siteEvery))
		s.sites[i].SetBurstAt(time.Time{}, siteBurst)
	}
	return s
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
	key := struct {
		kind string
		site netip.Addr
	}{kind, netid.Site(from)}
	if s.sites[maphash.Comparable(s.seed, key)%siteSlots].AllowN(now, 1) && all.AllowN(now, 1) {
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
