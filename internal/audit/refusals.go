package audit

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Strangers can cause refusals in any number, and each line displaces an older one. Of each kind, the first refusals
// have a line each, and the rest are counted.
const (
	refusalBurst = 100
	refusalEvery = 30 * time.Second // one more line
	countsEvery  = time.Minute      // for the lines with the counts
)

// kind is what refusals are counted by. The callers are those of the
// configuration, and the reasons those of the program, so there are few.
type kind struct{ reason, caller string }

// tally counts refusals without a line.
type tally struct {
	n            int
	since, until time.Time
}

// counts are the refusals without a line, by kind.
type counts struct {
	mu     sync.Mutex
	limits map[kind]*rate.Limiter
	tally  map[kind]tally
	taken  time.Time

	suppressed atomic.Int64 // since the start
}

// Identity says whether the caller of a line is known for certain.
type Identity int

const (
	// Unverified is a request without a valid credential. The caller of its line is the one that it claims to be.
	Unverified Identity = iota
	// Verified is a request of the caller of its line.
	Verified
)

// Decided records the decision about a request that allowed nothing. There are few reasons. Too many lines of a kind
// are only counted, but every decision about a verified caller has a line, except for requests over its limit and for
// deliveries that start nothing because a hook ignores them or they are handshakes.
func (l *Log) Decided(line Line, reason string, from Identity) {
	at := l.now()
	k := kind{reason: reason}
	if from == Verified {
		k.caller = line.Caller
	}
	if from == Unverified || reason == TooOften || line.Decision == Ignored || line.Decision == Handshake {
		if !l.allowLine(k, at) {
			l.countOne(k, at)
			return
		}
	}
	send := l.refusals.queue.TrySend
	if from == Verified {
		send = l.refusals.queue.Send
	}
	if !send(entry{line, k}) {
		l.countOne(k, at)
	}
}

// TooOften is the reason of a request over a limit.
const TooOften = "too-often"

// Count counts a refusal without a line.
func (l *Log) Count(reason string) {
	l.countOne(kind{reason: reason}, l.now())
}

// SuppressedLines returns how many refusals have had no line since the start, because there were too many or because
// their lines could not be written.
func (l *Log) SuppressedLines() int { return int(l.suppressed.Load()) }

func compareKinds(a, b kind) int {
	return cmp.Or(cmp.Compare(a.reason, b.reason), cmp.Compare(a.caller, b.caller))
}

func (r *counts) allowLine(k kind, at time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	limit := r.limits[k]
	if limit == nil {
		limit = rate.NewLimiter(rate.Every(refusalEvery), refusalBurst)
		r.limits[k] = limit
	}
	return limit.AllowN(at, 1)
}

func (r *counts) countOne(k kind, at time.Time) {
	r.suppressed.Add(1)
	r.addTally(k, tally{1, at, at})
}

func (r *counts) addTally(k kind, t tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.tally[k]; ok {
		t = tally{old.n + t.n, earlierTime(old.since, t.since), laterTime(old.until, t.until)}
	}
	r.tally[k] = t
}

func earlierTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func laterTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// takeIfDue returns what was counted, and counts from zero again, if its lines are due.
func (r *counts) takeIfDue(at time.Time, last bool) map[kind]tally {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !last && at.Sub(r.taken) < countsEvery {
		return nil
	}
	r.taken = at
	counted := r.tally
	r.tally = map[kind]tally{}
	return counted
}

// writeCounts writes lines with the counts into the chain of refusals. If it fails, they stay counted.
func (l *chain) writeCounts(last bool) error {
	var counted map[kind]tally
	if l.preface.line == nil {
		counted = l.counts.takeIfDue(l.now(), last)
	}
	var lines []Line
	for _, k := range slices.SortedFunc(maps.Keys(counted), compareKinds) {
		t := counted[k]
		lines = append(lines, Line{
			Event: Suppressed, Reason: k.reason, Caller: k.caller,
			Count: t.n, Since: t.since.UTC(), Until: t.until.UTC(),
		})
	}
	err := l.writeLines(true, lines)
	if err != nil {
		for k, t := range counted {
			l.counts.addTally(k, t)
		}
	}
	return err
}
