package e2e_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// To an observer, a flight is a line of runs: the first one runs or is the next to run, and the others are queued
// behind it. Each answer of the server and each line of a witness file is an operation on that line, which happened
// between two known moments. The history of a flight is right if its operations have an order that fits these moments
// and that this model allows. porcupine looks for one.

// Operations on a flight.
const (
	opAdmit = "admit" // a delivery or a rerun was accepted
	opBusy  = "busy"  // a delivery or a rerun was refused because the flight is busy
	opBegin = "begin" // the command of a run executed its first line
	opEnd   = "end"   // a run whose command began ended
	opDrop  = "drop"  // a run whose command never began ended, and was not replaced
	opSeen  = "seen"  // an answer showed the state of a run
)

// How a delivery was admitted. Empty if no answer says.
const (
	howStarted = "started"
	howQueued  = "queued"
	howJoined  = "joined"
	howAgain   = "again" // the server repeated an interrupted run
)

// flightOp is an operation on a flight.
type flightOp struct {
	What   string
	Run    string
	Policy hook.Policy
	How    string       // of opAdmit
	Place  int          // of opAdmit: the position in the answer, or 0
	Again  string       // of opAdmit with howAgain: the run that is repeated, which has not ended by then
	Drops  []string     // of opAdmit: queued runs that this one replaced
	Rerun  bool         // of opBusy: a rerun was refused
	State  runner.State // of opSeen
}

// apply reports whether an operation is possible on a line, and returns the line after it.
func (o flightOp) apply(line []string) (ok bool, after []string) {
	at := slices.Index(line, o.Run)
	switch o.What {
	case opAdmit:
		return o.admit(line, at)
	case opBusy:
		return o.mayBeBusy(line) && (o.Run == "" || at == 0), line
	case opBegin:
		return at == 0, line
	case opEnd:
		return at == 0, slices.Delete(slices.Clone(line), 0, min(1, len(line)))
	case opDrop:
		return at >= 0, slices.DeleteFunc(slices.Clone(line), func(run string) bool { return run == o.Run })
	case opSeen:
		switch o.State {
		case runner.Running:
			return at == 0, line
		case runner.Queued:
			return at >= 0, line
		default:
			return at < 0, line
		}
	}
	return false, line
}

// mayBeBusy reports whether the policy refuses a new delivery. A run that was put back counts as queued, which an
// observer cannot see, so both are possible.
func (o flightOp) mayBeBusy(line []string) bool {
	switch o.Policy.Kind {
	case hook.Reject:
		return len(line) > 0
	case hook.Queue:
		return len(line) >= o.Policy.Depth
	case hook.Join: // its parameters are older than those of queued runs
		return len(line) > 0 && o.Rerun
	default:
		return false
	}
}

func (o flightOp) admit(line []string, at int) (ok bool, after []string) {
	added := append(slices.Clone(line), o.Run)
	switch {
	case o.How == howStarted:
		return len(line) == 0, added
	case o.How == howAgain:
		return at < 0 && len(line) > 0 && line[0] == o.Again, added
	case at >= 0: // only a queued run stands for a later delivery
		return (o.How == howJoined || o.How == "") && o.Policy.Kind == hook.Join && at == len(line)-1, line
	case o.How == howJoined:
		return false, line
	case len(line) == 0:
		return o.How == "", added
	}
	switch o.Policy.Kind {
	case hook.Queue:
		inPlace := o.Place == 0 || o.Place == len(line) || o.Place == len(line)+1
		return len(line) <= o.Policy.Depth && inPlace, added
	case hook.Join:
		return len(line) == 1, added
	case hook.Replace:
		dropped := func(run string) bool { return slices.Contains(o.Drops, run) }
		after = append(slices.DeleteFunc(slices.Clone(line), dropped), o.Run)
		return len(after) == len(added)-len(o.Drops) && len(after) <= 2, after
	default:
		return false, line
	}
}

// flightModel is the model of one flight. Its state is the line as text, so that states are compared by value.
func flightModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, _ any) (bool, any) {
			ok, after := input.(flightOp).apply(strings.Fields(state.(string)))
			return ok, strings.Join(after, " ")
		},
		DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
	}
}

// moment is a time in nanoseconds since the machine was started.
type moment int64

// history is the operations on one flight.
type history []porcupine.Operation

// add adds an operation that happened between two moments.
func (h *history) add(from, to moment, o flightOp) {
	*h = append(*h, porcupine.Operation{Input: o, Call: int64(from), Return: int64(max(from, to))})
}

// check looks for an order of the operations. If there is none, it returns an error, and writes a diagram to a file.
func (h history) check(flight, file string) error {
	const enough = time.Minute
	model := flightModel()
	switch porcupine.CheckOperationsTimeout(model, h, enough) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("flight %s: no order of %d operations was found within %v", flight, len(h), enough)
	case porcupine.Illegal:
	}
	_, info := porcupine.CheckOperationsVerbose(model, h, enough)
	err := fmt.Errorf("flight %s: no order of its %d operations is possible (shown in %s)", flight, len(h), file)
	return errors.Join(err, porcupine.VisualizePath(model, info, file))
}

