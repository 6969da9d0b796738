package auth

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sallyport/auth/field"
	"sallyport/auth/jwt"
	"sallyport/auth/jwt/keyset"
	"sallyport/internal/diag"
)

// jwtRule is what a caller requires of its tokens.
type jwtRule struct {
	issuer, audience string
	claims           map[string]any
	maxAge, leeway   time.Duration
	eachRequest      bool // of the preset: one token serves several requests
	keys             []jwtKey

	remote     *keyset.Set // the keys of the issuer; nil if the file has the keys
	algorithms []string    // of remote
}

// jwtKey is a key with the one algorithm that it is for (RFC 8725 3.1).
type jwtKey struct {
	keyInfo
	alg         string
	key         any      // []byte or a public key
	fingerprint [32]byte // of key and algorithm: a key that several callers share is tried once
}

func compileJWT(spec *JWTSpec, src Sources, p *diag.List) *jwtRule {
	spec.applyPreset(p)
	j := &jwtRule{
		issuer: spec.Issuer, audience: spec.Audience, claims: spec.Claims, maxAge: spec.MaxAge, leeway: spec.Leeway,
	}
	if j.issuer == "" && spec.Preset == "" {
		p.At("issuer").Errorf("is missing")
	}
	if j.audience == "" {
		p.At("audience").Errorf("is missing: without it, a token for another service would be accepted")
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
	if of, ok := jwt.Preset(spec.Preset); ok {
		j.eachRequest = of.EachRequest
	}
	jwt.CheckRules(spec.Claims, p.At("claims"))
	j.keys = compileJWTKeys(spec, src, p)
	j.remote = compileIssuer(spec, src, p)
	j.algorithms = slices.DeleteFunc(keyset.Algorithms(), func(alg string) bool {
		return len(spec.Algorithms) > 0 && !slices.Contains(spec.Algorithms, alg)
	})
	if j.remote != nil && len(j.algorithms) == 0 {
		p.At("algorithms").Errorf("lists no algorithm that issuer keys support: %s",
			strings.Join(keyset.Algorithms(), ", "))
	}
	isPublic := func(k jwtKey) bool { return !strings.HasPrefix(k.alg, "HS") }
	shared := j.remote != nil || slices.ContainsFunc(j.keys, isPublic)
	if shared && len(spec.Claims) == 0 && spec.Preset == "" {
		p.Warnf("has no claims: any token of this issuer for this audience is accepted as this caller")
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
		p.At("preset").Errorf("unknown preset %q; known are %s", spec.Preset, strings.Join(jwt.Presets(), ", "))
		return
	}
	if spec.Issuer == "" && of.Address == "" {
		p.At("issuer").Errorf("is required for %s: write %s", spec.Preset, of.Find)
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

// authenticateJWT treats a bearer value with exactly two dots as a JWT.
func (a *attempt) authenticateJWT() (*Identity, error) {
	raw, ok := field.CutPrefix(a.delivery.Header.Get("Authorization"), "Bearer ")
	hasJWT := func(one *caller) bool { return one.jwt != nil }
	if !ok || strings.Count(raw, ".") != 2 || !slices.ContainsFunc(a.callers.all, hasJWT) {
		return nil, errAbsent
	}
	t, err := jwt.Parse(raw)
	if err != nil {
		return nil, newRefusal(Malformed, "jwt", "the token %v", err)
	}
	refusal := newRefusal(Wrong, "jwt", "no caller accepts issuer %.80q", fmt.Sprint(t.Claims["iss"]))
	verified := map[any]error{}
	for one := range a.callers.candidates(a.hook) {
		if one.jwt == nil || t.Claims["iss"] != one.jwt.issuer {
			continue
		}
		id, r := one.identifyByJWT(t, a.delivery, verified)
		a.spent = cost{checks: len(verified)}.bytesHashed(0)
		if r == nil {
			return id, nil
		}
		if refusal.Caller == "" { // the first refusal after a verified key is the most useful
			r.keys = cmp.Or(r.keys, refusal.keys)
			refusal = r
		}
	}
	return nil, refusal
}

// identifyByJWT verifies the token with the caller's keys, then checks the caller's rules.
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
	} else if t.Claims["event_name"] != nil {
		id.EventUnreadable = true
	}
	if !c.recognizesReplays(id) {
		return id, nil
	}
	// Without the caller's name: a token that two callers accept is still accepted once.
	id.Replay = digestParts("jwt signed", t.Signed)
	if jti, there := t.Claims["jti"]; there {
		s, ok := jti.(string)
		if !ok || s == "" {
			r.Reason, r.Detail = Malformed, "the claim jti is not a string, or is empty"
			return nil, r
		}
		id.Replay = digestParts("jwt id", c.jwt.issuer, s)
	}
	id.EachRequest = c.replayRule("jwt") == replayRequest
	id.OneBody = !id.EachRequest
	id.Until = expires.Add(jwt.MaxLeeway) // the most that the file can set, now or after a reload
	return id, nil
}

// checkClaims returns when a verified token expires, or why its claims are refused.
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

// findKey returns the key that verifies the token. A kid selects among the keys that have an id; a key
// without an id is tried for every token with its algorithm.
func (j *jwtRule) findKey(t *jwt.Token, now time.Time, verified map[any]error) (*keyInfo, *Refusal) {
	detail := "no key of the caller has the alg and kid of the token"
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
		detail = "the signature of the token does not verify with any key of the caller"
	}
	if j.remote != nil {
		return j.findIssuerKey(t, now, verified)
	}
	return nil, newRefusal(Wrong, "jwt", "%s", detail)
}

// findIssuerKey is findKey among the keys of the issuer. They are found by kid alone: trying all of them would
// let a forged token cause many verifications.
func (j *jwtRule) findIssuerKey(t *jwt.Token, now time.Time, verified map[any]error) (*keyInfo, *Refusal) {
	if !slices.Contains(j.algorithms, t.Alg) {
		return nil, newRefusal(Wrong, "jwt", "the alg of the token is not one that the caller accepts")
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
