package runner_test

import (
	"errors"
	"testing"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// flights returns a hook, always with the same name, whose runs get their flight from a template.
func flights(t *testing.T, template string, busy int) *hook.Hook {
	t.Helper()
	return newHook(t, hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Key: template}, Busy: hook.BusySpec{Queue: busy}}, "x")
}

// TestFlight_Changed: a reload that changes the flight of a hook lets no two runs of one value overlap, in either
// direction of the change.
func TestFlight_Changed(t *testing.T) {
	for what, change := range map[string][2]string{
		"other text": {"{x}", "region-{x}"},
		"narrower":   {"", "{x}"},
		"wider":      {"{x}", ""},
	} {
		t.Run(what, func(t *testing.T) {
			before, after := flights(t, change[0], 0), flights(t, change[1], 0)
			b := newBench(t, before)
			first := b.start(t, of(before, "eu"))
			b.use(after)
			d := claimed(of(after, "eu"), "k")
			if _, err := b.Start(d); !errors.Is(err, runner.ErrFlight) {
				t.Fatalf("got %v", err)
			}
			other, err := b.Start(of(after, "us"))
			if wide := change[1] == ""; wide != errors.Is(err, runner.ErrFlight) || !wide && err != nil {
				t.Errorf("another value: %v", err)
			}
			b.crash(t) // the next server does not know the earlier flight
			b.recover(t)
			if _, err := b.Start(d); !errors.Is(err, runner.ErrFlight) {
				t.Errorf("after a restart: %v", err)
			}
			b.finish(t, first, 0)
			if change[1] == "" {
				other = runner.Run{}
			}
			b.finish(t, b.start(t, d), 0) // its claim was removed
			if other.ID != "" {
				b.finish(t, other, 0)
			}
			b.start(t, of(after, "eu"))
		})
	}
}

// TestFlightChanged_Queued: a run that was accepted before the reload is queued under its earlier flight, and is
// started when no run of its value is in progress. A delivery after the reload is queued behind it.
func TestFlightChanged_Queued(t *testing.T) {
	before, after := flights(t, "{x}", 5), flights(t, "region-{x}", 5)
	b := newBench(t, before)
	first := b.start(t, of(before, "eu"))
	second := b.queue(t, of(before, "eu"))
	b.use(after)
	b.finish(t, first, 0)
	b.flies(t, second.Run.ID)
	third := b.queue(t, claimed(of(after, "eu"), "k")).Run
	_, err := b.Start(claimed(of(after, "eu"), "k"))
	replayed(t, err, third)
	b.finish(t, second.Run, 0)
	b.flies(t, third.ID)
	fourth := b.queue(t, of(after, "eu"))
	b.finish(t, third, 0)
	b.flies(t, fourth.Run.ID)
}

// TestFlightChanged_AfterRecovery: this server does not know the flight template of a run that an earlier server
// started.
func TestFlightChanged_AfterRecovery(t *testing.T) {
	before, after := flights(t, "{x}", 0), flights(t, "", 0)
	for _, missing := range []bool{false, true} { // the hook is missing while the next server recovers
		b := newBench(t, before)
		b.start(t, of(before, "eu"))
		b.crash(t)
		if missing {
			b.use()
		}
		b.recover(t)
		b.use(after)
		if s, err := b.Start(claimed(of(after, "eu"), "k")); !errors.Is(err, runner.ErrFlight) {
			t.Errorf("missing %v: got %+v, %v", missing, s, err)
		}
	}
}

// TestFlightChanged_NewParam: a run from before a reload lacks a parameter that the new flight needs. It counts as a run
// of each flight of the hook, because it is not known which one it would have.
func TestFlightChanged_NewParam(t *testing.T) {
	before := flights(t, "{x}", 0)
	after := newHook(t, hook.Spec{Command: []string{"/bin/echo", "--x={x}", "--y={y}"}, Flight: hook.FlightSpec{Key: "{y}"}}, "x", "y")
	b := newBench(t, before)
	first := b.start(t, of(before, "eu"))
	b.use(after)
	d := runner.Delivery{Hook: after, Caller: "ci", Values: hook.Values{"x": "us", "y": "blue"}}
	if _, err := b.Start(d); !errors.Is(err, runner.ErrFlight) {
		t.Errorf("got %v", err)
	}
	b.finish(t, first, 0)
	b.start(t, d)
}

