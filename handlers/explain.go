package handlers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"sallyport/auth"
	"sallyport/auth/webhook"
	"sallyport/internal/config"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// History is what is known of earlier deliveries. A store has it.
type History interface {
	runner.Claims
	Active(ctx context.Context) ([]runner.Run, error)
}

// Step is one step of an explanation.
type Step struct{ Name, Text string }

// Explanation says what the server would do with a delivery, and why. It has no secret.
type Explanation struct {
	Steps    []Step
	Starts   bool // a run would be started or queued
	Observed bool // by a caller for which nothing is started
	Status   int  // of the answer
}

// Explain follows a delivery through the steps of the server under a configuration, and starts nothing. at is the time
// by which it is judged. Without a history, the steps that need one say so with the reason unread. It counts nothing
// towards limits.
func Explain(
	ctx context.Context, c *config.Config, r *http.Request, body []byte, at time.Time, history History, unread error,
) *Explanation {
	e := &explainer{config: c, request: r, body: body, at: at, history: history, unread: unread}
	e.add("delivery", "%s %s with a body of %d bytes, judged at %s", r.Method, r.URL.EscapedPath(), len(body),
		at.UTC().Format(time.RFC3339))
	hooks, who := e.explainSender()
	if who == nil {
		return &e.Explanation
	}
	e.Observed = c.Observed[who.Caller]
	for _, h := range e.removeForbidden(hooks, who.Caller) {
		e.explainHook(ctx, h, who)
	}
	if e.Observed {
		e.add("observed", "the caller %s has observe: true, so nothing is started for it", who.Caller)
	}
	return &e.Explanation
}

type explainer struct {
	Explanation

	config  *config.Config
	request *http.Request
	body    []byte
	at      time.Time
	history History
	unread  error
}

func (e *explainer) add(name, format string, a ...any) {
	e.Steps = append(e.Steps, Step{name, fmt.Sprintf(format, a...)})
}

// refuse adds the step that refuses the delivery, with what the operator may know.
func (e *explainer) refuse(name string, err error) {
	var refused *refusal
	if !errors.As(err, &refused) {
		refused = &refusal{status: http.StatusInternalServerError, detail: err.Error()}
	}
	text := refused.detail
	if refused.reason != "" && len(refused.problems) == 0 {
		text = refused.reason
	}
	for _, p := range refused.problems {
		text += "\nparameter " + p.Param + " " + p.Text
	}
	e.add(name, "refused with %d: %s", refused.status, text)
	e.countStatus(refused.status)
}

// countStatus notes the status of a hook. That of the answer is the most important one.
func (e *explainer) countStatus(status int) {
	if weighStatus(status) > weighStatus(e.Status) {
		e.Status = status
	}
}

// explainSender returns the hooks of the path and the caller, or nil if the delivery would be refused before.
func (e *explainer) explainSender() ([]*hook.Hook, *auth.Identity) {
	var hooks []*hook.Hook
	var paths, callers []string
	for _, name := range slices.Sorted(maps.Keys(e.config.Hooks)) {
		h := e.config.Hooks[name]
		paths = append(paths, h.Path)
		if h.Path == e.request.URL.Path && !hasEncodedSlash(e.request, nil) {
			hooks = append(hooks, h)
			callers = append(callers, h.Callers...)
		}
	}
	if len(hooks) == 0 {
		const most = 20
		if len(paths) > most {
			paths = append(paths[:most], "…")
		}
		e.refuse("path", &refusal{
			status: http.StatusNotFound, detail: "no hook has this path: the paths are " + strings.Join(paths, ", "),
		})
		return nil, nil
	}
	for _, h := range hooks {
		e.add("path", "hook %s", h.Name)
	}
	if err := e.checkRequest(groupByPath(e.config)[e.request.URL.Path].body); err != nil {
		e.refuse("request", err)
		return nil, nil
	}
	if hooks[0].Unauthenticated {
		e.add("credential", "none is needed: any client may start the hook")
		return hooks, &auth.Identity{}
	}
	d := &auth.Delivery{
		Method: e.request.Method, Authority: e.request.Host, URL: e.request.URL, Header: e.request.Header, Body: e.body,
		Now: e.at, Address: remoteAddr(e.request),
	}
	who, err := e.config.Auth.Authenticate(d, callers)
	switch {
	case e.config.Auth.IsUnsignedTest(d, callers, err):
		e.add("handshake", "the test of a sender that does not sign it is answered with 200, and starts nothing")
		e.Status = http.StatusOK
		return nil, nil
	case err != nil:
		e.refuse("credential", unauthorized(e.describeRefused(d, err, callers)))
		return nil, nil
	}
	e.add("credential", "caller %s, %s, key %s", who.Caller, who.Kind, who.Key)
	return hooks, who
}

// checkRequest makes the checks before authentication.
func (e *explainer) checkRequest(bound hook.BodySpec) error {
	if e.request.Method != http.MethodPost {
		return refuseMethod(methods{http.MethodPost: nil})
	}
	if err := (&credentials{config: e.config}).checkOrigin(e.request); err != nil {
		return err
	}
	if len(e.body) > int(bound.Max) {
		return &refusal{
			status: http.StatusRequestEntityTooLarge,
			detail: "The body is larger than the " + bound.Max.String() + " that this hook accepts.",
		}
	}
	return nil
}

