package handlers

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"sallyport/auth"
	"sallyport/internal/audit"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// hook handles a delivery. Each step is one line here, or in startMeant, so that a missing step is easy to see. Cheap
// checks come first, and no secret is used before authentication.
func (s *service) hook(w http.ResponseWriter, r *http.Request, req *request) error {
	at, ok := s.endpoints[r.URL.Path]
	if !ok {
		return notFound()
	}
	req.hook = at.names()
	if r.Method != http.MethodPost {
		return refuseMethod(methods{http.MethodPost: nil})
	}
	if err := s.credentials.checkOrigin(r); err != nil {
		return err
	}
	unverified, err := s.bodies.readUnverified(w, r, at.body)
	if err != nil {
		return err
	}
	defer unverified.releaseRoom()
	arrived, length := s.now(), len(unverified.bytes)
	s, at, who, err := s.latest().judgeDelivery(w, r, req, unverified.bytes)
	s.keepDelivery(r, req, unverified.bytes, at, err)
	if err != nil {
		unverified.releaseRoom()
		s.delay.waitUniformly(r, length, at, arrived)
		return s.answerUnsignedTest(w, req, at, err)
	}
	meant, err := s.claimOnce(r, who, at)
	if err != nil {
		return err
	}
	unverified.copyToHeap()
	req.observed = s.config.Observed[who.Caller] // from here on, a refusal is only reported
	seen := s.wasSeen(meant, who.Caller)
	if err := s.limits.limitDelivery(w, r, who, seen); err != nil {
		return err
	}
	if meant = removeForbidden(meant, who.Caller); len(meant) == 0 {
		return forbidden(who.Caller, "start this hook")
	}
	if who.Handshake != nil {
		return s.answerHandshake(w, req, at, meant, who.Handshake)
	}
	noteUnpaid(meant, seen)
	d := &verified{s, who, unverified}
	if len(at.hooks) > 1 {
		return d.startEach(w, r, req, meant)
	}
	return d.startMeant(w, r, req, meant[0])
}

// verified is a delivery of a known caller.
type verified struct {
	*service

	who  *auth.Identity
	body *unverified
}

// startMeant has the steps of a delivery to one hook, after its caller is known to have the right to start it.
func (v *verified) startMeant(w http.ResponseWriter, r *http.Request, req *request, one candidate) error {
	h := one.hook
	in, err := openDelivery(r, v.body.bytes, v.who, h)
	if err != nil {
		return err
	}
	if isIgnored, err := v.checkConditions(w, req, one, in); isIgnored || err != nil {
		return err
	}
	values, err := bindParameters(in, h)
	if err != nil {
		return err
	}
	req.params = audit.Digest(values)
	if one.unpaid {
		if err := v.limits.limitCaller(w, v.who); err != nil {
			return err
		}
	}
	d := runner.Delivery{
		Hook: h, Caller: v.who.Caller, Values: values, Claim: one.claim, Repeated: one.repeated, Body: in.Body,
		Trace: validTraceparent(r.Header),
	}
	if req.observed {
		return v.answerObserved(w, r, req, d)
	}
	return v.startRun(w, r, req, d)
}

// startRun starts a run, queues it or refuses it, and answers.
func (v *verified) startRun(w http.ResponseWriter, r *http.Request, req *request, d runner.Delivery) error {
	started, err := v.runner.Start(r.Context(), d)
	v.body.releaseRoom() // the answer may wait for minutes
	wait := waitForHook(r, d.Hook)
	if err != nil {
		return v.answers.answerNotStarted(w, r, req, wait, err)
	}
	v.proved.noteAccepted(r, v.who, v.now())
	return v.answers.answerStarted(w, r, req, started, wait)
}

// judgeDelivery authenticates a delivery once its body is complete, which may have taken minutes. It uses the
// configuration that is in force then, and returns the service and endpoint of that configuration with the caller. A
// caller or key that was removed in the meantime starts nothing. It repeats the check if another configuration came
// into force while it waited for the key of a token.
func (s *service) judgeDelivery(w http.ResponseWriter, r *http.Request, req *request, body []byte) (
	*service, *endpoint, *auth.Identity, error,
) {
	for {
		at, ok := s.endpoints[r.URL.Path]
		if !ok {
			return s, nil, nil, notFound()
		}
		if len(body) > int(at.body.Max) {
			return s, at, nil, refuseTooLarge(w, at.body)
		}
		who, err := s.credentials.authenticate(r, req, body, at)
		if latest := s.latest(); latest != s && err == nil {
			s = latest
			continue
		}
		return s, at, who, err
	}
}

