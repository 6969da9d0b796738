package auth

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth/field"
	"sallyport/auth/keyset"
	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
)

const (
	maxLeeway   = 5 * time.Minute
	maxLifetime = 24 * time.Hour // from iat to exp; what lives longer is a password
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
	alg   string
	key   any      // []byte or a public key
	print [32]byte // of key and algorithm, to verify once what several callers share
}

func compileJWT(spec *JWTSpec, src Sources, p *diag.List) *jwtRule {
	spec.fill(p)
	j := &jwtRule{issuer: spec.Issuer, audience: spec.Audience, maxAge: spec.MaxAge, leeway: spec.Leeway}
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
	if j.maxAge < 0 || j.maxAge > maxLifetime {
		p.At("max_age").Errorf("is not between 0 and %s", maxLifetime)
	}
	if j.leeway < 0 || j.leeway > maxLeeway {
		p.At("leeway").Errorf("is not between 0 and %s", maxLeeway)
	}
	j.claims = compileClaims(spec.Claims, p.At("claims"))
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

// token is a JWT that is well formed, and not yet verified.
type token struct {
	raw      string
	signed   string // header and payload as they were signed
	alg, kid string
	claims   map[string]any
}

// byJWT takes a bearer value with exactly two dots for a JWT.
func (c *Callers) byJWT(d *Delivery, hook []string) (*Identity, error) {
	raw, ok := field.CutPrefix(d.Header.Get("Authorization"), "Bearer ")
	if !ok || strings.Count(raw, ".") != 2 || !slices.ContainsFunc(c.all, func(one *caller) bool { return one.jwt != nil }) {
		return nil, errAbsent
	}
	t, err := openToken(raw)
	if err != nil {
		return nil, refuse(Malformed, "jwt", "the token %v", err)
	}
	refusal := refuse(Wrong, "jwt", "the token is of an issuer that no caller has")
	verified := map[any]error{}
	for one := range c.candidates(hook) {
		if one.jwt == nil || t.claims["iss"] != one.jwt.issuer {
			continue
		}
		id, r := one.presents(t, d, verified)
		if r == nil {
			return id, nil
		}
		if refusal.Caller == "" { // the first caller whose key verified tells most
			r.keys = cmp.Or(r.keys, refusal.keys)
			refusal = r
		}
	}
	return nil, withWork(refusal, cost{checks: len(verified)}.bytes(0))
}

// openToken decodes header and payload, each in the one way that leaves no room
// for two readers to disagree, and refuses a header that asks for anything more
// than a signature (RFC 8725 3.2, 3.10, 3.11).
func openToken(raw string) (*token, error) {
	parts := strings.Split(raw, ".")
	header, err := openSegment(parts[0])
	if err != nil {
		return nil, errors.New("has a header that is no JSON object in strict base64url")
	}
	claims, err := openSegment(parts[1])
	if err != nil {
		return nil, errors.New("has a payload that is no JSON object in strict base64url")
	}
	if !isBase64URL(parts[2]) {
		return nil, errors.New("has a signature that is not base64url")
	}
	for _, name := range []string{"crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "cty", "enc"} {
		if _, there := header[name]; there {
			return nil, errors.New("has " + name + " in its header, which is never accepted")
		}
	}
	if typ, there := header["typ"]; there && !goodType(typ) {
		return nil, errors.New("has a typ other than JWT and at+jwt")
	}
	t := &token{raw: raw, signed: parts[0] + "." + parts[1], claims: claims}
	var ok bool
	if t.alg, ok = header["alg"].(string); !ok {
		return nil, errors.New("has no alg in its header, or not as a string")
	}
	if kid, there := header["kid"]; there {
		if t.kid, ok = kid.(string); !ok || !field.IsShort(t.kid) {
			return nil, errors.New("has a kid that is not a short string")
		}
	}
	return t, nil
}

func openSegment(text string) (map[string]any, error) {
	if !isBase64URL(text) {
		return nil, errors.New("not base64url")
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, err
	}
	v, err := strictjson.Decode(data)
	if err != nil {
		return nil, err
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("not an object")
	}
	return object, nil
}

// isBase64URL keeps out padding and the line breaks that the decoder skips.
func isBase64URL(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	})
}

