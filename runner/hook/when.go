package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"unicode/utf8"

	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
	"sallyport/runner/hook/expression"
)

// Condition is one entry of when, which is a test of one value of a delivery, or an expression.
type Condition struct {
	Key string // as in the file; empty for an expression

	path strictjson.Path // without steps for the event name
	test test
	expr *expression.Expression
}

// Headers returns the names of the headers that the condition reads.
func (c Condition) Headers() []string {
	if c.expr != nil {
		return c.expr.HeaderNames()
	}
	if names, plain := c.path.Names(); plain && c.path.Root() == "header" {
		return names
	}
	return nil
}

// At returns the list of the place of the condition, in the list of the place of when.
func (c Condition) At(when *diag.List) *diag.List {
	if c.expr != nil {
		return when
	}
	return when.At(c.Key)
}

// IsOfEvent reports whether the condition reads the event name.
func (c Condition) IsOfEvent() bool { return c.Key == eventSource || c.expr.Reads("event") }

// IsOfBody reports whether the condition reads the body. An expression with an error may have been meant to.
func (c Condition) IsOfBody() bool {
	return c.path.Root() == "body" || c.Key == "" && (c.expr == nil || c.expr.Reads("body"))
}

// IsOfClaim reports whether the condition reads the token.
func (c Condition) IsOfClaim() bool { return c.path.Root() == "claim" || c.expr.Reads("claims") }

// eventSource is the source of the event name. Parameters cannot be taken from it.
const eventSource = "event"

// test is what a value must fulfil. Each part that is set must hold.
type test struct {
	values []any // string, int64 or bool; nil: any value
	match  *regexp.Regexp
	not    *test
	exists *bool // alone
}

// When returns the conditions of the hook, in the order in which they are checked.
func (h *Hook) When() []Condition { return h.when }

// compileWhen compiles when, for a body of the format as. The event name comes first: it says best why a delivery is
// not meant for the hook.
func compileWhen(spec any, as string, p *diag.List) (list []Condition) {
	if spec == nil {
		return nil
	}
	if text, ok := spec.(string); ok {
		return []Condition{{expr: compileExpression(text, p, expression.CompileCondition)}}
	}
	written, ok := spec.(map[string]any)
	switch {
	case !ok:
		p.Errorf("is not a mapping or an expression: write {event: push, body.ref: refs/heads/main}")
	case len(written) == 0:
		p.Errorf("is empty: write a condition, or omit the key")
	}
	for _, key := range slices.Sorted(maps.Keys(written)) {
		at := p.At(key)
		path, err := parseConditionKey(key, as)
		if err != nil {
			at.Errorf("%v", err)
			continue
		}
		list = append(list, Condition{Key: key, path: path, test: compileTest(written[key], at)})
	}
	if i := slices.IndexFunc(list, func(c Condition) bool { return c.Key == eventSource }); i > 0 {
		event := list[i]
		list = slices.Insert(slices.Delete(list, i, i+1), 0, event)
	}
	return list
}

// parseConditionKey returns the path of a condition. as is the format of the body.
func parseConditionKey(key, as string) (strictjson.Path, error) {
	path, err := strictjson.ParsePath(key)
	switch {
	case err != nil || key == eventSource:
		return path, err
	case !isSource(path.Root()):
		return path, fmt.Errorf("%q is not a source: "+
			"write event, body.NAME, query.NAME, header.NAME or claim.NAME", key)
	}
	return path, checkSource(path, as)
}

func compileTest(written any, p *diag.List) (t test) {
	switch w := written.(type) {
	case []any:
		if len(w) == 0 {
			p.Errorf("is empty: no value would be allowed")
		}
		t.values = make([]any, len(w))
		for i, one := range w {
			t.values[i] = checkScalar(one, p.Index(i))
		}
	case map[string]any:
		t.compileKeys(w, p)
	default:
		t.values = []any{checkScalar(w, p)}
	}
	return t
}