// claimOnce returns the hooks of an endpoint with the claim of the delivery to each, and the result of an earlier
// delivery with the same claim. It refuses a token that was used before for something else than any of these hooks with
// this body.
func (s *service) claimOnce(r *http.Request, who *auth.Identity, at *endpoint) ([]candidate, error) {
	all, reused := make([]candidate, len(at.hooks)), 0
	for i, h := range at.hooks {
		claim := claimDelivery(who, h)
		all[i] = candidate{hook: h, claim: claim, repeated: s.runner.FindRepeated(r.Context(), h.Name, claim)}
		if errors.Is(all[i].repeated, runner.ErrReused) {
			reused++
		}
	}
	if reused == len(all) {
		return nil, s.limits.refuseUsed(r, all[0].repeated)
	}
	return all, nil
}

func forbidden(caller, what string) error {
	return &refusal{
		status: http.StatusForbidden, kind: "forbidden", reason: "caller " + caller + " may not " + what,
		detail: "Valid credential, but this caller is not allowed to " + what + ".",
	}
}

// openDelivery decodes the query, and the body if the hook reads it.
func openDelivery(r *http.Request, body []byte, who *auth.Identity, h *hook.Hook) (hook.Input, error) {
	if len(body) > int(h.Body.Max) { // the path accepts as much as the hook with the largest bound
		return hook.Input{}, tooLarge(h.Body)
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return hook.Input{}, malformed("The query is malformed.")
	}
	in, err := h.Open(hook.Input{
		Body: body, Query: query, Header: textproto.MIMEHeader(r.Header), Claims: who.Claims, Event: who.Event,
		EventUnreadable: who.EventUnreadable, PayloadForm: who.PayloadForm,
	})
	if errors.Is(err, hook.ErrBody) {
		return in, malformed(err.Error())
	}
	return in, err
}

// bindParameters takes the parameters from the delivery, or returns all problems with them.
func bindParameters(in hook.Input, h *hook.Hook) (hook.Values, error) {
	values, problems, err := h.Bind(in)
	switch {
	case err != nil:
		return nil, err
	case len(problems) > 0:
		return nil, refuseParameters(&runner.NotAllowed{Problems: problems})
	}
	return values, nil
}

func refuseParameters(e *runner.NotAllowed) error {
	return &refusal{
		status: http.StatusUnprocessableEntity, kind: "parameters", problems: e.Problems,
		detail: "Some parameters are missing or not allowed by this hook.", reason: e.Error(),
	}
}

// claimDelivery returns the claim of a delivery to its hook. A signature may start one run of each hook that its
// sender set up with the same secret. A token for one use may be used once for all hooks, so its claim covers the
// name of the hook together with the body. Either is part of the key of a token that each request may use once.
func claimDelivery(who *auth.Identity, h *hook.Hook) runner.Claim {
	if who.Replay == "" {
		return runner.Claim{}
	}
	if !who.OneBody && !who.EachRequest {
		c := claimNames(who, "")
		c.UntilSuccess = who.UntilSuccess
		return c
	}
	body := sha256.Sum256(append(who.BodyDigest[:], h.Name...))
	// Both kinds have this key, so that a request stays known if the file changes from one to the other.
	request := digestParts(who.Kind, who.Replay, "request", string(body[:]))
	c := runner.Claim{Key: request, Until: who.Until, Body: body, UntilSuccess: who.UntilSuccess}
	if who.OneBody {
		c.Key, c.Also, c.OneBody = digestParts(who.Kind, who.Replay), []string{request}, true
	}
	return c
}

// claimNames returns a claim with each name that a delivery has, for one purpose.
func claimNames(who *auth.Identity, purpose string) runner.Claim {
	c := runner.Claim{
		Key: digestParts(who.Kind, who.Replay, purpose), Until: who.Until, Body: who.BodyDigest, Named: who.Named,
	}
	for _, name := range who.Aliases {
		c.Also = append(c.Also, digestParts(who.Kind, name, purpose))
	}
	return c
}

func digestParts(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return string(sum[:])
}
