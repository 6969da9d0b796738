package handlers

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"sallyport/internal/audit"
	"sallyport/internal/config"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// endpoint is the path of one hook, or of several, which their conditions tell apart. Until a delivery is
// authenticated, only the endpoint decides what happens to it.
type endpoint struct {
	hooks   []*hook.Hook // in the order of their names
	callers []string     // of all hooks
	body    hook.BodySpec
}

// groupByPath returns the endpoints of all hooks.
func groupByPath(c *config.Config) map[string]*endpoint {
	endpoints := make(map[string]*endpoint, len(c.Hooks))
	for _, h := range c.Hooks {
		if endpoints[h.Path] == nil {
			endpoints[h.Path] = &endpoint{}
		}
		endpoints[h.Path].addHook(h)
	}
	return endpoints
}

// addHook adds a hook. The bounds of the body are the largest of all hooks.
func (e *endpoint) addHook(h *hook.Hook) {
	e.hooks = append(e.hooks, h)
	slices.SortFunc(e.hooks, func(a, b *hook.Hook) int { return strings.Compare(a.Name, b.Name) })
	e.body.Max, e.body.Timeout = max(e.body.Max, h.Body.Max), max(e.body.Timeout, h.Body.Timeout)
	if len(e.hooks) == 1 {
		e.callers = h.Callers
		return
	}
	e.callers = slices.Concat(e.callers, h.Callers)
	slices.Sort(e.callers)
	e.callers = slices.Compact(e.callers)
}

// isUnauthenticated reports whether deliveries need no credential. Such a hook shares its path with no other.
func (e *endpoint) isUnauthenticated() bool { return e.hooks[0].Unauthenticated }

// names returns the names of the hooks, for the log and the audit log.
func (e *endpoint) names() string {
	names := make([]string, len(e.hooks))
	for i, h := range e.hooks {
		names[i] = h.Name
	}
	return strings.Join(names, ",")
}

// candidate is a hook of an endpoint that a delivery may be meant for.
type candidate struct {
	hook     *hook.Hook
	claim    runner.Claim
	repeated error // what FindRepeated returned for the claim
	unpaid   bool  // the delivery has not spent a token of its caller, and a start does
}

// noteUnpaid notes the candidates that the delivery can start although it counted as seen: another hook accepted it
// before, or it was ignored. Whoever recorded a delivery must not start runs without a limit.
func noteUnpaid(meant []candidate, seen bool) {
	for i := range meant {
		meant[i].unpaid = seen && !meant[i].isRepeated()
	}
}

// removeForbidden returns the candidates that the caller may start.
func removeForbidden(all []candidate, caller string) []candidate {
	return slices.DeleteFunc(all, func(c candidate) bool {
		return !c.hook.Unauthenticated && !c.hook.May(caller, hook.MayStart)
	})
}

// isRepeated reports whether the hook has accepted the delivery before.
func (c candidate) isRepeated() bool {
	var first *runner.Replayed
	return errors.As(c.repeated, &first) || errors.Is(c.repeated, runner.ErrOtherBody)
}

// wasSeen reports whether any of the hooks has accepted the delivery before, or whether all that the caller may start
// have ignored it.
func (s *service) wasSeen(meant []candidate, caller string) bool {
	if slices.ContainsFunc(meant, candidate.isRepeated) {
		return true
	}
	allowed := removeForbidden(slices.Clone(meant), caller)
	isNew := func(c candidate) bool { return !s.ignoredBefore.has(c) }
	return len(allowed) > 0 && !slices.ContainsFunc(allowed, isNew)
}

// hookAnswers is the answer to a delivery to several hooks.
type hookAnswers struct {
	Ignored bool         `json:"ignored,omitempty"` // by all hooks
	Hooks   []hookAnswer `json:"hooks"`
}

// hookAnswer is what a hook would have answered by itself.
type hookAnswer struct {
	Hook   string          `json:"hook"`
	Status int             `json:"status"`
	Answer json.RawMessage `json:"answer"`

	location   string
	retryAfter int
	request    *request
}