func checkScalar(written any, p *diag.List) any {
	switch written.(type) {
	case string, bool, int64:
	default:
		p.Errorf("must be text, a whole number, true or false")
	}
	return written
}

func (t *test) compileKeys(written map[string]any, p *diag.List) {
	if len(written) == 0 {
		p.Errorf("is empty: write {match: …}, {not: …} or {exists: true}")
	}
	for _, key := range slices.Sorted(maps.Keys(written)) {
		at := p.At(key)
		switch value := written[key]; key {
		case "match":
			text, ok := value.(string)
			if !ok {
				at.Errorf("must be a regular expression as text")
				continue
			}
			var err error
			if t.match, err = compileWhole(text); err != nil {
				at.Errorf("%v", err)
			}
		case "not":
			not := compileTest(value, at)
			if list, isList := value.([]any); isList && haveDifferentTypes(list) {
				at.Errorf("has values of different types: no value can be compared with all of them")
			}
			if keys, isMapping := value.(map[string]any); isMapping && not.match != nil {
				// With ".", the match must not fail at a line break of the sender: the delivery would start the hook.
				not.match, _ = compileWhole(fmt.Sprintf("(?s:%s)", keys["match"]))
			}
			if t.not = &not; not.exists != nil {
				at.Errorf("contains exists: write {exists: false} instead")
			}
		case "exists":
			exists, ok := value.(bool)
			if !ok {
				at.Errorf("must be true or false")
			}
			if t.exists = &exists; len(written) > 1 {
				at.Errorf("must be alone: match and not need a value, too")
			}
		default:
			at.Errorf("unknown key; the keys here are exists, match, not")
		}
	}
}

// errNotOpened is the error of a delivery whose body a condition reads, and which Open has not returned.
var errNotOpened = errors.New("the delivery was not opened")

func haveDifferentTypes(list []any) bool {
	return slices.ContainsFunc(list, func(v any) bool { return reflect.TypeOf(v) != reflect.TypeOf(list[0]) })
}

// WhyIgnored returns why a delivery, which Open has returned, is not meant for this hook: the condition that does not
// hold and the value that was found, without the value if any client may send to the hook. It is empty if all
// conditions hold. The error wraps [expression.ErrLimit] if the delivery is too much for an expression.
func (h *Hook) WhyIgnored(in Input) (string, error) {
	if in.opened == nil && h.readsBody() {
		return "", errNotOpened
	}
	for i := range h.when {
		c := &h.when[i]
		if c.expr != nil {
			return h.explainExpression(c.expr, in)
		}
		v := c.lookUp(in)
		switch {
		case c.test.hold(v) == holds:
		case h.Unauthenticated:
			return "the condition " + c.Key + " does not hold", nil
		default:
			return "the condition " + c.Key + " does not hold: " + describeFound(v.value, v.value != nil), nil
		}
	}
	return "", nil
}

// sourceValue is the value that a condition tests; nil if it is missing.
type sourceValue struct {
	value  any
	typed  bool // the source distinguishes text from other scalars
	absent bool // the value is missing, and everything that could contain it could be read
}

func (c *Condition) lookUp(in Input) sourceValue {
	if c.Key == eventSource {
		if in.Event == "" {
			return sourceValue{absent: !in.EventUnreadable}
		}
		return sourceValue{value: in.Event}
	}
	opened := in.opened
	if opened == nil { // no condition reads the body
		opened = &body{}
	}
	v, err := in.lookup(c.path, opened)
	if err != nil {
		return sourceValue{absent: c.isAbsent(in, opened)}
	}
	root := c.path.Root()
	return sourceValue{value: v, typed: root == "claim" || root == "body" && opened.form == nil}
}

