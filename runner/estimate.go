package runner

import (
	"slices"
	"time"
)

// assumedDuration is the assumed duration of a run while no run of its hook has ended.
const assumedDuration = 10 * time.Second

// estimates has the latest durations of runs, by hook.
type estimates map[string]*durations

func (e estimates) addDuration(hook string, took time.Duration) {
	if e[hook] == nil {
		e[hook] = &durations{}
	}
	e[hook].addTime(took)
}

// typicalDuration returns how long runs of a hook take.
func (e estimates) typicalDuration(hook string) (took time.Duration, known bool) {
	if e[hook] == nil {
		return assumedDuration, false
	}
	return e[hook].medianTime(), true
}

// timeLeft estimates how long a run will continue; at least one second.
func (e estimates) timeLeft(run Run, now time.Time) time.Duration {
	left, known := e.typicalDuration(run.Hook)
	if known {
		left -= now.Sub(run.Started)
	}
	return max(left, time.Second)
}

// estimateEnd estimates how long a run will continue; at least one second.
func (r *Runner) estimateEnd(run Run) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.estimates.timeLeft(run, r.now())
}

// estimateStart estimates how long it takes until a queued run starts: after the run in progress, and those before it
// in the queue.
func (r *Runner) estimateStart(run Run, position int) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	each, _ := r.estimates.typicalDuration(run.Hook)
	return r.estimates.timeLeft(r.inProgress[run.Flight], r.now()) + time.Duration(max(position-1, 0))*each
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