// startEach hands a delivery to each hook, one after the other, and answers with a list of their answers. It does not
// wait for the end of a run. A hook that does not accept the delivery does not keep the others from it, and the claims
// are those of each hook, so a retry starts only those that have not started.
func (v *verified) startEach(w http.ResponseWriter, r *http.Request, req *request, meant []candidate) error {
	answers := make([]hookAnswer, len(meant))
	for i, one := range meant {
		answers[i] = v.startOne(r, *req, one)
	}
	return answerAll(w, req, answers)
}

// startOne hands a delivery to one of several hooks. part is a copy of the request for the log lines of that hook.
func (v *verified) startOne(r *http.Request, part request, one candidate) hookAnswer {
	part.hook, part.leave = one.hook.Name, nil
	ctx := context.WithValue(r.Context(), requestKey{}, &part)
	r = r.Clone(audit.WithRequest(ctx, part.auditLine))
	r.Header.Del("Prefer")
	w := &answerBuffer{header: http.Header{}}
	if err := v.startMeant(w, r, &part, one); err != nil {
		writeProblem(w, &part, err)
	}
	part.status = w.status
	wait, _ := strconv.Atoi(w.header.Get("Retry-After")) // without the field, 0
	return hookAnswer{
		Hook: part.hook, Status: w.status, Answer: bytes.TrimSpace(w.text.Bytes()), request: &part,
		location: w.header.Get("Location"), retryAfter: wait,
	}
}

// answerAll answers with the list of all answers. Its status is the one that is most important for the sender: 503, so
// that it tries again, or else the highest. A hook that ignored the delivery counts only if all have ignored it.
func answerAll(w http.ResponseWriter, req *request, answers []hookAnswer) error {
	counted := slices.DeleteFunc(slices.Clone(answers), hookAnswer.isIgnored)
	list := hookAnswers{Ignored: len(counted) == 0, Hooks: answers}
	if list.Ignored {
		counted = answers
	}
	req.parts, req.reason = requestsOf(counted), describeAnswers(answers)
	if !slices.ContainsFunc(counted, func(a hookAnswer) bool { return a.request.reason != replayed }) {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	worst := slices.MaxFunc(counted, func(a, b hookAnswer) int {
		return cmp.Compare(weighStatus(a.Status), weighStatus(b.Status))
	})
	if worst.Status < http.StatusBadRequest {
		located := slices.DeleteFunc(slices.Clone(counted), func(a hookAnswer) bool { return a.location == "" })
		if len(located) == 1 {
			w.Header().Set("Location", located[0].location)
		}
		writeJSON(w, worst.Status, "application/json", list)
		return nil
	}
	refused := &refusal{
		status: worst.Status, reason: req.reason, cause: worst.request.cause, hooks: answers,
		detail: "A hook of this path did not accept the delivery. A retry starts only those that have not started.",
	}
	refused.kind = worst.request.kind
	if wait := slices.MaxFunc(counted, compareRetries).retryAfter; wait > 0 {
		refused.header = http.Header{"Retry-After": {strconv.Itoa(wait)}}
	}
	return refused
}

func (a hookAnswer) isIgnored() bool { return a.request.kind == ignoredKind }

// weighStatus orders the answers of several hooks by what the sender must know first.
func weighStatus(status int) int {
	if status == http.StatusServiceUnavailable {
		return 1000
	}
	return status
}

func compareRetries(a, b hookAnswer) int { return cmp.Compare(a.retryAfter, b.retryAfter) }

func requestsOf(answers []hookAnswer) []*request {
	requests := make([]*request, len(answers))
	for i, a := range answers {
		requests[i] = a.request
	}
	return requests
}

// describeAnswers returns what each hook did with a delivery, for the log.
func describeAnswers(answers []hookAnswer) string {
	texts := make([]string, len(answers))
	for i, a := range answers {
		texts[i] = strings.Join(strings.Fields(
			fmt.Sprintf("%s: %d %s %s", a.Hook, a.Status, a.request.run, a.request.reason)), " ")
	}
	return strings.Join(texts, "; ")
}

// answerBuffer holds the answer of one of several hooks.
type answerBuffer struct {
	header http.Header
	status int
	text   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (b *answerBuffer) Header() http.Header { return b.header }

// WriteHeader implements http.ResponseWriter.
func (b *answerBuffer) WriteHeader(status int) { b.status = status }

// Write implements http.ResponseWriter.
func (b *answerBuffer) Write(p []byte) (int, error) { return b.text.Write(p) }
