package jwt

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"sallyport/internal/diag"
)

// CheckRules checks that every rule for a claim can be decided: a string, a number, a boolean, or a mapping
// of such for a claim that is an object.
func CheckRules(rules map[string]any, p *diag.List) {
	for name, rule := range rules {
		switch v := rule.(type) {
		case string, bool, int, int64, uint64:
		case float64:
			if math.IsNaN(v) || math.IsInf(v, 0) {
				p.At(name).Errorf("is not a number that JSON can express")
			}
		case map[string]any:
			if len(v) == 0 {
				p.At(name).Errorf("is an empty mapping, which checks nothing")
			}
			CheckRules(v, p.At(name))
		default:
			p.At(name).Errorf("is not a string, a number, true, false or a mapping")
		}
	}
}

// CheckClaims returns an error if the claims do not satisfy the rules. It names the first claim, in the order
// of names, that differs, and never its value.
func CheckClaims(rules, claims map[string]any) error {
	if name := findMismatch(rules, claims); name != "" {
		return fmt.Errorf("the claim %s is not what the caller's must be", name)
	}
	return nil
}

// CheckAudience accepts a string, or an array of nothing but strings (RFC 7519 4.1.3).
func CheckAudience(claims map[string]any, want string) error {
	ok := false
	switch aud := claims["aud"].(type) {
	case string:
		ok = aud == want
	case []any:
		isOther := func(x any) bool { _, isString := x.(string); return !isString }
		ok = slices.Contains(aud, any(want)) && !slices.ContainsFunc(aud, isOther)
	}
	if !ok {
		return errors.New("the claim aud does not hold the audience")
	}
	return nil
}

// findMismatch returns the first claim, in the order of names, that breaks its rule, or nothing.
func findMismatch(rules, claims map[string]any) string {
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		inner, nested := rules[name].(map[string]any)
		if !nested {
			if !isSameValue(rules[name], claims[name]) {
				return name
			}
			continue
		}
		object, ok := claims[name].(map[string]any)
		if !ok {
			return name
		}
		if sub := findMismatch(inner, object); sub != "" {
			return name + "." + sub
		}
	}
	return ""
}

// isSameValue is strict in type: "1" is not 1, and an array is not its member.
func isSameValue(want, got any) bool {
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
