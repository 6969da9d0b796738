package handlers

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strconv"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// refusal is the answer to a refused request: the text for the sender, and separately the text for the log.
type refusal struct {
	status   int
	kind     string // one of few: the last part of the type of the problem
	detail   string // for the sender
	reason   string // for the operator; the detail, if that is complete
	cause    error  // for the operator
	run      *runner.Run
	problems []hook.ParamProblem
	parts    []string // parts of the server that are not ready
	hooks    []hookAnswer
	header   http.Header
}

func (e *refusal) Error() string { return e.kind }

// problem is an RFC 9457 problem detail.
type problem struct {
	Type      string              `json:"type"`
	Title     string              `json:"title"`
	Status    int                 `json:"status"`
	Detail    string              `json:"detail,omitempty"`
	RequestID string              `json:"request_id"`
	Run       *runInProgress      `json:"run,omitempty"`
	Problems  []hook.ParamProblem `json:"problems,omitempty"`
	Hooks     []hookAnswer        `json:"hooks,omitempty"` // their answers, if the path has several
	Parts     []string            `json:"parts,omitempty"` // parts that do not work, in an answer of /readyz
}

// runInProgress is what every caller of a hook may know of a run in progress that blocks its delivery: not the caller
// of that run, and not its parameters.
type runInProgress struct {
	ID    string       `json:"id"`
	State runner.State `json:"state"`
}

// writeProblem writes the answer for every error. An error that is not a refusal is an internal error, and the sender
// learns only that.
func writeProblem(w http.ResponseWriter, req *request, err error) {
	var e *refusal
	if !errors.As(err, &e) {
		req.observed = false
		e = &refusal{
			status: http.StatusInternalServerError, kind: "internal", cause: err,
			detail: "Internal error. See the server log for this request id.",
		}
	}
	req.kind, req.reason, req.cause = e.kind, e.reason, e.cause
	if req.reason == "" {
		req.reason = e.kind
	}
	p := problem{
		Type: "urn:sallyport:" + e.kind, Title: http.StatusText(e.status), Status: e.status,
		Detail: e.detail, RequestID: req.id, Problems: e.problems, Hooks: e.hooks, Parts: e.parts,
	}
	if e.run != nil {
		p.Run = &runInProgress{ID: e.run.ID, State: e.run.State}
		req.run = e.run.ID
	}
	if req.observed {
		writeObservation(w, req, observation{Would: "refused", Status: e.status, Problem: &p})
		return
	}
	maps.Copy(w.Header(), e.header)
	writeJSON(w, e.status, "application/problem+json", p)
	// Before the log is written: the time of that depends on what is logged.
	_ = http.NewResponseController(w).Flush()
}

func writeJSON(w http.ResponseWriter, status int, kind string, v any) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // all types here can be encoded
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(text.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(text.Bytes()) // an error means that the sender is gone
}

// The refusals that are always the same.

func notFound() error {
	return &refusal{status: http.StatusNotFound, kind: "not-found", detail: "Not found."}
}

// unauthorized is the same answer for every way in which a credential can be missing or wrong, so that an outsider
// learns nothing from it. RFC 9110, 15.5.2, requires a challenge.
func unauthorized(reason string) error {
	return &refusal{
		status: http.StatusUnauthorized, kind: "unauthorized", reason: reason,
		detail: "Missing or invalid credential.",
		header: http.Header{"Www-Authenticate": {`Bearer realm="sallyport"`}},
	}
}

// credentialUsed is the answer to a valid token that was used before for another request. Its sender has proved a
// credential, so it may learn this.
func credentialUsed(why error) error {
	return &refusal{
		status: http.StatusUnauthorized, kind: "credential-used", reason: why.Error(),
		detail: "The token is valid, and was used before for another hook or body. Get a new token for each request.",
		header: http.Header{"Www-Authenticate": {`Bearer realm="sallyport"`}},
	}
}

func malformed(detail string) error {
	return &refusal{status: http.StatusBadRequest, kind: "malformed", detail: detail}
}
