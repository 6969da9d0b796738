package process

import (
	"slices"
	"sync"
)

// activeRuns are the runs in progress.
type activeRuns struct {
	byID sync.Map // *active
}

func (r *activeRuns) addRun(a *active) { r.byID.Store(a.status.Run, a) }

// removeRun removes a run that is over.
func (r *activeRuns) removeRun(run string) { r.byID.Delete(run) }

// findRun returns nil for a run that is not in progress.
func (r *activeRuns) findRun(run string) *active {
	found, _ := r.byID.Load(run)
	a, _ := found.(*active)
	return a
}

// listIDs returns the ids of all runs in progress, in order.
func (r *activeRuns) listIDs() (ids []string) {
	for _, a := range r.listRuns() {
		ids = append(ids, a.status.Run)
	}
	slices.Sort(ids)
	return ids
}

// listRuns returns the runs in progress.
func (r *activeRuns) listRuns() (runs []*active) {
	for _, found := range r.byID.Range {
		if a, ok := found.(*active); ok {
			runs = append(runs, a)
		}
	}
	return runs
}
