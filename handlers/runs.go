package handlers

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"sallyport/auth"
	"sallyport/runner"
	"sallyport/runner/hook"
)

const (
	// maxWait bounds how long an answer is held back for the end of a run.
	maxWait = 300 * time.Second
	// maxNames bounds how many hooks, callers and states a list may be asked for by name.
	maxNames = 20
)

// caller authenticates a request of the run API, which has no body, and takes a
// place among the reads of the caller.
func (s *surface) caller(w http.ResponseWriter, r *http.Request, req *request) (*auth.Identity, error) {
	if err := s.checkOrigin(r); err != nil {
		return nil, err
	}
	empty, err := s.readBody(w, r, hook.BodySpec{Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	defer empty.release()
	arrived := s.now()
	who, err := s.latest().authenticate(r, req, empty.bytes, nil)
	if err != nil {
		s.evenly(r, 0, nil, arrived)
		return nil, err
	}
	if err := s.limitCaller(w, who); err != nil {
		return nil, err
	}
	leave, ok := s.reads.enter(r.Context(), who.Caller, readTurn)
	if !ok {
		return nil, tooMany("requests for runs")
	}
	req.leave = leave
	return who, nil
}

// run returns the run of the path to a caller that has the rights over it: as
// the one that started it, or by the file. Without rights it is enough that the
// caller may know of it. To all others it is as if there were none; to one that may
// know of it and not do what is asked, 403.
func (s *surface) run(w http.ResponseWriter, r *http.Request, req *request, rights ...hook.Right) (runner.Run, *auth.Identity, error) {
	who, err := s.caller(w, r, req)
	if err != nil {
		return runner.Run{}, nil, err
	}
	acts := slices.IndexFunc(rights, func(right hook.Right) bool { return right != hook.MayRead })
	if acts >= 0 && s.config.Observed[who.Caller] {
		return runner.Run{}, nil, forbidden(who.Caller, string(rights[acts])+" anything while it is observed")
	}
	if acts >= 0 && who.NeverStale { // who has seen one request of it could cancel and repeat runs for ever
		return runner.Run{}, nil, &refusal{
			status: http.StatusForbidden, kind: "forbidden", reason: "the signature has no time, and covers no more than a body, which is empty",
			detail: "A signature of this kind never ends and does not say what is asked for. Cancel and repeat runs with another credential.",
		}
	}
	run, err := s.runner.Get(r.Context(), mux.Vars(r)["id"])
	lacks := slices.IndexFunc(rights, func(right hook.Right) bool { return !s.may(who.Caller, run, right) })
	switch {
	case errors.Is(err, runner.ErrUnknown), err == nil && !s.knows(who.Caller, run) && (lacks >= 0 || len(rights) == 0):
		return runner.Run{}, nil, notFound()
	case err != nil:
		return runner.Run{}, nil, s.notStarted(w, r, req, 0, err)
	case lacks >= 0:
		return runner.Run{}, nil, forbidden(who.Caller, string(rights[lacks])+" this run")
	}
	req.hook, req.run = run.Hook, run.ID
	return run, who, nil
}

// may tells whether a caller has a right over a run. One that stands for others
// too is not the caller's alone to cancel.
func (s *surface) may(caller string, run runner.Run, right hook.Right) bool {
	h, ok := s.config.Hook(run.Hook)
	if ok && h.May(caller, right) {
		return true
	}
	return run.Caller == caller && (right == hook.MayRead || right == hook.MayCancel && len(run.StandsFor) == 0)
}

// knows tells whether a caller may know how a run stands: who may read it, and
// who was told that its delivery waits in it.
func (s *surface) knows(caller string, run runner.Run) bool {
	return s.may(caller, run, hook.MayRead) || slices.Contains(run.StandsFor, caller)
}

// view takes out of a run what is not for the caller, if that may not read it:
// who joined it last, with which parameters.
func (s *surface) view(caller string, run runner.Run) runner.Run {
	if !s.may(caller, run, hook.MayRead) {
		run.Caller, run.Params, run.Cut, run.StandsFor = "", nil, nil, nil
	}
	return run
}

// getRun answers with a run.
func (s *surface) getRun(w http.ResponseWriter, r *http.Request, req *request) error {
	run, _, err := s.run(w, r, req)
	if err != nil {
		return err
	}
	return s.answerRun(w, r, req, run, preferWait(r.Header))
}

// cancelRun ends a run that waits or runs, and answers with it as it stands.
func (s *surface) cancelRun(w http.ResponseWriter, r *http.Request, req *request) error {
	wait := preferWait(r.Header)
	run, _, err := s.run(w, r, req, hook.MayCancel)
	if err != nil {
		return err
	}
	if run, err = s.runner.Cancel(r.Context(), run.ID); err != nil {
		return s.notStarted(w, r, req, wait, err)
	}
	return s.answerRun(w, r, req, run, wait)
}

// rerun starts the command of a run again, with the same parameters. It is a
// command of whoever asks, and no replay; but where the credential tells one
// request from another, each is good for one run.
func (s *surface) rerun(w http.ResponseWriter, r *http.Request, req *request) error {
	wait := preferWait(r.Header)
	run, who, err := s.run(w, r, req, hook.MayRead, hook.MayStart)
	if err != nil {
		return err
	}
	started, err := s.runner.Rerun(r.Context(), run, who.Caller, rerunClaim(who, run))
	if err != nil {
		return s.notStarted(w, r, req, wait, err)
	}
	return s.answerStarted(w, r, req, started, wait)
}

// rerunClaim has a credential that may come once repeat a run once: a token that
// a delivery came with repeats none.
func rerunClaim(who *auth.Identity, run runner.Run) runner.Claim {
	what := "rerun " + run.ID
	switch {
	case who.Replay == "":
		return runner.Claim{}
	case who.OneBody:
		return runner.Claim{Key: digest(who.Kind, who.Replay), Until: who.Until, OneBody: true, Body: sha256.Sum256([]byte(what))}
	}
	return claimNames(who, what)
}

// waiting is a run that is queued.
type waiting struct {
	runner.Run
	Joined   bool      `json:"joined,omitempty"`
	Position int       `json:"position"`       // 1 is next
	Expected time.Time `json:"expected_start"` // by the median of the hook's runs
}

// answerStarted answers 200 for a run that runs, and 202 for one that waits or
// of which nobody can say yet that it runs.
func (s *surface) answerStarted(w http.ResponseWriter, r *http.Request, req *request, started runner.Started, wait int) error {
	if wait > 0 || started.Run.State != runner.Queued && !started.Late {
		return s.answerAs(w, r, req, started.Run, wait, http.StatusAccepted)
	}
	req.run = started.Run.ID
	w.Header().Set("Location", "/runs/"+started.Run.ID)
	if started.Late {
		writeJSON(w, http.StatusAccepted, "application/json", started.Run)
		return nil
	}
	writeJSON(w, http.StatusAccepted, "application/json", waiting{
		Run: started.Run, Joined: started.Joined, Position: started.Position,
		Expected: s.now().Add(started.Expected).Round(time.Second),
	})
	return nil
}

// answerRun answers 200 with a run: as it stands, or when it has ended if the
// request prefers to wait (RFC 7240, 4.3).
func (s *surface) answerRun(w http.ResponseWriter, r *http.Request, req *request, run runner.Run, wait int) error {
	return s.answerAs(w, r, req, run, wait, http.StatusOK)
}

// answerAs is answerRun, with a status for a run that waits for its turn still.
// A caller that has too many answers waiting gets this one at once: a preference
// may be ignored (RFC 7240, 2), and a run was perhaps started for it.
func (s *surface) answerAs(w http.ResponseWriter, r *http.Request, req *request, run runner.Run, wait, queued int) error {
	req.run = run.ID
	leave, mayWait := func() {}, wait > 0
	if mayWait {
		leave, mayWait = s.waits.enter(r.Context(), req.caller, 0)
	}
	if mayWait {
		defer leave()
		req.leaveReads()
		span := min(time.Duration(wait)*time.Second, maxWait)
		w.Header().Set("Preference-Applied", fmt.Sprintf("wait=%d", int(span.Seconds())))
		// The server's own deadline is for answers that are made at once.
		_ = http.NewResponseController(w).SetWriteDeadline(s.now().Add(span + 10*time.Second))
		ctx, cancel := context.WithTimeout(r.Context(), span)
		defer cancel()
		var err error
		if run, err = s.runner.Wait(ctx, run.ID); err != nil {
			return s.notStarted(w, r, req, 0, err)
		}
	}
	status := http.StatusOK
	if run.State == runner.Queued {
		status = queued
	}
	w.Header().Set("Location", "/runs/"+run.ID)
	writeJSON(w, status, "application/json", s.latest().view(req.caller, run))
	return nil
}

// page is a part of the list of runs.
type page struct {
	Runs []runner.Run `json:"runs"`           // newest first
	Next string       `json:"next,omitempty"` // path and query of the next page
}

// listRuns answers with the runs that the caller may know of: its own, those that
// stand for it, and those of the hooks that the file lets it read.
func (s *surface) listRuns(w http.ResponseWriter, r *http.Request, req *request) error {
	who, err := s.caller(w, r, req)
	if err != nil {
		return err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return malformed("The query is malformed.")
	}
	f, err := s.filter(query, who.Caller)
	if err != nil {
		return err
	}
	p := page{Runs: []runner.Run{}}
	last := "" // the highest run that a part ends with: below it, that part has more
	for _, part := range s.visible(who.Caller, f) {
		some, next, err := s.runner.List(r.Context(), part)
		if err != nil {
			return s.notStarted(w, r, req, 0, err)
		}
		p.Runs, last = append(p.Runs, some...), max(last, next)
	}
	slices.SortFunc(p.Runs, func(a, b runner.Run) int { return cmp.Compare(b.ID, a.ID) })
	p.Runs = slices.CompactFunc(p.Runs, func(a, b runner.Run) bool { return a.ID == b.ID })
	whole := slices.IndexFunc(p.Runs, func(run runner.Run) bool { return run.ID < last })
	if whole < 0 {
		whole = len(p.Runs)
	}
	whole = min(whole, f.Limit)
	if last != "" || whole < len(p.Runs) {
		query.Set("before", p.Runs[whole-1].ID)
		p.Next = "/runs?" + query.Encode()
	}
	p.Runs = p.Runs[:whole]
	for i := range p.Runs {
		p.Runs[i] = s.view(who.Caller, p.Runs[i])
	}
	writeJSON(w, http.StatusOK, "application/json", p)
	return nil
}

// visible narrows a filter to what a caller may know of: lists that may overlap.
func (s *surface) visible(caller string, f runner.Filter) (parts []runner.Filter) {
	if len(f.Callers) == 0 || slices.Contains(f.Callers, caller) {
		own := f
		own.Callers = []string{caller}
		parts = append(parts, own)
	}
	if len(f.Callers) == 0 { // whose they are now is not told
		joined := f
		joined.Joined = caller
		parts = append(parts, joined)
	}
	var hooks []string
	for _, name := range slices.Sorted(maps.Keys(s.config.Hooks)) {
		if s.config.Hooks[name].May(caller, hook.MayRead) && (len(f.Hooks) == 0 || slices.Contains(f.Hooks, name)) {
			hooks = append(hooks, name)
		}
	}
	if len(hooks) > 0 {
		f.Hooks = hooks
		parts = append(parts, f)
	}
	return parts
}

// filter reads ?hook=&caller=&state=&since=&until=&before=&limit=. The first
// three may be repeated. A name that the caller may not know is as one that
// does not exist.
func (s *surface) filter(q url.Values, caller string) (f runner.Filter, err error) {
	f = runner.Filter{Hooks: q["hook"], Callers: q["caller"], Before: q.Get("before"), Limit: 50}
	for name := range q {
		if !slices.Contains([]string{"hook", "caller", "state", "since", "until", "before", "limit"}, name) {
			return f, malformed("Runs are asked for by hook, caller, state, since, until, before and limit, and nothing else.")
		}
	}
	if max(len(f.Hooks), len(f.Callers), len(q["state"])) > maxNames {
		return f, malformed(fmt.Sprintf("At most %d each of hook, caller and state may be asked for.", maxNames))
	}
	hooks, callers := s.namesFor(caller)
	switch {
	case slices.ContainsFunc(f.Hooks, func(name string) bool { return !hooks[name] }):
		return f, malformed("A hook that is asked for does not exist.")
	case slices.ContainsFunc(f.Callers, func(name string) bool { return !callers[name] }):
		return f, malformed("A caller that is asked for does not exist.")
	}
	for _, text := range q["state"] {
		state := runner.State(text)
		if state != runner.Queued && state != runner.Running && !slices.Contains(runner.Ends(), state) {
			return f, malformed("There is no such state of a run.")
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

// namesFor returns the hooks that name a caller, and the callers whose runs it may
// see: itself, and those that the hooks name which it may read.
func (s *surface) namesFor(caller string) (hooks, callers map[string]bool) {
	hooks, callers = map[string]bool{}, map[string]bool{caller: true}
	for name, h := range s.config.Hooks {
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

// preferWait reads wait=N, in seconds, out of the Prefer fields; zero without
// one. Of several wait the first counts. One that is not a number is ignored, as are
// other preferences (RFC 7240, 2).
func preferWait(h http.Header) int {
	for _, field := range h.Values("Prefer") {
		for preference := range strings.SplitSeq(field, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err != nil {
				return 0
			}
			return int(n)
		}
	}
	return 0
}