// TestFlightModel: the model rejects impossible histories.
func TestFlightModel(t *testing.T) {
	t.Parallel()
	reject, queue := hook.Policy{Kind: hook.Reject}, hook.Policy{Kind: hook.Queue, Depth: 1}
	join, replace := hook.Policy{Kind: hook.Join}, hook.Policy{Kind: hook.Replace}
	started := func(run string) flightOp { return flightOp{What: opAdmit, Run: run, How: howStarted} }
	queued := func(run string, p hook.Policy) flightOp {
		return flightOp{What: opAdmit, Run: run, How: howQueued, Policy: p, Place: 1}
	}
	do := func(what, run string) flightOp { return flightOp{What: what, Run: run} }
	seen := func(run string, s runner.State) flightOp { return flightOp{What: opSeen, Run: run, State: s} }
	busy := func(run string, p hook.Policy) flightOp { return flightOp{What: opBusy, Run: run, Policy: p} }
	for name, test := range map[string]struct {
		legal bool
		ops   []flightOp // one after another
	}{
		"one after another":        {true, []flightOp{started("a"), do(opBegin, "a"), do(opEnd, "a"), started("b"), do(opBegin, "b")}},
		"two at once":              {false, []flightOp{started("a"), do(opBegin, "a"), started("b"), do(opEnd, "a")}},
		"begins before its turn":   {false, []flightOp{started("a"), queued("b", queue), do(opBegin, "b")}},
		"begins after its end":     {false, []flightOp{started("a"), do(opDrop, "a"), do(opBegin, "a")}},
		"busy":                     {true, []flightOp{started("a"), busy("a", reject)}},
		"busy without a run":       {false, []flightOp{started("a"), do(opEnd, "a"), busy("a", reject)}},
		"busy with another":        {false, []flightOp{started("a"), queued("b", queue), busy("b", queue)}},
		"queued":                   {true, []flightOp{started("a"), queued("b", queue), do(opEnd, "a"), do(opBegin, "b")}},
		"queued in an idle flight": {false, []flightOp{queued("a", queue)}},
		"queued beyond its bound":  {false, []flightOp{started("a"), queued("b", queue), queued("c", queue)}},
		"queued by reject":         {false, []flightOp{started("a"), queued("b", reject)}},
		"joined": {true, []flightOp{
			started("a"), queued("b", join), {What: opAdmit, Run: "b", How: howJoined, Policy: join}, do(opEnd, "a"), do(opBegin, "b"),
		}},
		"two runs queued by join": {false, []flightOp{started("a"), queued("b", join), queued("c", join)}},
		"joined a running run": {false, []flightOp{
			started("a"), queued("b", join), do(opEnd, "a"), do(opBegin, "b"), queued("c", join),
			{What: opAdmit, Run: "b", How: howJoined, Policy: join},
		}},
		"replaced": {true, []flightOp{
			started("a"), queued("b", replace),
			{What: opAdmit, Run: "c", Policy: replace, Drops: []string{"b"}},
			seen("b", runner.Cancelled),
			do(opEnd, "a"), do(opBegin, "c"),
		}},
		"replaced, and it begins": {false, []flightOp{
			started("a"), queued("b", replace), {What: opAdmit, Run: "c", Policy: replace, Drops: []string{"b"}}, do(opEnd, "a"), do(opBegin, "b"),
		}},
		"not replaced":            {false, []flightOp{started("a"), queued("b", replace), queued("c", replace)}},
		"running again":           {false, []flightOp{started("a"), seen("a", runner.Running), seen("a", runner.Failed), seen("a", runner.Running), do(opEnd, "a")}},
		"ended and still there":   {false, []flightOp{started("a"), seen("a", runner.Failed), seen("a", runner.Queued)}},
		"repeated after its end":  {false, []flightOp{started("a"), do(opEnd, "a"), {What: opAdmit, Run: "b", How: howAgain, Again: "a"}}},
		"an answer that was lost": {true, []flightOp{started("a"), {What: opAdmit, Run: "b", Policy: queue}, seen("b", runner.Queued)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var h history
			for i, o := range test.ops {
				h.add(moment(10*i), moment(10*i+5), o)
			}
			if err := h.check("f", t.TempDir()+"/history.html"); (err == nil) != test.legal {
				t.Errorf("legal: %v, want %v: %v", err == nil, test.legal, err)
			}
		})
	}
	t.Run("overlapping answers", func(t *testing.T) {
		t.Parallel()
		var h history
		h.add(0, 100, busy("a", reject)) // asked first, decided last
		h.add(10, 20, started("a"))
		if err := h.check("f", ""); err != nil {
			t.Error(err)
		}
	})
}
