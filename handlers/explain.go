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
	Pauses(ctx context.Context) ([]runner.Pause, error)
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
	if history != nil {
		e.active, e.unread = history.Active(ctx)
	}
	if e.unread == nil && history != nil {
		e.pauses, e.unread = history.Pauses(ctx)
	}
	e.add("delivery", "%s %s with a body of %d bytes, judged at %s", r.Method, r.URL.EscapedPath(), len(body),
		at.UTC().Format(time.RFC3339))
	to, who := e.explainSender()
	if who == nil {
		return &e.Explanation
	}
	e.Observed = c.Observed[who.Caller]
	for _, one := range e.removeForbidden(e.findClaims(ctx, to, who), who.Caller) {
		e.explainHook(one, who)
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
	active  []runner.Run // that are running or queued
	pauses  []runner.Pause
	unread  error // why history and active are not known, or nil
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
func (e *explainer) explainSender() (*endpoint, *auth.Identity) {
	endpoints := groupByPath(e.config)
	to := endpoints[e.request.URL.Path]
	if to == nil || hasEncodedSlash(e.request, nil) {
		const most = 20
		paths := slices.Sorted(maps.Keys(endpoints))
		if len(paths) > most {
			paths = append(paths[:most], "…")
		}
		e.refuse("path", &refusal{
			status: http.StatusNotFound, detail: "no hook has this path: the paths are " + strings.Join(paths, ", "),
		})
		return nil, nil
	}
	for _, h := range to.hooks {
		e.add("path", "hook %s", h.Name)
	}
	if err := e.checkRequest(to.body); err != nil {
		e.refuse("request", err)
		return nil, nil
	}
	if to.isUnauthenticated() {
		e.add("credential", "none is needed: any client may start the hook")
		return to, &auth.Identity{}
	}
	d := &auth.Delivery{
		Method: e.request.Method, Authority: e.request.Host, URL: e.request.URL, Header: e.request.Header, Body: e.body,
		Now: e.at, Address: remoteAddr(e.request),
	}
	who, err := e.config.Auth.Authenticate(d, to.callers)
	switch {
	case e.config.Auth.IsUnsignedTest(d, to.callers, err):
		e.add("handshake", "the test of a sender that does not sign it is answered with 200, and starts nothing")
		e.Status = http.StatusOK
		return nil, nil
	case err != nil:
		e.refuse("credential", unauthorized(e.describeRefused(d, err, to.callers)))
		return nil, nil
	}
	e.add("credential", "caller %s, %s, key %s", who.Caller, who.Kind, who.Key)
	return to, who
}

// checkRequest makes the checks before authentication.
func (e *explainer) checkRequest(bound hook.BodySpec) error {
	if e.request.Method != http.MethodPost {
		return refuseMethod(methods{http.MethodPost: nil})
	}
	if err := (&credentials{config: e.config}).checkOrigin(e.request); err != nil {
		return err
	}
	if err := checkEncoding(e.request); err != nil {
		return err
	}
	if len(e.body) > int(bound.Max) {
		return tooLarge(bound)
	}
	return nil
}

// describeRefused says why a credential is refused, and which callers of the hook it may be of.
func (e *explainer) describeRefused(d *auth.Delivery, err error, callers []string) string {
	text := err.Error()
	likely := slices.DeleteFunc(slices.Clone(callers), func(name string) bool {
		return !e.config.Auth.CouldBeFrom(d, name)
	})
	if len(likely) > 0 {
		text += "\nit has the form of the caller " + strings.Join(likely, " and of ")
	} else {
		text += "\nthe path accepts the callers " + strings.Join(callers, ", ")
	}
	var refused *auth.Refusal
	if errors.As(err, &refused) && refused.Kind == "jwt" && len(e.config.Auth.KeySets()) > 0 {
		text += "\nkeys of issuers are not fetched here, so a token that needs them is always refused"
	}
	return text
}

// findClaims returns the hooks of a path with what is known of an earlier delivery to each. A token that was used
// before for something else is refused.
func (e *explainer) findClaims(ctx context.Context, to *endpoint, who *auth.Identity) (all []candidate) {
	reused := 0
	for _, h := range to.hooks {
		one := candidate{hook: h, claim: claimDelivery(who, h)}
		if e.unread == nil && one.claim.Key != "" {
			one.repeated = runner.FindRepeated(ctx, e.history, h.Name, one.claim)
		}
		if errors.Is(one.repeated, runner.ErrUnavailable) {
			e.unread, one.repeated = one.repeated, nil
		}
		if errors.Is(one.repeated, runner.ErrReused) {
			reused++
		}
		all = append(all, one)
	}
	if reused == len(all) {
		e.refuse("replay", refuseStart(all[0].repeated))
		return nil
	}
	return all
}

// removeForbidden returns the hooks that the caller may start. If there is none, the delivery is refused.
func (e *explainer) removeForbidden(all []candidate, caller string) []candidate {
	meant := removeForbidden(slices.Clone(all), caller)
	if len(all) > 0 && len(meant) == 0 {
		e.refuse(all[0].hook.Name+" rights", forbidden(caller, "start this hook"))
		return nil
	}
	for _, one := range all {
		if !slices.ContainsFunc(meant, func(other candidate) bool { return other.hook == one.hook }) {
			e.add(one.hook.Name+" rights", "not meant: the caller %s may not start it", caller)
		}
	}
	return meant
}

// explainHook follows a delivery of a known caller through the steps of one hook.
func (e *explainer) explainHook(one candidate, who *auth.Identity) {
	h := one.hook
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
	why, err := one.whyIgnored(in)
	if err != nil {
		e.refuse(step("conditions"), err)
		return
	}
	if why != "" {
		e.add(step("conditions"), "ignored with 200: %s", why)
		e.countStatus(http.StatusOK)
		return
	}
	if len(h.When()) > 0 && !one.isRepeated() {
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
	if title := h.Title(values); title != "" {
		e.add(step("title"), "%s", title)
	}
	e.explainStart(one, runner.Delivery{Hook: h, Caller: who.Caller, Values: values, Repeated: one.repeated}, step)
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
func (e *explainer) explainStart(one candidate, d runner.Delivery, step func(string) string) {
	switch {
	case e.unread != nil:
		e.add(step("replay"), "not looked up, and the flight is taken as free: %v", e.unread)
	case one.claim.Key == "":
		e.add(step("replay"), "not checked: a repeated delivery of this caller starts again")
	case one.repeated != nil:
		e.add(step("replay"), "%v", one.repeated)
	default:
		e.add(step("replay"), "a run may start: no earlier delivery keeps it from that")
	}
	e.add(step("flight"), "%s; while a run of it is in progress, a delivery is %s", d.Hook.Flight(d.Values),
		describeBusy(d.Hook.Busy))
	var started runner.Started
	err := d.Repeated
	if err == nil {
		started, err = runner.Foresee(d, e.active, e.pauses)
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
