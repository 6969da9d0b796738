package retention_test

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"sallyport/internal/retention"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
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
		newest  time.Duration // before the start, also of those that are older than an hour
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
		s := retention.NewSteps(start, 0, retention.Records{start.Add(-row.newest), start.Add(-row.newest)}, row.stepped)
		for i, m := range row.moments {
			if held, step := s.Held(start.Add(m.wall), m.mono); held != m.held || step != m.step {
				t.Errorf("%s, moment %d: held %v, step %v; want %v, %v", name, i, held, step, m.held, m.step)
			}
		}
	}
	if held, _ := retention.NewSteps(start, 0, retention.Records{}, 0).Held(start, 0); held {
		t.Error("held although nothing is recorded")
	}
}

// TestSteps_RunsAfterTheStep: the clock is set forward by 40 days, runs are accepted, and the machine restarts. The runs
// of the last hour do not show that the clock is right. With runs of every day it is.
func TestSteps_RunsAfterTheStep(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for name, row := range map[string]struct {
		ages []time.Duration
		held bool
	}{
		"set forward":          {[]time.Duration{40 * day, 40*day - time.Second, time.Minute, time.Second}, true},
		"runs of every day":    {[]time.Duration{40 * day, 20 * time.Hour, time.Minute}, false},
		"first runs":           {[]time.Duration{time.Minute, time.Second}, false},
		"runs of a later time": {[]time.Duration{2 * time.Hour, -time.Hour}, true},
		"no runs":              {nil, false},
	} {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		st, err := store.Open(t.Context(), dir, time.Now, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for _, age := range row.ages {
			at := now.Add(-age)
			run := runner.Run{ID: runner.LowestID(at), Hook: "h", Flight: at.String(), Created: at}
			if _, err := st.Admit(t.Context(), run, runner.Claim{}, hook.Policy{}, runner.Feed{}); err != nil {
				t.Fatal(err)
			}
		}
		steps, err := retention.StartSteps(t.Context(), now, st)
		if err != nil {
			t.Fatal(err)
		}
		if held, _ := steps.Held(now, 0); held != row.held {
			t.Errorf("%s: held %v", name, held)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
}
