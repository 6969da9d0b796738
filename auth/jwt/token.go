// Package jwt reads and verifies the signed tokens (RFC 7519) of callers, by the rules of RFC 8725.
//
// [Parse] decodes a token strictly. [Token.Verify] and [Token.VerifyIssued] verify its signature by the one
// algorithm of the key; the token never chooses it. [CheckAudience], [CheckClaims] and [Times] check its claims.
// [Preset] has issuers that sign for many, and the claims that identify one of their projects. The package
// reads no clock and opens no connection; package keyset fetches the keys that issuers publish.
package jwt

import (
	"cmp"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth/field"
	"sallyport/auth/jwt/keyset"
	"sallyport/internal/strictjson"
)

// Token is a JWT that is well formed. It is not yet verified.
type Token struct {
	Signed     string // header and payload as they were signed
	Alg, KeyID string // KeyID is empty without a kid
	Claims     map[string]any

	raw string
}

// Parse decodes the header and the payload of a token strictly, so that no two readers can disagree about
// them, and refuses a header that requires more than a signature (RFC 8725 3.2, 3.10, 3.11).
func Parse(raw string) (*Token, error) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, errors.New("does not have three parts")
	}
	header, err := decodeSegment(parts[0])
	if err != nil {
		return nil, errors.New("has a header that is not a JSON object in strict base64url")
	}
	claims, err := decodeSegment(parts[1])
	if err != nil {
		return nil, errors.New("has a payload that is not a JSON object in strict base64url")
	}
	if !isStrictBase64URL(parts[2]) {
		return nil, errors.New("has a signature that is not base64url")
	}
	for _, name := range []string{"crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "cty", "enc"} {
		if _, there := header[name]; there {
			return nil, errors.New("has " + name + " in its header, which is never accepted")
		}
	}
	if typ, there := header["typ"]; there && !isTokenType(typ) {
		return nil, errors.New("has a typ other than JWT and at+jwt")
	}
	t := &Token{raw: raw, Signed: parts[0] + "." + parts[1], Claims: claims}
	var ok bool
	if t.Alg, ok = header["alg"].(string); !ok {
		return nil, errors.New("has no alg in its header, or one that is not a string")
	}
	if kid, there := header["kid"]; there {
		if t.KeyID, ok = kid.(string); !ok || !field.IsShort(t.KeyID) {
			return nil, errors.New("has a kid that is not a short string")
		}
	}
	return t, nil
}

func decodeSegment(text string) (map[string]any, error) {
	if !isStrictBase64URL(text) {
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

// isStrictBase64URL refuses padding, and the line breaks that the decoder skips.
func isStrictBase64URL(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	})
}

// isTokenType reports whether typ is JWT or at+jwt (RFC 7519 5.1, RFC 9068 2.1).
func isTokenType(typ any) bool {
	s, _ := typ.(string)
	s = strings.TrimPrefix(strings.ToLower(s), "application/")
	return s == "jwt" || s == "at+jwt"
}

// Verify returns an error if the signature of the token does not verify with the key, by this algorithm.
func (t *Token) Verify(alg string, key any) error {
	return t.verifyWith(alg, func(*jwt.Token) (any, error) { return key, nil })
}

// VerifyIssued is Verify with the key of the token's issuer, found by its kid. The error wraps
// [keyset.ErrNoKey] if the issuer may have published the key since.
func (t *Token) VerifyIssued(keys *keyset.Set, alg string, now time.Time) error {
	return t.verifyWith(alg, keys.Keyfunc(now))
}

func (t *Token) verifyWith(alg string, find jwt.Keyfunc) error {
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{alg}), jwt.WithStrictDecoding(), jwt.WithJSONNumber(),
		jwt.WithoutClaimsValidation())
	var missing error
	_, err := parser.Parse(t.raw, func(t *jwt.Token) (any, error) {
		var key any
		key, missing = find(t)
		return key, missing
	})
	return cmp.Or(missing, err)
}