// describeRefused says why a credential is refused, and which callers of the hook it may be of.
func (e *explainer) describeRefused(d *auth.Delivery, err error, callers []string) string {
	text := err.Error()
	likely := slices.DeleteFunc(slices.Clone(callers), func(name string) bool { return !e.config.Auth.CouldBeFrom(d, name) })
	if len(likely) > 0 {
		text += "\nit has the form of the caller " + strings.Join(likely, " and of ")
	} else {
		text += "\nthe hook accepts the callers " + strings.Join(callers, ", ")
	}
	var refused *auth.Refusal
	if errors.As(err, &refused) && refused.Kind == "jwt" && len(e.config.Auth.KeySets()) > 0 {
		text += "\nkeys of issuers are not fetched here, so a token that needs them is always refused"
	}
	return text
}

// removeForbidden returns the hooks that the caller may start. If there is none, the delivery is refused.
func (e *explainer) removeForbidden(hooks []*hook.Hook, caller string) (meant []*hook.Hook) {
	for _, h := range hooks {
		if h.Unauthenticated || h.May(caller, hook.MayStart) {
			meant = append(meant, h)
		} else if len(hooks) > 1 {
			e.add(h.Name+" rights", "not meant: the caller %s may not start it", caller)
		}
	}
	if len(meant) == 0 {
		e.refuse(hooks[0].Name+" rights", forbidden(caller, "start this hook"))
	}
	return meant
}

// explainHook follows a delivery of a known caller through the steps of one hook.
func (e *explainer) explainHook(ctx context.Context, h *hook.Hook, who *auth.Identity) {
	step := func(name string) string { return h.Name + " " + name }
	if hs := who.Handshake; hs != nil {
		e.explainHandshake(step("handshake"), hs)
		return
	}
	in, err := openDelivery(e.request, e.body, who, h)
	if err != nil {
		e.refuse(step("body"), err)
		return
	}
	if why := h.WhyIgnored(in); why != "" {
		e.add(step("conditions"), "ignored with 200: %s", why)
		e.countStatus(http.StatusOK)
		return
	}
	if len(h.When()) > 0 {
		e.add(step("conditions"), "all hold")
	}
	values, err := bindParameters(in, h)
	if err != nil {
		e.refuse(step("parameters"), err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		e.add(step("parameter"), "%s = %q", name, values[name])
	}
	argv, err := h.Argv(values)
	if err != nil {
		e.refuse(step("command"), err)
		return
	}
	e.add(step("command"), "%q", argv)
	e.explainStart(ctx, runner.Delivery{Hook: h, Caller: who.Caller, Values: values, Claim: claimDelivery(who, h)}, step)
}

func (e *explainer) explainHandshake(step string, hs *webhook.Handshake) {
	if hs.Defect != "" {
		e.refuse(step, malformed(hs.Defect))
		return
	}
	e.add(step, "%s is answered as the sender demands, with %d, and starts nothing", hs.Event, hs.Status)
	e.Status = hs.Status
}

// explainStart says whether a delivery is a replay, and whether its flight is free.
func (e *explainer) explainStart(ctx context.Context, d runner.Delivery, step func(string) string) {
	active := e.explainReplay(ctx, &d, step)
	e.add(step("flight"), "%s; while a run of it is in progress, a delivery is %s", d.Hook.Flight(d.Values),
		describeBusy(d.Hook.Busy))
	var started runner.Started
	err := d.Repeated
	if err == nil {
		started, err = runner.Foresee(d, active)
	}
	o, err := describeOutcome(started, err)
	if err != nil {
		e.refuse(step("result"), refuseStart(err))
		return
	}
	text := fmt.Sprintf("would be %s (%d)", o.Would, o.Status)
	switch {
	case o.Run != "":
		text += ", as the run " + o.Run + ", which is returned"
	case o.Position > 0:
		text += fmt.Sprintf(", at position %d", o.Position)
	}
	e.add(step("result"), "%s", text)
	e.countStatus(o.Status)
	e.Starts = e.Starts || o.Run == ""
}

// explainReplay looks the claim of a delivery up, and returns the runs that are running or queued, if they are known.
func (e *explainer) explainReplay(ctx context.Context, d *runner.Delivery, step func(string) string) []runner.Run {
	var active []runner.Run
	err := e.unread
	if e.history != nil {
		active, err = e.history.Active(ctx)
	}
	if err == nil && d.Claim.Key != "" {
		d.Repeated = runner.FindRepeated(ctx, e.history, d.Hook.Name, d.Claim)
		if errors.Is(d.Repeated, runner.ErrUnavailable) {
			err, d.Repeated = d.Repeated, nil
		}
	}
	switch {
	case err != nil:
		e.add(step("replay"), "not looked up, and the flight is taken as free: %v", err)
	case d.Claim.Key == "":
		e.add(step("replay"), "not checked: a repeated delivery of this caller starts again")
	case d.Repeated != nil:
		e.add(step("replay"), "%v", d.Repeated)
	default:
		e.add(step("replay"), "not accepted before")
	}
	return active
}

// describeBusy says what becomes of a delivery while its flight is busy.
func describeBusy(p hook.Policy) string {
	switch p.Kind {
	case hook.Queue:
		return fmt.Sprintf("queued, up to %d of them, and then refused with 503", p.Depth)
	case hook.Join:
		return "joined with the queued run (202)"
	case hook.Replace:
		return "queued, and the run in progress is cancelled (202)"
	default:
		return "refused with 503"
	}
}
