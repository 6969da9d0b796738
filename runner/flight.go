package runner

import "fmt"

// changedFlight looks for a run in progress that has the flight of run by the hook
// as it is now, and another by the hook as it was when it was recorded: the store
// takes the two for different flights. It is ErrFlight then, so that run is tried
// again. The caller holds mu, and has run take off if there is none.
func (r *Runner) changedFlight(run Run) error {
	h, ok := r.hook(run.Hook)
	if !ok {
		return nil
	}
	flight := h.Flight(run.Params)
	if rule, known := r.rules[h.Name]; known && rule != h.Spec().Flight || flight != run.Flight {
		r.mixed[h.Name] = true
	}
	r.rules[h.Name] = h.Spec().Flight
	if !r.mixed[h.Name] { // all in progress have the flight that they would be given now
		return nil
	}
	mixed := flight != run.Flight
	for _, other := range r.air {
		if other.Hook != h.Name || other.Flight == run.Flight { // of one flight, the store lets one through
			continue
		}
		now := h.Flight(other.Params)
		if now == flight {
			return fmt.Errorf("%w: run %s, under the flight that the hook had before", ErrFlight, other.ID)
		}
		mixed = mixed || now != other.Flight
	}
	r.mixed[h.Name] = mixed
	return nil
}

// noteRecovered has changedFlight look at the runs of a hook when the flight of one
// that goes on is not the one that it would be given now. The caller holds mu.
func (r *Runner) noteRecovered(run Run) {
	if h, ok := r.hook(run.Hook); ok && h.Flight(run.Params) != run.Flight {
		r.mixed[h.Name] = true
	}
}
