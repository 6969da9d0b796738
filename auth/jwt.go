package auth

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"time"

	"sallyport/auth/field"
	"sallyport/auth/jwt"
	"sallyport/auth/jwt/keyset"
	"sallyport/internal/diag"
)

// jwtRule is what a caller's tokens must be.
type jwtRule struct {
	issuer, audience string
	claims           map[string]any
	maxAge, leeway   time.Duration
	keys             []jwtKey

	remote     *keyset.Set // nil where the file has the keys
	algorithms []string    // of remote
}

// jwtKey is a key with the one algorithm it is for (RFC 8725 3.1).
type jwtKey struct {
	keyInfo
	alg         string
	key         any      // []byte or a public key
	fingerprint [32]byte // of key and algorithm, to verify once what several callers share
}

func compileJWT(spec *JWTSpec, src Sources, p *diag.List) *jwtRule {
	spec.applyPreset(p)
	j := &jwtRule{issuer: spec.Issuer, audience: spec.Audience, claims: spec.Claims, maxAge: spec.MaxAge, leeway: spec.Leeway}
	if j.issuer == "" && spec.Preset == "" {
		p.At("issuer").Errorf("is missing")
	}
	if j.audience == "" {
		p.At("audience").Errorf("is missing: without it, a token for somebody else would do here")
	}
	if j.maxAge == 0 {
		j.maxAge = 10 * time.Minute
	}
	if j.leeway == 0 {
		j.leeway = 30 * time.Second
	}
	if j.maxAge < 0 || j.maxAge > jwt.MaxLifetime {
		p.At("max_age").Errorf("is not between 0 and %s", jwt.MaxLifetime)
	}
	if j.leeway < 0 || j.leeway > jwt.MaxLeeway {
		p.At("leeway").Errorf("is not between 0 and %s", jwt.MaxLeeway)
	}
	jwt.CheckRules(spec.Claims, p.At("claims"))
	j.keys = compileJWTKeys(spec, src, p)
	j.remote = compileIssuer(spec, src, p)
	j.algorithms = slices.DeleteFunc(keyset.Algorithms(), func(alg string) bool {
		return len(spec.Algorithms) > 0 && !slices.Contains(spec.Algorithms, alg)
	})
	if j.remote != nil && len(j.algorithms) == 0 {
		p.At("algorithms").Errorf("holds none that a key of an issuer is for: %s", strings.Join(keyset.Algorithms(), ", "))
	}
	shared := j.remote != nil || slices.ContainsFunc(j.keys, func(k jwtKey) bool { return !strings.HasPrefix(k.alg, "HS") })
	if shared && len(spec.Claims) == 0 && spec.Preset == "" {
		p.Warnf("has no claims: whoever this issuer signs for, and can name this audience, is this caller")
	}
	return j
}

// applyPreset sets what the preset knows and the file leaves out, and checks that the claims identify the
// caller, also for a known issuer that the file names by its address alone.
func (spec *JWTSpec) applyPreset(p *diag.List) {
	if spec.Preset == "" {
		if of, ok := jwt.PresetAt(spec.Issuer); ok {
			of.CheckPins(spec.Claims, p.At("claims"))
		}
		return
	}
	of, ok := jwt.Preset(spec.Preset)
	if !ok {
		p.At("preset").Errorf("there is no preset %q; there are %s", spec.Preset, strings.Join(jwt.Presets(), ", "))
		return
	}
	if spec.Issuer == "" && of.Address == "" {
		p.At("issuer").Errorf("has to be written for %s: %s", spec.Preset, of.Find)
	}
	spec.Issuer = cmp.Or(spec.Issuer, of.Address)
	if spec.MaxAge == 0 {
		spec.MaxAge = of.MaxAge
	}
	if len(spec.Algorithms) == 0 {
		spec.Algorithms = of.Algorithms
	}
	for i, alg := range spec.Algorithms {
		if !slices.Contains(of.Algorithms, alg) {
			p.At("algorithms").Index(i).Errorf("%s signs with %s", spec.Preset, strings.Join(of.Algorithms, ", "))
		}
	}
	of.CheckPins(spec.Claims, p.At("claims"))
}