// inGroup returns a hook that shares its flights with other hooks.
func inGroup(t *testing.T, name string, busy hook.BusySpec) *hook.Hook {
	t.Helper()
	return namedHook(t, name, hook.Spec{
		Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Group: "db", Key: "{x}"}, Busy: busy,
	}, "x")
}

// TestGroup_ExcludesOtherHooks: no two runs of a group and key are in progress at once, whatever hook.
func TestGroup_ExcludesOtherHooks(t *testing.T) {
	backup, migrate := inGroup(t, "backup", hook.BusySpec{}), inGroup(t, "migrate", hook.BusySpec{Kind: "replace"})
	plain := namedHook(t, "db", hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Key: "{x}"}}, "x")
	b := newBench(t, backup, migrate, plain)
	first := b.start(t, of(backup, "eu"))
	second := b.queue(t, of(migrate, "eu"))
	b.start(t, of(plain, "eu")) // the name of a hook is not that of a group
	b.start(t, of(migrate, "us"))
	_, err := b.Start(of(backup, "eu"))
	busy(t, err, first)
	if second.Position != 1 {
		t.Errorf("position %d", second.Position)
	}
	b.crash(t)
	b.recover(t)
	b.state(t, first.ID, runner.Running)
	b.state(t, second.Run.ID, runner.Queued)
	b.finish(t, first, 0)
	b.flies(t, second.Run.ID)
	_, err = b.Start(of(backup, "eu"))
	busy(t, err, second.Run)
	b.finish(t, second.Run, 0)
	b.start(t, of(backup, "eu"))
}

// TestGroup_Changed: a reload that puts two hooks into a group lets their runs not overlap, although the run in progress
// has the flight of its hook.
func TestGroup_Changed(t *testing.T) {
	spec := hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Key: "{x}"}}
	before := namedHook(t, "backup", spec, "x")
	backup, migrate := inGroup(t, "backup", hook.BusySpec{}), inGroup(t, "migrate", hook.BusySpec{})
	b := newBench(t, before)
	first := b.start(t, of(before, "eu"))
	b.use(backup, migrate)
	if _, err := b.Start(claimed(of(migrate, "eu"), "k")); !errors.Is(err, runner.ErrFlight) {
		t.Errorf("got %v", err)
	}
	b.finish(t, b.start(t, of(migrate, "us")), 0)
	b.finish(t, first, 0)
	b.start(t, claimed(of(migrate, "eu"), "k"))
}

// TestGroup_ChangedQueues: after a reload that puts two hooks into a group, a delivery waits for the run of the other
// hook, by the policy of its own: it is queued and keeps its claim. It starts in its turn, also under the next server.
func TestGroup_ChangedQueues(t *testing.T) {
	t.Parallel()
	spec := hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Flight: hook.FlightSpec{Key: "{x}"}}
	for _, busy := range []hook.BusySpec{{Queue: 2}, {Kind: "join"}, {Kind: "replace"}} {
		before := namedHook(t, "backup", spec, "x")
		backup, migrate := inGroup(t, "backup", hook.BusySpec{}), inGroup(t, "migrate", busy)
		b := newBench(t, before)
		first := b.start(t, of(before, "eu"))
		b.use(backup, migrate)
		second := b.queue(t, claimed(of(migrate, "eu"), "k"))
		if second.Position != 1 || second.Expected <= 0 || !second.Run.Started.IsZero() {
			t.Errorf("%s: %+v", busy.Kind, second)
		}
		until(t, "it is recorded as queued", func() bool { return b.record(t, second.Run.ID).State == runner.Queued })
		third := b.queue(t, of(migrate, "eu"))
		if third.Joined != (busy.Kind == "join") {
			t.Errorf("%s: %+v", busy.Kind, third)
		}
		b.crash(t)
		b.recover(t)
		b.finish(t, first, 0)
		last := third.Run
		if busy.Queue > 0 {
			last = second.Run
		}
		b.flies(t, last.ID)
		if b.overlaps+b.twice > 0 {
			t.Errorf("%s: %d overlaps, %d twice", busy.Kind, b.overlaps, b.twice)
		}
	}
}