// isAbsent reports whether a missing value is known to be absent: each step that exists has the type that can contain
// the next one. An empty body, and the claims of a delivery without a token, contain nothing that could be known.
func (c *Condition) isAbsent(in Input, b *body) bool {
	switch root := c.path.Root(); {
	case root == "claim":
		return in.Claims != nil && c.path.IsAbsent(in.Claims)
	case root == "body" && b.form == nil:
		return c.path.IsAbsent(b.json)
	}
	return true
}

// verdict is the result of a test. A comparison that cannot be made is neither true nor false, also if it is negated:
// a condition then does not hold.
type verdict int

const (
	unknown verdict = iota
	fails
	holds
)

func decide(ok bool) verdict {
	if ok {
		return holds
	}
	return fails
}

func (v verdict) negate() verdict {
	switch v {
	case holds:
		return fails
	case fails:
		return holds
	case unknown:
	}
	return unknown
}

// hold tests a value. A value that is missing, given more than once, a list or an object only fulfils exists.
func (t *test) hold(v sourceValue) verdict {
	if t.exists != nil {
		return decide(*t.exists && v.value != nil || !*t.exists && v.absent)
	}
	text, scalar := conditionText(v.value)
	if !scalar {
		return unknown
	}
	result := t.holdValues(v, text)
	if t.match != nil {
		matches := unknown
		if hasOneForm(v.value) {
			matches = decide(t.match.MatchString(text))
		}
		result = bothHold(result, matches)
	}
	if t.not != nil {
		result = bothHold(result, t.not.hold(v).negate())
	}
	return result
}

func bothHold(a, b verdict) verdict {
	switch {
	case a == fails || b == fails:
		return fails
	case a == unknown || b == unknown:
		return unknown
	}
	return holds
}

// holdValues tests whether the value is one of the values of the file.
func (t *test) holdValues(v sourceValue, text string) verdict {
	if t.values == nil {
		return holds
	}
	result := fails
	for _, want := range t.values {
		switch compareValues(v, text, want) {
		case holds:
			return holds
		case unknown:
			result = unknown
		case fails:
		}
	}
	return result
}

// conditionText returns a scalar as text.
func conditionText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return v.String(), true
	}
	return "", false
}

// compareValues compares a value of a delivery, which is text in this form, with one of the file. Where the source has
// types, they must be the same: "1" cannot be compared with 1. A number is compared only in plain decimal.
func compareValues(v sourceValue, text string, want any) verdict {
	_, isText := v.value.(string)
	_, isBool := v.value.(bool)
	switch w := want.(type) {
	case string:
		if isText {
			return decide(text == w)
		}
	case bool:
		if isBool || !v.typed && (text == "true" || text == "false") {
			return decide(text == strconv.FormatBool(w))
		}
	case int64:
		if !isBool && !(v.typed && isText) && isPlainNumber(text) {
			return decide(text == strconv.FormatInt(w, 10))
		}
	}
	return unknown
}

// hasOneForm reports whether a value can be written in one form only, so that its text stands for it.
func hasOneForm(v any) bool {
	n, isNumber := v.(json.Number)
	return !isNumber || isPlainNumber(n.String())
}

func isPlainNumber(text string) bool {
	plain, ok := strictjson.PlainDecimal(text)
	return ok && plain == text
}

// describeFound describes a value for the sender, the log and the audit log.
func describeFound(v any, found bool) string {
	if !found {
		return "the value is missing"
	}
	switch v := v.(type) {
	case string:
		return "the value is " + quoteShort(v)
	case []string:
		return "the value is given more than once"
	}
	if text, scalar := conditionText(v); scalar {
		return "the value is " + shorten(text)
	}
	return "the value is a list or an object"
}

// shownOfValue is the most bytes of a value that a reason contains.
const shownOfValue = 100

func quoteShort(s string) string { return strconv.Quote(shorten(s)) }

// shorten cuts a text and marks the cut.
func shorten(s string) string {
	if len(s) <= shownOfValue {
		return s
	}
	end := shownOfValue
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}
