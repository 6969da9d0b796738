package handlers

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"net/textproto"
	"net/url"
	"regexp"
	"strings"

	"sallyport/auth"
	"sallyport/internal/audit"
	"sallyport/internal/keyuse"
	"sallyport/internal/netid"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// hook is the way of a delivery. Every step is a line here, in the order that
// keeps what is cheap before what is dear and what is secret after what is
// proved, so that a missing line shows.
func (s *surface) hook(w http.ResponseWriter, r *http.Request, req *request) error {
	h, ok := s.hooks[r.URL.Path]
	if !ok {
		return notFound()
	}
	req.hook = h.Name
	if r.Method != http.MethodPost {
		return notAllowed(methods{http.MethodPost: nil})
	}
	if err := s.checkOrigin(r); err != nil {
		return err
	}
	unverified, err := s.readBody(w, r, h.Body)
	if err != nil {
		return err
	}
	defer unverified.release()
	arrived, length := s.now(), len(unverified.bytes)
	s, h, who, err := s.latest().judge(w, r, req, unverified.bytes)
	claim, repeated, err := s.claimOnce(r, who, h, err)
	if err != nil {
		unverified.release()
		s.evenly(r, length, h, arrived)
		return err
	}
	body := unverified.keep()
	req.observed = s.config.Observed[who.Caller] // from here on, a refusal is only told
	if err := s.limitDelivery(w, r, who, repeated); err != nil {
		return err
	}
	if !h.Unauthenticated && !h.May(who.Caller, hook.MayStart) {
		return forbidden(who.Caller, "start this hook")
	}
	values, err := bind(r, body, who, h)
	if err != nil {
		return err
	}
	req.params = audit.Digest(values)
	d := runner.Delivery{
		Hook: h, Caller: who.Caller, Values: values, Claim: claim, Repeated: repeated, Body: body, Trace: traceparent(r.Header),
	}
	if req.observed {
		return s.rehearse(w, r, req, d)
	}
	started, err := s.runner.Start(r.Context(), d)
	unverified.release() // what follows may wait for minutes
	wait := preferWait(r.Header)
	if err != nil {
		return s.notStarted(w, r, req, wait, err)
	}
	s.noteAccepted(r, who)
	return s.answerStarted(w, r, req, started, wait)
}

// judge authenticates a delivery by the configuration in force now that its body is there, which
// may have taken minutes, and returns that configuration's surface and hook with the caller. A
// caller or key that was removed in the meantime starts nothing. It judges again if another
// configuration came into force while it waited for the key of a token.
func (s *surface) judge(w http.ResponseWriter, r *http.Request, req *request, body []byte) (*surface, *hook.Hook, *auth.Identity, error) {
	for {
		h, ok := s.hooks[r.URL.Path]
		if !ok {
			return s, nil, nil, notFound()
		}
		if len(body) > int(h.Body.Max) {
			return s, h, nil, tooLarge(w, h.Body)
		}
		who, err := s.authenticate(r, req, body, h)
		if latest := s.latest(); latest != s && err == nil {
			s = latest
			continue
		}
		return s, h, who, err
	}
}

// authenticate tells who sends. A failure costs the address a token of a
// limiter of its own, so that a flood of them never spends a caller's budget.
func (s *surface) authenticate(r *http.Request, req *request, body []byte, h *hook.Hook) (*auth.Identity, error) {
	var callers []string
	if h != nil {
		if h.Unauthenticated {
			return &auth.Identity{}, nil
		}
		callers = h.Callers
	}
	d := &auth.Delivery{Method: r.Method, Authority: r.Host, URL: r.URL, Header: r.Header, Body: body, TLS: r.TLS, Now: s.now()}
	who, err := s.config.Auth.Authenticate(d, callers)
	if auth.AwaitKey(r.Context(), err, netid.Site(remote(r))) { // the key that was missing may be there now
		d.Now = s.now()
		who, err = s.config.Auth.Authenticate(d, callers)
	}
	if err == nil {
		req.caller, req.scheme, req.key = who.Caller, who.Kind, who.Key
		netid.ConnectionOf(r).Prove()
		s.config.Uses.Note(keyuse.Use{Caller: who.Caller, Scheme: who.Kind, Key: who.Key, At: s.now()})
		return who, nil
	}
	req.resembles = s.resembling(d, callers)
	_ = errors.As(err, &req.refused)
	return nil, s.refuseCredential(r, err)
}

