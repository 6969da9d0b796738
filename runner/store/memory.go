// Package store keeps the record of runs.
package store

import (
	"sync"
	"time"

	"sallyport/runner"
)

// keepFor is how long a delivery that never goes stale by itself is
// remembered, and how long an ended run can be asked for.
const keepFor = 24 * time.Hour

// Memory is a runner.Store that lives as long as the process. It holds a fixed
// number of runs; when all of them are still needed to recognise a replay, new
// ones are refused rather than old ones forgotten.
type Memory struct {
	limit int
	now   func() time.Time

	mu     sync.Mutex
	runs   map[string]*entry
	claims map[claimKey]*entry
	oldest []*entry // in order of Begin
}

type claimKey struct{ hook, key string }

type entry struct {
	run   runner.Run
	claim runner.Claim
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
	switch first, err := m.find(r.Hook, c); err {
	case nil:
		return &runner.Replayed{Run: first}
	case runner.ErrUnknown:
	default:
		return err
	}
	if c.Until.IsZero() || c.Key == "" {
		c.Until = r.Created.Add(keepFor)
	}
	if len(m.oldest) >= m.limit && !m.forget() {
		return runner.ErrFull
	}
	e := &entry{run: r, claim: c}
	m.runs[r.ID] = e
	if c.Key != "" {
		m.claims[claimKey{r.Hook, c.Key}] = e
	}
	m.oldest = append(m.oldest, e)
	return nil
}

// forget makes room for one run: the oldest that has ended and recognises no
// replay any more.
func (m *Memory) forget() bool {
	now := m.now()
	for i, e := range m.oldest {
		needed := e.claim.Key != "" && now.Before(e.claim.Until)
		if !e.run.State.Ended() || needed {
			continue
		}
		delete(m.runs, e.run.ID)
		m.release(e)
		m.oldest = append(m.oldest[:i], m.oldest[i+1:]...)
		return true
	}
	return false
}

func (m *Memory) release(e *entry) {
	if k := (claimKey{e.run.Hook, e.claim.Key}); m.claims[k] == e {
		delete(m.claims, k)
	}
}

// Finish implements runner.Store.
func (m *Memory) Finish(id string, s runner.State, end runner.End, giveBack bool) (runner.Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.runs[id]
	if !ok {
		return runner.Run{}, runner.ErrUnknown
	}
	e.run.State, e.run.End = s, end
	if giveBack {
		m.release(e)
		e.claim.Key = ""
	}
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
