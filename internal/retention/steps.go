package retention

import (
	"context"
	"time"

	"sallyport/runner"
	"sallyport/runner/store"
)

const (
	// largestStep is how far the wall clock may differ from the time that has passed.
	largestStep = time.Minute
	// longestPause is how old the newest of the earlier runs may be at the start without raising doubts about the
	// clock.
	longestPause = 24 * time.Hour
	// HoldAfterStep is how long nothing is removed after the wall clock was set: an operator, or the
	// time service, has that long to correct it.
	HoldAfterStep = time.Hour
)

// Steps notices when the wall clock is set. While the clock is far ahead, everything would seem old enough
// to be removed.
type Steps struct {
	wall  time.Time
	mono  time.Duration
	until time.Duration // nothing is removed before, in time that has passed
}

// Records are the times of the records at the start, as far as they tell whether the clock was set while the machine
// was off. They are zero without such a record.
type Records struct {
	Newest time.Time
	// Earlier is the newest that is older than HoldAfterStep. Those after it do not show that the clock is right: they
	// may be from an earlier server, which did not remove anything after a step.
	Earlier time.Time
}

// NewSteps starts at a wall clock and a clock that only goes forward. Before that, the wall clock was set by stepped,
// as far as that is known.
func NewSteps(wall time.Time, mono time.Duration, r Records, stepped time.Duration) *Steps {
	s := &Steps{wall: wall.Round(0), mono: mono}
	ahead := !r.Newest.IsZero() && r.Newest.Sub(s.wall) > largestStep
	alone := !r.Earlier.IsZero() && s.wall.Sub(r.Earlier) > longestPause
	if stepped.Abs() > largestStep || ahead || alone {
		s.until = mono + HoldAfterStep
	}
	return s
}

// Held reports at a later moment whether nothing may be removed, and by how much the wall clock was set since
// the moment before.
func (s *Steps) Held(wall time.Time, mono time.Duration) (held bool, step time.Duration) {
	wall = wall.Round(0)
	step = wall.Sub(s.wall) - (mono - s.mono)
	s.wall, s.mono = wall, mono
	if step.Abs() > largestStep {
		s.until = mono + HoldAfterStep
	} else {
		step = 0
	}
	return mono < s.until, step
}

// startSteps starts at a moment, with the runs of the store. The clock may have been set since.
func startSteps(ctx context.Context, started time.Time, st *store.SQLite) (*Steps, error) {
	newest, err := createdOf(ctx, st, runner.Filter{Limit: 1})
	if err != nil {
		return nil, err
	}
	earlier, err := createdOf(ctx, st, runner.Filter{Limit: 1, Before: runner.LowestID(started.Add(-HoldAfterStep))})
	if err != nil {
		return nil, err
	}
	return NewSteps(started, 0, Records{newest, earlier}, st.Stepped()), nil
}

// createdOf returns when the first run of a list was created, or zero without one.
func createdOf(ctx context.Context, st *store.SQLite, f runner.Filter) (time.Time, error) {
	runs, _, err := st.List(ctx, f)
	if err != nil || len(runs) == 0 {
		return time.Time{}, err
	}
	return runs[0].Created, nil
}
