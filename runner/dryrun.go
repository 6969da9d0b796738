package runner

import (
	"context"
	"errors"
	"slices"

	"sallyport/runner/hook"
)

// DryRun returns what Start would do with a delivery, as far as that can be known without recording it. It starts and
// records nothing. The run that it returns has no id, and is running or queued. Its errors are those of Start.
func (r *Runner) DryRun(ctx context.Context, d Delivery) (Started, error) {
	if d.Repeated != nil {
		return Started{}, d.Repeated
	}
	if r.Draining() {
		return Started{}, ErrDraining
	}
	active, err := r.store.Active(ctx)
	if err != nil {
		return Started{}, err
	}
	started, err := Foresee(d, active, r.pauses.findAll())
	var busy *Busy
	if errors.As(err, &busy) {
		busy.RetryAfter = r.estimates.timeLeft(busy.Run)
	}
	return started, err
}

// foreseePaused returns what Start would do with a delivery to a paused hook that queues.
func foreseePaused(d Delivery, active []Run, pause Pause, others []Pause) (Started, error) {
	inProgress := Run{Flight: d.Hook.Flight(d.Values), State: Running}
	active = slices.DeleteFunc(active, func(run Run) bool { return run.State == Running })
	others = slices.DeleteFunc(others, func(other Pause) bool { return other.Hook == pause.Hook })
	started, err := Foresee(d, append(active, inProgress), others)
	var full *Busy
	if errors.As(err, &full) {
		return Started{}, newPaused(pause)
	}
	return started, err
}

// Foresee returns what Start would do with a delivery that is new, if these runs are running or queued and these hooks
// are paused. The errors are *Busy, *Paused and nil.
func Foresee(d Delivery, active []Run, pauses []Pause) (Started, error) {
	for _, pause := range pauses {
		switch {
		case pause.Hook != d.Hook.Name:
		case d.Hook.Busy.Kind == hook.Reject:
			return Started{}, newPaused(pause)
		default:
			return foreseePaused(d, active, pause, slices.Clone(pauses))
		}
	}
	run := Run{Hook: d.Hook.Name, Caller: d.Caller, Flight: d.Hook.Flight(d.Values), Params: d.Values, State: Running}
	var current *Run
	isPaused := func(name string) bool {
		return slices.ContainsFunc(pauses, func(one Pause) bool { return one.Hook == name })
	}
	waiting, own, position := 0, 0, 0
	for _, other := range active {
		switch {
		case other.Flight != run.Flight:
		case other.State == Running:
			current = &other
		case isPaused(other.Hook): // it does not start before this one
		default:
			if current == nil { // this one waits for the first queued run, whose command cannot be started yet
				current = &other
			}
			if waiting++; other.Hook == run.Hook {
				own, position = own+1, waiting
			}
		}
	}
	if current == nil {
		return Started{Run: run}, nil
	}
	run.State = Queued
	started := Started{Run: run, Position: waiting + 1}
	switch p := d.Hook.Busy; {
	case p.Kind == hook.Reject, p.Kind == hook.Queue && own >= p.Depth:
		return Started{}, &Busy{Run: *current}
	case p.Kind == hook.Join && own > 0:
		started.Joined, started.Position = true, position
	case p.Kind == hook.Replace:
		started.Position -= own
	}
	return started, nil
}