// authenticateJWT takes a bearer value with exactly two dots for a JWT.
func (c *Callers) authenticateJWT(d *Delivery, hook []string) (*Identity, error) {
	raw, ok := field.CutPrefix(d.Header.Get("Authorization"), "Bearer ")
	if !ok || strings.Count(raw, ".") != 2 || !slices.ContainsFunc(c.all, func(one *caller) bool { return one.jwt != nil }) {
		return nil, errAbsent
	}
	t, err := jwt.Parse(raw)
	if err != nil {
		return nil, newRefusal(Malformed, "jwt", "the token %v", err)
	}
	refusal := newRefusal(Wrong, "jwt", "the token is of an issuer that no caller has")
	verified := map[any]error{}
	for one := range c.candidates(hook) {
		if one.jwt == nil || t.Claims["iss"] != one.jwt.issuer {
			continue
		}
		id, r := one.identifyByJWT(t, d, verified)
		if r == nil {
			return id, nil
		}
		if refusal.Caller == "" { // the first caller whose key verified tells most
			r.keys = cmp.Or(r.keys, refusal.keys)
			refusal = r
		}
	}
	return nil, noteCost(refusal, cost{checks: len(verified)}.bytesHashed(0))
}

// identifyByJWT judges the token by the caller's keys, then by its rules.
func (c *caller) identifyByJWT(t *jwt.Token, d *Delivery, verified map[any]error) (*Identity, *Refusal) {
	k, r := c.jwt.findKey(t, d.Now, verified)
	if r != nil {
		return nil, r
	}
	r = &Refusal{Reason: Wrong, Kind: "jwt", Caller: c.name, Key: k.id}
	if r.Detail = k.checkDates(d.Now); r.Detail != "" {
		return nil, r
	}
	expires, reason, err := c.jwt.checkClaims(t.Claims, d.Now)
	if err != nil {
		r.Reason, r.Detail = reason, err.Error()
		return nil, r
	}
	id := &Identity{Caller: c.name, Kind: "jwt", Key: k.id, BodyDigest: sha256.Sum256(d.Body), Claims: t.Claims}
	if event, ok := t.Claims["event_name"].(string); ok && field.IsPrintable(event) {
		id.Event = event
	}
	if !c.checksReplay("jwt") {
		return id, nil
	}
	// Not of the caller: a token that two callers' rules fit is still good once.
	id.Replay = digestParts("jwt signed", t.Signed)
	if jti, there := t.Claims["jti"]; there {
		s, ok := jti.(string)
		if !ok || s == "" {
			r.Reason, r.Detail = Malformed, "the claim jti is not a string, or empty"
			return nil, r
		}
		id.Replay = digestParts("jwt id", c.jwt.issuer, s)
	}
	id.OneBody, id.Until = true, expires.Add(jwt.MaxLeeway) // of the file, which may change
	return id, nil
}

// checkClaims checks the claims of a verified token, and returns when it expires, or why it is refused.
func (j *jwtRule) checkClaims(claims map[string]any, now time.Time) (time.Time, Reason, error) {
	at, err := jwt.ReadTimes(claims)
	if err != nil {
		return at.Expires, Malformed, err
	}
	if err := at.CheckLifetime(); err != nil {
		return at.Expires, Wrong, err
	}
	if err := at.CheckNow(now, j.maxAge, j.leeway); err != nil {
		return at.Expires, Stale, err
	}
	if err := jwt.CheckAudience(claims, j.audience); err != nil {
		return at.Expires, Wrong, err
	}
	return at.Expires, Wrong, jwt.CheckClaims(j.claims, claims)
}

// findKey returns the key that verifies the token. A kid picks among the keys that
// have a name; what has none is tried whenever the algorithm is its own.
func (j *jwtRule) findKey(t *jwt.Token, now time.Time, verified map[any]error) (*keyInfo, *Refusal) {
	detail := "no key of the caller has the token's alg and kid"
	for i := range j.keys {
		k := &j.keys[i]
		if k.alg != t.Alg || t.KeyID != "" && k.named && k.id != t.KeyID {
			continue
		}
		err, done := verified[k.fingerprint]
		if !done {
			err = t.Verify(k.alg, k.key)
			verified[k.fingerprint] = err
		}
		if err == nil {
			return &k.keyInfo, nil
		}
		detail = "the token's signature verifies with no key of the caller"
	}
	if j.remote != nil {
		return j.findIssuerKey(t, now, verified)
	}
	return nil, newRefusal(Wrong, "jwt", "%s", detail)
}

// findIssuerKey is find among the keys of the issuer, which are found by kid alone:
// to try them all would be work that anybody can ask for.
func (j *jwtRule) findIssuerKey(t *jwt.Token, now time.Time, verified map[any]error) (*keyInfo, *Refusal) {
	if !slices.Contains(j.algorithms, t.Alg) {
		return nil, newRefusal(Wrong, "jwt", "the token's alg is none of the caller's")
	}
	err, done := verified[j.remote]
	if !done {
		err = t.VerifyIssued(j.remote, t.Alg, now)
		verified[j.remote] = err
	}
	if err == nil {
		return &keyInfo{id: t.KeyID, named: true}, nil
	}
	r := newRefusal(Wrong, "jwt", "%v", err)
	if errors.Is(err, keyset.ErrNoKey) {
		r.keys = j.remote
	}
	return nil, r
}
