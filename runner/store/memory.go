// Package store keeps the record of runs.
package store

import (
	"container/heap"
	"errors"
	"sync"
	"time"

	"sallyport/runner"
)

// keepFor is how long a delivery that never goes stale by itself is
// remembered.
const keepFor = 24 * time.Hour

// maxBytes bounds what senders decide the length of: parameters, mostly.
const maxBytes = 64 << 20

// Memory is a runner.Store that lives as long as the process. It holds a fixed
// number of runs, and of bytes; when all of them are still needed to recognise
// a replay, new ones are refused rather than old ones forgotten.
type Memory struct {
	limit int
	now   func() time.Time

	mu     sync.Mutex
	runs   map[string]*entry
	claims map[claimKey]*entry
	ended  byUntil // what may be forgotten, in the order in which it may
	bytes  int
}

type claimKey struct{ hook, key string }

type entry struct {
	run   runner.Run
	claim runner.Claim
	until time.Time // not to be forgotten before, when it has ended
}

func (e *entry) key() claimKey { return claimKey{e.run.Hook, e.claim.Key} }

// bytes is the length of what the sender chose.
func (e *entry) bytes() int {
	n := len(e.claim.Key) + len(e.run.Flight)
	for name, value := range e.run.Params {
		n += len(name) + len(value)
	}
	return n
}

// NewMemory returns a store for at most limit runs.
func NewMemory(limit int, now func() time.Time) *Memory {
	return &Memory{limit: limit, now: now, runs: map[string]*entry{}, claims: map[claimKey]*entry{}}
}

// Find implements runner.Store.
func (m *Memory) Find(hook string, c runner.Claim) (runner.Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.find(hook, c)
}

func (m *Memory) find(hook string, c runner.Claim) (runner.Run, error) {
	e := m.claims[claimKey{hook, c.Key}]
	switch {
	case c.Key == "" || e == nil:
		return runner.Run{}, runner.ErrUnknown
	case c.OneBody && c.Body != e.claim.Body:
		return runner.Run{}, runner.ErrReused
	}
	return e.run, nil
}

// Begin implements runner.Store.
func (m *Memory) Begin(r runner.Run, c runner.Claim) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch first, err := m.find(r.Hook, c); {
	case err == nil:
		return &runner.Replayed{Run: first}
	case !errors.Is(err, runner.ErrUnknown):
		return err
	}
	e := &entry{run: r, claim: c, until: c.Until}
	switch {
	case c.Key == "":
		e.until = r.Created
	case c.Until.IsZero():
		e.until = r.Created.Add(keepFor)
	}
	for len(m.runs) >= m.limit || m.bytes+e.bytes() > maxBytes {
		if !m.forget() {
			return runner.ErrFull
		}
	}
	m.runs[r.ID] = e
	m.bytes += e.bytes()
	if c.Key != "" {
		m.claims[e.key()] = e
	}
	return nil
}

// forget makes room: it drops a run that has ended and recognises no replay any
// more, or tells that there is none.
func (m *Memory) forget() bool {
	if len(m.ended) == 0 || m.now().Before(m.ended[0].until) {
		return false
	}
	e := heap.Pop(&m.ended).(*entry) //nolint:errcheck,forcetypeassert // the heap holds nothing else
	delete(m.runs, e.run.ID)
	m.bytes -= e.bytes()
	m.release(e)
	return true
}

func (m *Memory) release(e *entry) {
	if m.claims[e.key()] == e {
		delete(m.claims, e.key())
	}
}

// Finish implements runner.Store. What ended once keeps its end.
func (m *Memory) Finish(id string, s runner.State, end runner.End, giveBack bool) (runner.Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.runs[id]
	if !ok {
		return runner.Run{}, runner.ErrUnknown
	}
	if e.run.State.Ended() {
		return e.run, nil
	}
	e.run.State, e.run.End = s, end
	if giveBack {
		m.release(e)
		e.until = e.run.Created
	}
	heap.Push(&m.ended, e)
	return e.run, nil
}

// Get implements runner.Store.
func (m *Memory) Get(id string) (runner.Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.runs[id]
	if !ok {
		return runner.Run{}, runner.ErrUnknown
	}
	return e.run, nil
}

// byUntil is a heap (container/heap).
type byUntil []*entry

func (h byUntil) Len() int           { return len(h) }
func (h byUntil) Less(i, j int) bool { return h[i].until.Before(h[j].until) }
func (h byUntil) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *byUntil) Push(e any) { *h = append(*h, e.(*entry)) } //nolint:errcheck,forcetypeassert // the heap holds nothing else

// Pop implements heap.Interface.
func (h *byUntil) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
