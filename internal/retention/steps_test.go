package retention_test

import (
	"testing"
	"time"

	"sallyport/internal/retention"
)

// moment is a reading of both clocks, relative to the start.
type moment struct {
	wall, mono time.Duration
	held       bool
	step       time.Duration
}

func TestSteps_HoldAfterTheClockWasSet(t *testing.T) {
	start := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	const sec, hour = time.Second, time.Hour
	held := []moment{{5 * sec, 5 * sec, true, 0}, {2 * hour, 2 * hour, false, 0}}
	for name, row := range map[string]struct {
		newest  time.Duration // before the start
		stepped time.Duration
		moments []moment
	}{
		"steady": {sec, 0, []moment{{5 * sec, 5 * sec, false, 0}, {50 * hour, 50 * hour, false, 0}}},
		"slewed": {sec, 0, []moment{{hour, hour - 30*sec, false, 0}, {2 * hour, 2*hour - 70*sec, false, 0}}},
		"forward": {sec, 0, []moment{
			{9000 * hour, 5 * sec, true, 9000*hour - 5*sec},
			{9001 * hour, hour, true, 0},
			{9003 * hour, 2*hour + 5*sec, true, hour - 5*sec},
		}},
		"back": {sec, 0, []moment{
			{-hour, 5 * sec, true, -hour - 5*sec},
			{-hour + 10*sec, 15 * sec, true, 0},
			{10 * sec, hour + 15*sec, false, 0},
		}},
		"set back before the start":    {-hour, 0, held},
		"set by less than a day":       {sec, hour, held},
		"set back by less than a day":  {2 * hour, -hour, held},
		"set forward before the start": {9000 * hour, 0, held},
	} {
		s := retention.NewSteps(start, 0, start.Add(-row.newest), row.stepped)
		for i, m := range row.moments {
			if held, step := s.Held(start.Add(m.wall), m.mono); held != m.held || step != m.step {
				t.Errorf("%s, moment %d: held %v, step %v; want %v, %v", name, i, held, step, m.held, m.step)
			}
		}
	}
	if held, _ := retention.NewSteps(start, 0, time.Time{}, 0).Held(start, 0); held {
		t.Error("held although nothing is recorded")
	}
}
