package process

import (
	"maps"
	"slices"
	"sync"

	"sallyport/runner"
)

// activeRuns are the runs in progress.
type activeRuns struct {
	mu   sync.Mutex
	byID map[string]*active
}

func (r *activeRuns) addRun(a *active) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID[a.status.Run] = a
}

// removeRun removes a run that is over, and returns its followers.
func (r *activeRuns) removeRun(a *active) (followers []chan<- runner.End) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byID, a.status.Run)
	return a.followers
}

// findRun returns nil for a run that is not in progress.
func (r *activeRuns) findRun(run string) *active {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[run]
}

// listIDs returns the ids of all runs in progress, in order.
func (r *activeRuns) listIDs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.byID))
}

// listRuns returns the runs in progress.
func (r *activeRuns) listRuns() []*active {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.byID))
}

// addFollower registers a follower, which gets the end of the run. It reports whether the run is in progress.
func (r *activeRuns) addFollower(run string, follower chan<- runner.End) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.byID[run]
	if ok {
		a.followers = append(a.followers, follower)
	}
	return ok
}

func (r *activeRuns) removeFollower(run string, follower chan<- runner.End) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, ok := r.byID[run]; ok {
		a.followers = slices.DeleteFunc(a.followers, func(f chan<- runner.End) bool { return f == follower })
	}
}
