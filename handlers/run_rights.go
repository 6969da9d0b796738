package handlers

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"time"

	"sallyport/internal/config"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// runRights decide what a caller may do with runs, and which runs it may know of.
type runRights struct{ config *config.Config }

// hasRight reports whether a caller has a right over a run. The caller of a run cannot cancel it by that alone if the
// run also stands for deliveries of other callers.
func (a runRights) hasRight(caller string, run runner.Run, right hook.Right) bool {
	h, ok := a.config.Hook(run.Hook)
	if ok && h.May(caller, right) {
		return true
	}
	return run.Caller == caller && (right == hook.MayRead || right == hook.MayCancel && len(run.StandsFor) == 0)
}

// mayKnow reports whether a caller may know the state of a run: if it may read the run, or if the run also stands for
// a delivery of that caller.
func (a runRights) mayKnow(caller string, run runner.Run) bool {
	return a.hasRight(caller, run, hook.MayRead) || slices.Contains(run.StandsFor, caller)
}

// redactRun removes from a run what a caller without the right to read it must not see: the caller that joined the
// run last, the parameters and the title.
func (a runRights) redactRun(caller string, run runner.Run) runner.Run {
	if !a.hasRight(caller, run, hook.MayRead) {
		run.Caller, run.Title, run.Params, run.Cut, run.StandsFor = "", "", nil, nil, nil
	}
	return run
}

// visibleParts restricts a filter to the runs that a caller may know of. It returns several filters, and their runs may
// overlap.
func (a runRights) visibleParts(caller string, f runner.Filter) (parts []runner.Filter) {
	if len(f.Callers) == 0 || slices.Contains(f.Callers, caller) {
		own := f
		own.Callers = []string{caller}
		parts = append(parts, own)
	}
	if len(f.Callers) == 0 { // the answer does not contain the current caller of the run
		joined := f
		joined.Joined = caller
		parts = append(parts, joined)
	}
	var hooks []string
	for _, name := range slices.Sorted(maps.Keys(a.config.Hooks)) {
		if a.config.Hooks[name].May(caller, hook.MayRead) && (len(f.Hooks) == 0 || slices.Contains(f.Hooks, name)) {
			hooks = append(hooks, name)
		}
	}
	if len(hooks) > 0 {
		f.Hooks = hooks
		parts = append(parts, f)
	}
	return parts
}

// parseFilter parses ?hook=&caller=&state=&since=&until=&before=&limit=. The first three may be repeated. A name that
// the caller may not know gets the same answer as one that does not exist.
func (a runRights) parseFilter(q url.Values, caller string) (f runner.Filter, err error) {
	f = runner.Filter{Hooks: q["hook"], Callers: q["caller"], Before: q.Get("before"), Limit: 50}
	for name := range q {
		if !slices.Contains([]string{"hook", "caller", "state", "since", "until", "before", "limit"}, name) {
			return f, malformed("Unknown query parameter; use hook, caller, state, since, until, before or limit.")
		}
	}
	if max(len(f.Hooks), len(f.Callers), len(q["state"])) > maxNames {
		return f, malformed(fmt.Sprintf("At most %d each of hook, caller and state may be asked for.", maxNames))
	}
	hooks, callers := a.visibleNames(caller)
	switch {
	case slices.ContainsFunc(f.Hooks, func(name string) bool { return !hooks[name] }):
		return f, malformed("The query names a hook that does not exist.")
	case slices.ContainsFunc(f.Callers, func(name string) bool { return !callers[name] }):
		return f, malformed("The query names a caller that does not exist.")
	}
	for _, text := range q["state"] {
		state := runner.State(text)
		if state != runner.Queued && state != runner.Running && !slices.Contains(runner.Ends(), state) {
			return f, malformed("Unknown state of a run.")
		}
		f.States = append(f.States, state)
	}
	for name, at := range map[string]*time.Time{"since": &f.Since, "until": &f.Until} {
		if text := q.Get(name); text != "" {
			if *at, err = time.Parse(time.RFC3339, text); err != nil {
				return f, malformed("since and until are times as in RFC 3339.")
			}
		}
	}
	if text := q.Get("limit"); text != "" {
		if f.Limit, err = strconv.Atoi(text); err != nil || f.Limit < 1 || f.Limit > 1000 {
			return f, malformed("limit is a number from 1 to 1000.")
		}
	}
	return f, nil
}

// visibleNames returns the hooks to which a caller has a right, and the callers of the runs that it may see: itself,
// and the callers of the hooks of which it may read the runs.
func (a runRights) visibleNames(caller string) (hooks, callers map[string]bool) {
	hooks, callers = map[string]bool{}, map[string]bool{caller: true}
	for name, h := range a.config.Hooks {
		if !slices.Contains(h.Callers, caller) {
			continue
		}
		hooks[name] = true
		if h.May(caller, hook.MayRead) {
			for _, other := range h.Callers {
				callers[other] = true
			}
		}
	}
	return hooks, callers
}
