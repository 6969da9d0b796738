package jwt

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

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

// CheckClaims returns an error for the first claim, in the order of names, that breaks its rule.
func CheckClaims(rules, claims map[string]any) error {
	return checkObject("", rules, claims)
}

func checkObject(prefix string, rules, claims map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		inner, nested := rules[name].(map[string]any)
		object, isObject := claims[name].(map[string]any)
		if nested && isObject {
			if err := checkObject(prefix+name+".", inner, object); err != nil {
				return err
			}
		} else if nested || !isSameValue(rules[name], claims[name]) {
			return newMismatch(prefix+name, claims[name], rules[name])
		}
	}
	return nil
}

// newMismatch returns the error of a claim that has another value than its rule.
func newMismatch(name string, got, want any) error {
	if got == nil {
		return fmt.Errorf("claim %s is missing or null, but the caller requires %s", name, formatValue(want))
	}
	return fmt.Errorf("claim %s is %s, but the caller requires %s", name, formatValue(got), formatValue(want))
}

// formatValue returns the beginning of a value in JSON, in printable characters.
func formatValue(v any) string {
	const longest = 80
	data, err := json.Marshal(v)
	if err != nil {
		return "not JSON"
	}
	text := string(data)
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
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
		return newMismatch("aud", claims["aud"], want)
	}
	return nil
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
