package auth

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/auth/field"
	"sallyport/internal/diag"
)

// compileClaims checks that every rule can be decided: a string, a number, a
// boolean, or a mapping of such that goes down into an object.
func compileClaims(rules map[string]any, p *diag.List) map[string]any {
	for name, rule := range rules {
		switch v := rule.(type) {
		case string, bool, int, int64, uint64:
		case float64:
			if math.IsNaN(v) || math.IsInf(v, 0) {
				p.At(name).Errorf("is no number that JSON has")
			}
		case map[string]any:
			if len(v) == 0 {
				p.At(name).Errorf("is an empty mapping, which checks nothing")
			}
			compileClaims(v, p.At(name))
		default:
			p.At(name).Errorf("is not a string, a number, true, false or a mapping")
		}
	}
	return rules
}

// judge returns what is wrong with the claims, or nothing. It names a claim,
// never its value.
func (j *jwtRule) judge(claims map[string]any) string {
	if !hasAudience(claims["aud"], j.audience) {
		return "the claim aud does not hold the audience"
	}
	if name, ok := matchClaims(j.claims, claims); !ok {
		return fmt.Sprintf("the claim %s is not what the caller's must be", name)
	}
	return ""
}

// hasAudience takes a string, or an array of strings only (RFC 7519 4.1.3).
func hasAudience(aud any, want string) bool {
	switch v := aud.(type) {
	case string:
		return v == want
	case []any:
		return slices.Contains(v, any(want)) && !slices.ContainsFunc(v, func(x any) bool { _, ok := x.(string); return !ok })
	}
	return false
}

// matchClaims returns the first rule, in the order of names, that does not hold.
func matchClaims(rules, claims map[string]any) (string, bool) {
	for _, name := range sortedKeys(rules) {
		got := claims[name]
		inner, nested := rules[name].(map[string]any)
		if !nested {
			if !sameValue(rules[name], got) {
				return name, false
			}
			continue
		}
		object, ok := got.(map[string]any)
		if !ok {
			return name, false
		}
		if sub, ok := matchClaims(inner, object); !ok {
			return name + "." + sub, false
		}
	}
	return "", true
}

// sameValue is strict in type: "1" is not 1, and neither is a member of an array.
func sameValue(want, got any) bool {
	n, isNumber := got.(json.Number)
	switch w := want.(type) {
	case string:
		s, ok := got.(string)
		return ok && s == w
	case bool:
		b, ok := got.(bool)
		return ok && b == w
	case int:
		return isNumber && n.String() == strconv.Itoa(w)
	case int64:
		return isNumber && n.String() == strconv.FormatInt(w, 10)
	case uint64:
		return isNumber && n.String() == strconv.FormatUint(w, 10)
	case float64:
		f, err := n.Float64()
		return isNumber && err == nil && f == w
	}
	return false
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// times checks the times of a token against now, and returns when it expires.
// A reason says what is wrong.
func (j *jwtRule) times(claims map[string]any, now time.Time) (time.Time, Reason, string) {
	at := map[string]time.Time{}
	for _, name := range []string{"exp", "iat", "nbf"} {
		claim, there := claims[name]
		if !there && name == "nbf" {
			continue
		}
		t, ok := numericDate(claim)
		if !ok {
			return t, Malformed, "the claim " + name + " is missing or not a time"
		}
		at[name] = t
	}
	exp, iat := at["exp"], at["iat"]
	nbf, there := at["nbf"]
	switch {
	case !exp.After(iat):
		return exp, Wrong, "the token expires before it is issued"
	case exp.After(iat.Add(maxLifetime)):
		return exp, Wrong, fmt.Sprintf("the token lives longer than %s", maxLifetime)
	case !now.Before(exp.Add(j.leeway)):
		return exp, Stale, "the token has expired"
	case iat.After(now.Add(j.leeway)):
		return exp, Stale, "the token is issued in the future"
	case there && nbf.After(now.Add(j.leeway)):
		return exp, Stale, "the token is not valid yet"
	case iat.Before(now.Add(-j.maxAge - j.leeway)):
		return exp, Stale, fmt.Sprintf("the token was issued more than %s ago", j.maxAge)
	}
	return exp, "", ""
}

// numericDate reads a NumericDate (RFC 7519 2) after the epoch and of at most
// eleven digits: a plain JSON number, without sign or exponent.
func numericDate(v any) (time.Time, bool) {
	n, ok := v.(json.Number)
	if !ok || strings.Trim(n.String(), "0123456789.") != "" {
		return time.Time{}, false
	}
	f, err := n.Float64()
	if err != nil || !field.IsUnix(f) {
		return time.Time{}, false
	}
	whole, part := math.Modf(f)
	return time.Unix(int64(whole), int64(part*1e9)), true
}
