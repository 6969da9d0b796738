package runner

import (
	"fmt"

	"sallyport/runner/hook"
)

// errEarlierFlight says that a run cannot start yet, because of a run that has the flight of an earlier file.
var errEarlierFlight = fmt.Errorf("%w under an earlier configuration", ErrFlight)

// flightRules has the flights that hooks give to their runs. After a reload, a run in progress may have the flight that
// the earlier file gave it, and the store takes that for a different flight.
type flightRules struct {
	rules map[string]hook.FlightSpec // by hook: the rule of the file at the latest start
	mixed map[string]bool            // by hook: runs may be in progress that got their flight from an earlier rule
}

// checkOverlap looks for a run in progress that would have the same flight as run under the current file, but was
// recorded with another flight, under an earlier one. It returns an error that wraps errEarlierFlight if there is one,
// so that the start of run is tried again later. inProgress has the runs in progress, by flight. The caller adds run to
// it unless there is an error. hookOf returns the current hook with a name.
func (f *flightRules) checkOverlap(
	h *hook.Hook, run Run, inProgress map[string]Run, hookOf func(string) (*hook.Hook, bool),
) error {
	flight := h.Flight(run.Params)
	if rule, known := f.rules[h.Name]; known && rule != h.Spec().Flight || flight != run.Flight {
		f.mixed[h.Name] = true
	}
	f.rules[h.Name] = h.Spec().Flight
	if !f.mixed[h.Name] && !h.InGroup() { // all runs in progress have the flight that the current file gives them
		return nil
	}
	mixed := flight != run.Flight
	for _, other := range inProgress {
		if other.Flight == run.Flight { // the store ensures that one run of a flight is running
			continue
		}
		of := h
		if other.Hook != h.Name {
			if of, _ = hookOf(other.Hook); of == nil || !h.InGroup() {
				continue
			}
		}
		if of.SharesFlight(flight, other.Params) {
			return fmt.Errorf("%w: run %s", errEarlierFlight, other.ID)
		}
		mixed = mixed || of == h && h.Flight(other.Params) != other.Flight
	}
	f.mixed[h.Name] = mixed
	return nil
}

// noteRecovered has checkOverlap check the runs of a hook from now on, because the flight rule of a run that an earlier
// server started is not known. The hook may be missing from the file for now.
func (f *flightRules) noteRecovered(run Run) { f.mixed[run.Hook] = true }
