package retention

import (
	"time"

	"sallyport/runner"
)

const (
	// largestStep is how far the wall clock may differ from the time that has passed.
	largestStep = time.Minute
	// longestPause is how old the newest run may be at the start without raising doubts about the clock.
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

// NewSteps starts at a wall clock and a clock that only goes forward. Before that, the wall clock was set by stepped,
// as far as that is known. newest is the time of the newest record, or zero without records. It shows whether the clock
// was set while the machine was off.
func NewSteps(wall time.Time, mono time.Duration, newest time.Time, stepped time.Duration) *Steps {
	s := &Steps{wall: wall.Round(0), mono: mono}
	gap := s.wall.Sub(newest)
	if stepped.Abs() > largestStep || !newest.IsZero() && (gap < -largestStep || gap > longestPause) {
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

// startSteps starts at a moment, with the newest run of the store, if there is one.
func startSteps(started time.Time, newest []runner.Run, stepped time.Duration) *Steps {
	var at time.Time
	if len(newest) > 0 {
		at = newest[0].Created
	}
	return NewSteps(started, 0, at, stepped)
}