// claimOnce returns the claim of a delivery and what became of it before, or why its credential is
// refused: as it was judged, or because a token was used with another body, which is refused as a
// forged one is.
func (s *surface) claimOnce(r *http.Request, who *auth.Identity, h *hook.Hook, judged error) (claim runner.Claim, repeated, refused error) {
	if judged != nil {
		return claim, nil, judged
	}
	claim = claimDelivery(who, h)
	repeated = s.runner.FindRepeated(r.Context(), h.Name, claim)
	if errors.Is(repeated, runner.ErrReused) {
		refused = s.refuseCredential(r, repeated)
	}
	return claim, repeated, refused
}

// refuseCredential spends a token of the address's failures and returns 401, or 429 when there is
// none left.
func (s *surface) refuseCredential(r *http.Request, why error) error {
	if e := s.failures.take(address(r), "failures", s.now()); e != nil {
		e.cause = why
		return e
	}
	return unauthorized(why.Error())
}

// limitDelivery spends a token of the caller, or of the failures of the address for a delivery
// that was accepted before: anyone who has seen it can send it, and must not use up the budget of
// the caller.
func (s *surface) limitDelivery(w http.ResponseWriter, r *http.Request, who *auth.Identity, repeated error) error {
	var first *runner.Replayed
	if errors.As(repeated, &first) || errors.Is(repeated, runner.ErrOtherBody) {
		if e := s.failures.take(address(r), "replays", s.now()); e != nil {
			return e
		}
		return nil
	}
	return s.limitCaller(w, who)
}

// limitCaller spends a token of the caller and tells it what is left.
func (s *surface) limitCaller(w http.ResponseWriter, who *auth.Identity) error {
	l, ok := s.callers[who.Caller]
	if !ok {
		return nil // an unauthenticated hook: the address limit was all there is
	}
	now := s.now()
	if e := take(l, "caller", now); e != nil {
		return e
	}
	w.Header().Set("Ratelimit", rateLimit(l, "caller", now))
	w.Header().Set("Ratelimit-Policy", rateLimitPolicy(l, "caller"))
	return nil
}

func forbidden(caller, what string) error {
	return &refusal{
		status: http.StatusForbidden, kind: "forbidden", reason: "caller " + caller + " may not " + what,
		detail: "The credential is valid, and this caller may not " + what + ".",
	}
}

// bind takes the parameters from the delivery, or says everything that is
// wrong with them.
func bind(r *http.Request, body []byte, who *auth.Identity, h *hook.Hook) (hook.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, malformed("The query is malformed.")
	}
	values, problems, err := h.Bind(hook.Input{
		Body: body, Query: query, Header: textproto.MIMEHeader(r.Header), Claims: who.Claims,
	})
	switch {
	case errors.Is(err, hook.ErrBody):
		return nil, malformed(err.Error())
	case err != nil:
		return nil, err
	case len(problems) > 0:
		return nil, notAllowedValues(&runner.NotAllowed{Problems: problems})
	}
	return values, nil
}

func notAllowedValues(e *runner.NotAllowed) error {
	return &refusal{
		status: http.StatusUnprocessableEntity, kind: "parameters", problems: e.Problems,
		detail: "The parameters are not what this hook allows.", reason: e.Error(),
	}
}

// claimDelivery ties a delivery to its hook. A signature may stand for one run of each
// hook that its sender set up with the same secret; a token that may be used once is used
// once in all, so where it goes counts as part of what it came with.
func claimDelivery(who *auth.Identity, h *hook.Hook) runner.Claim {
	if who.Replay == "" {
		return runner.Claim{}
	}
	if who.OneBody {
		return runner.Claim{
			Key: digest(who.Kind, who.Replay), Until: who.Until, OneBody: true,
			Body: sha256.Sum256(append(who.BodyDigest[:], h.Name...)),
		}
	}
	return claimNames(who, "")
}

// claimNames is a claim by each name that a delivery has, for one purpose.
func claimNames(who *auth.Identity, purpose string) runner.Claim {
	c := runner.Claim{Key: digest(who.Kind, who.Replay, purpose), Until: who.Until, Body: who.BodyDigest, Named: who.Named}
	for _, name := range who.Aliases {
		c.Also = append(c.Also, digest(who.Kind, name, purpose))
	}
	return c
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return string(sum[:])
}

