package runner

import (
	"slices"
	"sync"
	"time"
)

// assumedDuration is the assumed duration of a run while no run of its hook has ended.
const assumedDuration = 10 * time.Second

// estimates has the latest durations of runs.
type estimates struct {
	now func() time.Time

	mu     sync.Mutex
	byHook map[string]*durations
}

// addDuration adds the duration of a run that ended.
func (e *estimates) addDuration(hook string, took time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byHook[hook] == nil {
		e.byHook[hook] = &durations{}
	}
	e.byHook[hook].addTime(took)
}

// typicalDuration returns how long runs of a hook take.
func (e *estimates) typicalDuration(hook string) (took time.Duration, known bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byHook[hook] == nil {
		return assumedDuration, false
	}
	return e.byHook[hook].medianTime(), true
}

// timeLeft estimates how long it takes until a run ends; at least one second.
func (e *estimates) timeLeft(run Run) time.Duration {
	left, known := e.typicalDuration(run.Hook)
	switch {
	case run.State == Queued:
		left += max(run.Due.Sub(e.now()), 0) // without Due, nothing
	case known:
		left -= e.now().Sub(run.Started)
	}
	return max(left, time.Second)
}

// timeToStart estimates how long it takes until a queued run starts: after current, the run of its flight that is in
// progress, and those before it in the queue.
func (e *estimates) timeToStart(run, current Run, position int) time.Duration {
	each, _ := e.typicalDuration(run.Hook)
	return e.timeLeft(current) + time.Duration(max(position-1, 0))*each
}

// durations are how long the latest runs of a hook took.
type durations struct {
	ring [31]time.Duration
	n    int
}

func (d *durations) addTime(t time.Duration) {
	d.ring[d.n%len(d.ring)] = t
	d.n++
}

func (d *durations) medianTime() time.Duration {
	known := slices.Clone(d.ring[:min(d.n, len(d.ring))])
	slices.Sort(known)
	return known[len(known)/2]
}
