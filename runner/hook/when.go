package hook

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"unicode/utf8"

	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
)

// Condition is one entry of when: a test of one value of a delivery.
type Condition struct {
	Key string // as in the file

	path strictjson.Path // without steps for the event name
	test test
}

// Header returns the name of the header that the condition reads, or an empty text if it reads another source.
func (c Condition) Header() string {
	if names, plain := c.path.Names(); plain && c.path.Root() == "header" {
		return names[0]
	}
	return ""
}

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
	written, ok := spec.(map[string]any)
	switch {
	case !ok:
		p.Errorf("is not a mapping: write {event: push, body.ref: refs/heads/main}")
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

// WhyIgnored returns why a delivery, which Open has returned, is not meant for this hook: the condition that does not
// hold and the value that was found. It is empty if all conditions hold.
func (h *Hook) WhyIgnored(in Input) string {
	for i := range h.when {
		c := &h.when[i]
		v, typed, found := c.lookUp(in)
		if !c.test.holds(v, typed, found) {
			return "the condition " + c.Key + " does not hold: " + describeFound(v, found)
		}
	}
	return ""
}

// lookUp returns the value that the condition tests. typed says that its source distinguishes text from other scalars.
func (c *Condition) lookUp(in Input) (v any, typed, found bool) {
	if c.Key == eventSource {
		return in.Event, false, in.Event != ""
	}
	v, err := in.lookup(c.path, in.opened)
	root := c.path.Root()
	return v, root == "claim" || root == "body" && in.opened.form == nil, err == nil
}

// holds reports whether a value fulfils the test. A value that is missing, given more than once, a list or an object
// only fulfils exists.
func (t *test) holds(v any, typed, found bool) bool {
	if t.exists != nil {
		return *t.exists == found
	}
	text, scalar := conditionText(v)
	isFound := func(want any) bool { return isEqual(v, text, typed, want) }
	return found && scalar &&
		(t.values == nil || slices.ContainsFunc(t.values, isFound)) &&
		(t.match == nil || t.match.MatchString(text)) &&
		(t.not == nil || !t.not.holds(v, typed, found))
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

// isEqual compares a value of a delivery, which is text in this form, with one of the file. Where the source has types,
// they must be the same: "1" is not 1. A number is equal only in plain decimal.
func isEqual(v any, text string, typed bool, want any) bool {
	_, isText := v.(string)
	switch w := want.(type) {
	case string:
		return isText && text == w
	case bool:
		return !(typed && isText) && text == strconv.FormatBool(w)
	case int64:
		return !(typed && isText) && text == strconv.FormatInt(w, 10)
	}
	return false
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