// traceparentForm is version 00 of W3C Trace Context, 3.2, but for ids of zeros,
// which the standard does not allow either. What does not fit is not passed on.
var traceparentForm = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)

func traceparent(h http.Header) string {
	v := h.Values("Traceparent")
	if len(v) != 1 {
		return ""
	}
	ids := traceparentForm.FindStringSubmatch(v[0])
	if ids == nil || strings.Trim(ids[1], "0") == "" || strings.Trim(ids[2], "0") == "" {
		return ""
	}
	return v[0]
}

const replayed = "replayed"

// forgotten is a first run that is not kept any more: what recognises its delivery
// is kept for longer.
type forgotten struct {
	ID        string `json:"id"`
	Hook      string `json:"hook"`
	Forgotten bool   `json:"forgotten"` // true
}

// notStarted is the table of why a verified delivery starts nothing.
func (s *surface) notStarted(w http.ResponseWriter, r *http.Request, req *request, wait int, err error) error {
	var first *runner.Replayed
	var busy *runner.Busy
	var failed *runner.NotStarted
	var values *runner.NotAllowed
	switch {
	case errors.As(err, &first):
		req.reason = replayed
		w.Header().Set("Idempotent-Replayed", "true")
		if first.Run.State == "" {
			req.run = first.Run.ID
			writeJSON(w, http.StatusOK, "application/json", forgotten{first.Run.ID, first.Run.Hook, true})
			return nil
		}
		return s.answerRun(w, r, req, first.Run, wait)
	case errors.As(err, &busy):
		return &refusal{
			status: http.StatusServiceUnavailable, kind: "busy", run: &busy.Run,
			detail: "A run is in flight, and no more may wait. Retry-After is when it should be over.",
			header: http.Header{"Retry-After": {seconds(busy.RetryAfter)}},
		}
	case errors.Is(err, runner.ErrNotNow):
		return notNow(err)
	case errors.Is(err, runner.ErrUncertain):
		return &refusal{
			status: http.StatusInternalServerError, kind: "uncertain", cause: err,
			detail: "The server cannot tell whether it recorded this delivery. If it did, the run starts when the server is started again.",
		}
	case errors.Is(err, runner.ErrUnavailable), errors.Is(err, runner.ErrFull):
		return unavailable(err)
	case errors.Is(err, runner.ErrFlight): // something got away from its run, and lives
		return &refusal{
			status: http.StatusServiceUnavailable, kind: "busy", cause: err,
			detail: "A command of this flight is still running.", header: http.Header{"Retry-After": {"10"}},
		}
	case errors.As(err, &failed):
		return &refusal{
			status: http.StatusInternalServerError, kind: "not-started", run: &failed.Run, cause: failed.Reason,
			detail: "The command could not be started. The operator finds the reason under the request id.",
		}
	case errors.As(err, &values):
		return notAllowedValues(values)
	case errors.Is(err, runner.ErrReused):
		return unauthorized(err.Error())
	case errors.Is(err, runner.ErrOtherBody):
		return &refusal{
			status: http.StatusUnprocessableEntity, kind: "other-body", cause: err,
			detail: "An earlier delivery came under the same id, nonce or Idempotency-Key with another body. Nothing was started.",
		}
	case errors.Is(err, runner.ErrDraining):
		return draining()
	case errors.Is(err, runner.ErrNoInput):
		return &refusal{
			status: http.StatusUnprocessableEntity, kind: "no-body",
			detail: "The command reads the body of its delivery, which is not kept once the run has ended. Send the delivery again.",
		}
	}
	return err
}

func unavailable(cause error) error {
	return &refusal{
		status: http.StatusServiceUnavailable, kind: "unavailable", cause: cause,
		detail: "The server cannot record a run now, so it starts none.", header: http.Header{"Retry-After": {"30"}},
	}
}

func notNow(cause error) error {
	return &refusal{
		status: http.StatusServiceUnavailable, kind: "unavailable", cause: cause,
		detail: "Commands cannot be started now.", header: http.Header{"Retry-After": {"10"}},
	}
}

func draining() error {
	return &refusal{
		status: http.StatusServiceUnavailable, kind: "draining",
		detail: "The server is going and takes no more deliveries.", header: http.Header{"Retry-After": {"10"}},
	}
}
