package handlers

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/gorilla/mux"

	"sallyport/auth"
	"sallyport/runner"
	"sallyport/runner/hook"
)

const (
	// maxNames is the most hooks, callers and states that the filter of a list may have.
	maxNames = 20
)

// authenticateCaller authenticates a request of the run API, which has no body, and takes a
// place among the reads of the caller.
func (s *service) authenticateCaller(w http.ResponseWriter, r *http.Request, req *request) (*auth.Identity, error) {
	if err := s.credentials.checkOrigin(r); err != nil {
		return nil, err
	}
	empty, err := s.bodies.readUnverified(w, r, hook.BodySpec{Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	defer empty.releaseRoom()
	arrived := s.now()
	who, err := s.latest().credentials.authenticate(r, req, empty.bytes, nil)
	if err != nil {
		s.delay.waitUniformly(r, 0, nil, arrived)
		return nil, err
	}
	if err := s.limits.limitCaller(w, who); err != nil {
		return nil, err
	}
	leave, ok := s.gates.reads.takePlace(r.Context(), who.Caller, readTurn)
	if !ok {
		return nil, refuseTooMany("requests for runs")
	}
	req.leave = leave
	return who, nil
}

// authorizeRun returns the run that the path names, if the caller has the rights over it because it started the run
// or because the configuration says so. Without rights, it is sufficient that the caller may know of the run. A
// caller that may know of it and lacks a right gets 403. All others get the answer for an unknown run.
func (s *service) authorizeRun(w http.ResponseWriter, r *http.Request, req *request, rights ...hook.Right) (
	runner.Run, *auth.Identity, error,
) {
	who, err := s.authenticateCaller(w, r, req)
	if err != nil {
		return runner.Run{}, nil, err
	}
	acts := slices.IndexFunc(rights, func(right hook.Right) bool { return right != hook.MayRead })
	if acts >= 0 && s.config.Observed[who.Caller] {
		return runner.Run{}, nil, forbidden(who.Caller, string(rights[acts])+" anything while it is observed")
	}
	if acts >= 0 && who.NeverStale { // a recorded request could be sent again at any time, to cancel and repeat runs
		return runner.Run{}, nil, &refusal{
			status: http.StatusForbidden, kind: "forbidden",
			reason: "the signature has no timestamp, and covers only the body, which is empty",
			detail: "This signature scheme has no timestamp, so it cannot authorize cancel or rerun. " +
				"Use another credential.",
		}
	}
	run, err := s.runner.Get(r.Context(), mux.Vars(r)["id"])
	lacks := slices.IndexFunc(rights, func(right hook.Right) bool { return !s.rights.hasRight(who.Caller, run, right) })
	switch {
	case errors.Is(err, runner.ErrUnknown),
		err == nil && !s.rights.mayKnow(who.Caller, run) && (lacks >= 0 || len(rights) == 0):
		return runner.Run{}, nil, notFound()
	case err != nil:
		return runner.Run{}, nil, s.answers.answerNotStarted(w, r, req, endWait{}, err)
	case lacks >= 0:
		return runner.Run{}, nil, forbidden(who.Caller, string(rights[lacks])+" this run")
	}
	req.hook, req.run = run.Hook, run.ID
	return run, who, nil
}

// getRun answers with a run.
func (s *service) getRun(w http.ResponseWriter, r *http.Request, req *request) error {
	run, _, err := s.authorizeRun(w, r, req)
	if err != nil {
		return err
	}
	return s.answers.answerRun(w, r, req, run, preferredWait(r))
}

// cancelRun ends a queued or running run, and answers with its state.
func (s *service) cancelRun(w http.ResponseWriter, r *http.Request, req *request) error {
	wait := preferredWait(r)
	run, _, err := s.authorizeRun(w, r, req, hook.MayCancel)
	if err != nil {
		return err
	}
	if run, err = s.runner.Cancel(r.Context(), run.ID); err != nil {
		return s.answers.answerNotStarted(w, r, req, wait, err)
	}
	return s.answers.answerRun(w, r, req, run, wait)
}

// repeatRun starts the command of a run again, with the same parameters. The new run belongs to the caller of the
// request, and is not a replay. If the credential identifies a request, each request starts only one run.
func (s *service) repeatRun(w http.ResponseWriter, r *http.Request, req *request) error {
	wait := preferredWait(r)
	run, who, err := s.authorizeRun(w, r, req, hook.MayRead, hook.MayStart)
	if err != nil {
		return err
	}
	started, err := s.runner.Rerun(r.Context(), run, who.Caller, rerunClaim(who, run))
	if err != nil {
		return s.answers.answerNotStarted(w, r, req, wait, err)
	}
	return s.answers.answerStarted(w, r, req, started, wait)
}

// rerunClaim returns the claim of a request to repeat a run, so that a credential for one use repeats a run once. A
// token that was used for a delivery cannot repeat a run.
func rerunClaim(who *auth.Identity, run runner.Run) runner.Claim {
	what := "rerun " + run.ID
	switch {
	case who.Replay == "":
		return runner.Claim{}
	case who.OneBody:
		return runner.Claim{
			Key: digestParts(who.Kind, who.Replay), Until: who.Until, OneBody: true, Body: sha256.Sum256([]byte(what)),
		}
	}
	return claimNames(who, what)
}

// page is a part of the list of runs.
type page struct {
	Runs []runner.Run `json:"runs"`           // newest first
	Next string       `json:"next,omitempty"` // path and query of the next page
}

// listRuns answers with the runs that the caller may know of: its own runs, those that stand for its deliveries, and
// those of the hooks that the configuration lets it read.
func (s *service) listRuns(w http.ResponseWriter, r *http.Request, req *request) error {
	who, err := s.authenticateCaller(w, r, req)
	if err != nil {
		return err
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return malformed("The query is malformed.")
	}
	f, err := s.rights.parseFilter(query, who.Caller)
	if err != nil {
		return err
	}
	p := page{Runs: []runner.Run{}}
	last := "" // the highest id with which a part ends: that part has more runs below it
	for _, part := range s.rights.visibleParts(who.Caller, f) {
		some, next, err := s.runner.List(r.Context(), part)
		if err != nil {
			return s.answers.answerNotStarted(w, r, req, endWait{}, err)
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
		p.Runs[i] = s.rights.redactRun(who.Caller, p.Runs[i])
	}
	writeJSON(w, http.StatusOK, "application/json", p)
	return nil
}
