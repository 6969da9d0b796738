package handlers

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gorilla/mux"

	"sallyport/internal/audit"
	"sallyport/runner"
)

const (
	maxReason = 200                  // characters
	maxPause  = 366 * 24 * time.Hour // a longer pause is one without an end
)

// listHooks answers with all hooks of the configuration, and those that are paused without being in it.
func (a *adminAPI) listHooks(w http.ResponseWriter, r *http.Request, req *request) error {
	if err := noteAdmin(r, req); err != nil {
		return err
	}
	states, err := a.hookStates(r)
	if err != nil {
		return refuseStart(err)
	}
	list := []*runner.HookState{}
	for _, name := range slices.Sorted(maps.Keys(states)) {
		list = append(list, states[name])
	}
	writeJSON(w, http.StatusOK, "application/json", map[string]any{"hooks": list})
	return nil
}

func (a *adminAPI) hookStates(r *http.Request) (map[string]*runner.HookState, error) {
	paused, err := a.runner.Pauses().List(r.Context())
	if err != nil {
		return nil, err
	}
	active, err := a.runner.Active(r.Context())
	if err != nil {
		return nil, err
	}
	states := map[string]*runner.HookState{}
	find := func(name string) *runner.HookState {
		if states[name] == nil {
			states[name] = &runner.HookState{Name: name, Callers: []string{}, Running: []string{}, Queued: []string{}}
		}
		return states[name]
	}
	for name, h := range a.config.Hooks {
		s := find(name)
		s.Path, s.Busy, s.Callers = h.Path, string(h.Busy.Kind), append(s.Callers, h.Callers...)
	}
	for _, p := range paused {
		find(p.Hook).Paused = &p
	}
	for _, run := range active {
		switch s := states[run.Hook]; {
		case s == nil: // its hook was removed
		case run.State == runner.Running:
			s.Running = append(s.Running, run.ID)
		default:
			s.Queued = append(s.Queued, run.ID)
		}
	}
	return states, nil
}

// pauseHook pauses a hook. The reason is required, because the next operator has to know whether the hook may be
// resumed.
func (a *adminAPI) pauseHook(w http.ResponseWriter, r *http.Request, req *request) error {
	name, err := a.findHook(r, req)
	if err != nil {
		return err
	}
	order := r.URL.Query()
	p := runner.Pause{Hook: name, Reason: strings.TrimSpace(order.Get("reason")), By: "uid " + req.key}
	if n := utf8.RuneCountInString(p.Reason); n == 0 || n > maxReason || !isPrintable(p.Reason) {
		return malformed(fmt.Sprintf("A reason is required: up to %d printable characters.", maxReason))
	}
	if text := order.Get("for"); text != "" {
		if p.Length, err = time.ParseDuration(text); err != nil || p.Length < time.Second || p.Length > maxPause {
			return malformed("The length of a pause is a duration from 1s to 8784h, such as 2h.")
		}
	}
	if _, err := a.runner.Pauses().PauseHook(r.Context(), p); err != nil {
		return refuseStart(err)
	}
	return a.answerHook(w, r, name)
}

func isPrintable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) })
}

// resumeHook ends the pause of a hook. A hook that is not paused is not an error.
func (a *adminAPI) resumeHook(w http.ResponseWriter, r *http.Request, req *request) error {
	name, err := a.findHook(r, req)
	if err != nil {
		return err
	}
	if _, err := a.runner.Pauses().ResumeHook(r.Context(), name); err != nil {
		return refuseStart(err)
	}
	return a.answerHook(w, r, name)
}

// answerHook answers with a hook as it is now.
func (a *adminAPI) answerHook(w http.ResponseWriter, r *http.Request, name string) error {
	states, err := a.hookStates(r)
	if err != nil {
		return refuseStart(err)
	}
	if states[name] == nil { // it is resumed and not in the configuration
		states[name] = &runner.HookState{Name: name, Callers: []string{}, Running: []string{}, Queued: []string{}}
	}
	writeJSON(w, http.StatusOK, "application/json", states[name])
	return nil
}

// findHook returns the name of the hook that the path names, and records the user of the request.
func (a *adminAPI) findHook(r *http.Request, req *request) (string, error) {
	if err := noteAdmin(r, req); err != nil {
		return "", err
	}
	name := audit.Shorten(mux.Vars(r)["hook"], maxReason)
	states, err := a.hookStates(r)
	if err != nil {
		return "", refuseStart(err)
	}
	if states[name] != nil {
		req.hook = name
		return name, nil
	}
	detail := fmt.Sprintf("The configuration has no hook %.64q.", name)
	if like := nearestName(name, slices.Sorted(maps.Keys(states))); like != "" {
		detail += fmt.Sprintf(" Did you mean %q?", like)
	}
	return "", &refusal{status: http.StatusNotFound, kind: "not-found", detail: detail}
}

// nearestName returns the name that differs least from another, empty if none is similar.
func nearestName(name string, names []string) (nearest string) {
	least := 1 + len(name)/3
	for _, other := range names {
		if n := countEdits(name, other); n <= least {
			nearest, least = other, n-1
		}
	}
	return nearest
}

// countEdits returns how many bytes have to be added, removed or replaced to make b from a.
func countEdits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0]++
		for j := range len(b) {
			edits := min(row[j], row[j+1]) + 1
			if a[i] == b[j] {
				edits = min(edits, diagonal)
			} else {
				edits = min(edits, diagonal+1)
			}
			diagonal, row[j+1] = row[j+1], edits
		}
	}
	return row[len(b)]
}
