package runner

import (
	"fmt"

	"sallyport/runner/hook"
)

// flightRules remembers the flight templates of hooks: after a reload, runs in progress may have the flight that the
// hook gave them before, and the store takes that for another flight.
type flightRules struct {
	rules map[string]string // by hook: its flight as the file had it at the latest start
	mixed map[string]bool   // by hook: runs may be in progress under an earlier one
}

// checkOverlap looks for a run in progress that has the flight of run by the hook as it is now, and another by the hook
// as it was when it was recorded. It returns an error that wraps ErrFlight then, so that run is tried again. inProgress
// has the runs in progress, by flight, and the caller adds run to it if there is no error.
func (f *flightRules) checkOverlap(h *hook.Hook, run Run, inProgress map[string]Run) error {
	flight := h.Flight(run.Params)
	if rule, known := f.rules[h.Name]; known && rule != h.Spec().Flight || flight != run.Flight {
		f.mixed[h.Name] = true
	}
	f.rules[h.Name] = h.Spec().Flight
	if !f.mixed[h.Name] { // all in progress have the flight that they would be given now
		return nil
	}
	mixed := flight != run.Flight
	for _, other := range inProgress {
		if other.Hook != h.Name || other.Flight == run.Flight { // of one flight, the store lets one through
			continue
		}
		now := h.Flight(other.Params)
		if now == flight {
			return fmt.Errorf("%w: run %s, under the flight that the hook had before", ErrFlight, other.ID)
		}
		mixed = mixed || now != other.Flight
	}
	f.mixed[h.Name] = mixed
	return nil
}

// noteRecovered has checkOverlap look at the runs of a hook, because the rule of a run that an earlier server started
// is not known. The hook may be missing from the file for now.
func (f *flightRules) noteRecovered(run Run) { f.mixed[run.Hook] = true }