func goodType(typ any) bool {
	s, _ := typ.(string)
	s = strings.TrimPrefix(strings.ToLower(s), "application/")
	return s == "jwt" || s == "at+jwt"
}

// presents judges the token by the caller's keys, then by its rules.
func (c *caller) presents(t *token, d *Delivery, verified map[any]error) (*Identity, *Refusal) {
	k, r := c.jwt.find(t, d.Now, verified)
	if r != nil {
		return nil, r
	}
	r = &Refusal{Reason: Wrong, Scheme: "jwt", Caller: c.name, Key: k.id}
	if r.Detail = k.outside(d.Now); r.Detail != "" {
		return nil, r
	}
	exp, reason, detail := c.jwt.times(t.claims, d.Now)
	if reason != "" {
		r.Reason, r.Detail = reason, detail
		return nil, r
	}
	if r.Detail = c.jwt.judge(t.claims); r.Detail != "" {
		return nil, r
	}
	id := &Identity{Caller: c.name, Scheme: "jwt", Key: k.id, BodyDigest: sha256.Sum256(d.Body), Claims: t.claims}
	if event, ok := t.claims["event_name"].(string); ok && field.IsPrintable(event) {
		id.Event = event
	}
	if !c.replayCheck("jwt") {
		return id, nil
	}
	// Not of the caller: a token that two callers' rules fit is still good once.
	id.Replay = digest("jwt signed", t.signed)
	if jti, there := t.claims["jti"]; there {
		s, ok := jti.(string)
		if !ok || s == "" {
			r.Reason, r.Detail = Malformed, "the claim jti is not a string, or empty"
			return nil, r
		}
		id.Replay = digest("jwt id", c.jwt.issuer, s)
	}
	id.OneBody, id.Until = true, exp.Add(maxLeeway) // of the file, which may change
	return id, nil
}

// find returns the key that verifies the token. A kid picks among the keys that
// have a name; what has none is tried whenever the algorithm is its own.
func (j *jwtRule) find(t *token, now time.Time, verified map[any]error) (*keyInfo, *Refusal) {
	detail := "no key of the caller has the token's alg and kid"
	for i := range j.keys {
		k := &j.keys[i]
		if k.alg != t.alg || t.kid != "" && k.named && k.id != t.kid {
			continue
		}
		err, done := verified[k.print]
		if !done {
			err = verify(t.raw, k.alg, func(*jwt.Token) (any, error) { return k.key, nil })
			verified[k.print] = err
		}
		if err == nil {
			return &k.keyInfo, nil
		}
		detail = "the token's signature verifies with no key of the caller"
	}
	if j.remote != nil {
		return j.findRemote(t, now, verified)
	}
	return nil, refuse(Wrong, "jwt", "%s", detail)
}

// findRemote is find among the keys of the issuer, which are found by kid alone:
// to try them all would be work that anybody can ask for.
func (j *jwtRule) findRemote(t *token, now time.Time, verified map[any]error) (*keyInfo, *Refusal) {
	if !slices.Contains(j.algorithms, t.alg) {
		return nil, refuse(Wrong, "jwt", "the token's alg is none of the caller's")
	}
	err, done := verified[j.remote]
	if !done {
		err = verify(t.raw, t.alg, j.remote.Keyfunc(now))
		verified[j.remote] = err
	}
	if err == nil {
		return &keyInfo{id: t.kid, named: true}, nil
	}
	r := refuse(Wrong, "jwt", "%v", err)
	if errors.Is(err, keyset.ErrNoKey) {
		r.keys = j.remote
	}
	return nil, r
}

// verify returns nil if the token's signature verifies, and what key says if it
// has none for the token.
func verify(raw, alg string, key jwt.Keyfunc) error {
	parser := jwt.NewParser(jwt.WithValidMethods([]string{alg}), jwt.WithStrictDecoding(), jwt.WithJSONNumber(), jwt.WithoutClaimsValidation())
	var missing error
	_, err := parser.Parse(raw, func(t *jwt.Token) (any, error) {
		var k any
		k, missing = key(t)
		return k, missing
	})
	return cmp.Or(missing, err)
}
