package hook

import (
	"errors"
	"fmt"
	"maps"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
	"sallyport/runner/hook/expression"
)

// maxValue is the most bytes of one value. Linux limits one argument to 128 KiB; the rest is for the literals around
// the value.
const maxValue = 64 << 10

const tooLong = "is longer than 65536 bytes" // maxValue

// Values are the parameters of a run as text, by name.
type Values map[string]string

// ParamProblem says what is wrong with one parameter, in terms that the sender understands.
type ParamProblem struct {
	Param string `json:"param"`
	Text  string `json:"problem"`
}

// Input is the parts of a request that conditions and parameters are taken from.
type Input struct {
	Body   []byte
	Query  url.Values
	Header textproto.MIMEHeader
	Claims map[string]any // of a verified token, as strictjson decodes them
	Event  string         // the sender's name for the kind of delivery; empty if it has none
	// EventUnreadable says that the sender has a name for the kind of delivery, which is not usable: it was sent twice,
	// or is not text.
	EventUnreadable bool
	// PayloadForm says that the caller sends JSON, or a form with the JSON as its only field, payload.
	PayloadForm bool

	opened *body // nil until Open has decoded the body
}

// Open decodes the body of a delivery, if a condition or a parameter of the hook reads it. Bind then does not
// decode it again. Body becomes the JSON of a form with the field payload. The error wraps ErrBody if the body does not
// have the format that the hook reads.
func (h *Hook) Open(in Input) (Input, error) {
	if in.opened != nil {
		return in, nil
	}
	in.opened = &body{}
	text, err := h.unwrapBody(in)
	if err != nil {
		return in, err
	}
	in.Body = text
	*in.opened, err = h.readBody(in)
	return in, err
}

type param struct {
	from     []strictjson.Path      // the first that is there gives the value
	expr     *expression.Expression // instead of from
	kind     string
	match    *regexp.Regexp
	enum     []string
	min, max *int64
	fallback *string
}

func compileParam(name string, s ParamSpec, as string, p *diag.List) *param {
	c := &param{kind: s.Type, enum: s.Enum, min: s.Min, max: s.Max, fallback: s.Default}
	if !isParamName(name) {
		p.Errorf("%q is not a name for a parameter: use letters, digits and _", name)
	}
	if c.kind == "" {
		c.kind = "string"
	}
	c.compileType(s, p)
	if s.Expr != "" {
		c.compileExpression(s, p)
	} else {
		c.from = s.From.compile(as, p.At("from"))
	}
	if c.kind == "json" {
		c.checkJSONSources(as, p.At("from"))
	}
	if c.fallback != nil {
		if text := c.whyRefused(*c.fallback); text != "" {
			p.At("default").Errorf("%q %s", *c.fallback, text)
		}
	}
	return c
}

// ParamHeaders returns the names of the headers that the value of a parameter may be taken from.
func (h *Hook) ParamHeaders(name string) (headers []string) {
	c := h.params[name]
	for _, path := range c.from {
		if path.Root() == "header" {
			name, _ := path.Names()
			headers = append(headers, name...)
		}
	}
	return append(headers, c.expr.HeaderNames()...)
}

func (c *param) compileType(s ParamSpec, p *diag.List) {
	rules := 0
	if s.Match != "" {
		rules++
		var err error
		if c.match, err = compileWhole(s.Match); err != nil {
			p.At("match").Errorf("%v", err)
		}
	}
	if s.Enum != nil {
		rules++
		if len(s.Enum) == 0 {
			p.At("enum").Errorf("is empty: no value would be allowed")
		}
	}
	if c.kind != "int" && c.kind != "number" && (s.Min != nil || s.Max != nil) {
		p.Errorf("min and max are for type: int and type: number")
	}
	switch c.kind {
	case "string":
		if rules != 1 {
			p.Errorf(`needs exactly one of match and enum, to restrict its values (match: "(?s).*" takes any text)`)
		}
	case "int", "number", "bool", "json":
		if rules != 0 {
			p.Errorf("type: %s says which values are allowed; leave match and enum out", c.kind)
		}
	default:
		p.At("type").Errorf("%q is not a type: write string, int, number, bool or json", c.kind)
	}
	if c.min != nil && c.max != nil && *c.min > *c.max {
		p.At("max").Errorf("is below min")
	}
}

// checkJSONSources refuses sources that have no JSON, or of which only decoded values are known.
func (c *param) checkJSONSources(as string, p *diag.List) {
	for _, path := range c.from {
		if path.Root() != "body" || as == bodyForm {
			p.Errorf("%s has no JSON text: type: json takes its value from a body that is JSON", path)
		}
	}
}

// compileWhole compiles a regular expression for the whole of a value.
func compileWhole(expr string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(expr); err != nil { // checked alone: "a)|(?:b" is balanced only once it is wrapped
		return nil, err
	}
	return regexp.Compile(`\A(?:` + expr + `)\z`)
}

// whyRefused returns why a value is not allowed, or an empty text if it is allowed. The text never contains the
// value, which may be a secret of the sender.
func (c *param) whyRefused(v string) string {
	switch {
	case len(v) > maxValue:
		return tooLong
	case !utf8.ValidString(v):
		return "is not valid UTF-8"
	case strings.ContainsRune(v, 0):
		return "has a NUL"
	case c.enum != nil && !slices.Contains(c.enum, v):
		return "is not one of the allowed values"
	case c.match != nil && !c.match.MatchString(v):
		return "does not match the allowed pattern"
	case c.kind == "bool" && v != "true" && v != "false":
		return "is not true or false"
	case c.kind == "int":
		return c.whyIntRefused(v)
	case c.kind == "number":
		return c.whyNumberRefused(v)
	case c.kind == "json":
		return whyJSONRefused(v)
	}
	return ""
}

func whyJSONRefused(v string) string {
	if _, err := strictjson.Decode([]byte(v)); err != nil {
		return "is not JSON: " + err.Error()
	}
	if text, err := strictjson.Compact([]byte(v), maxValue); err != nil || text != v {
		return "is not JSON in its compact form"
	}
	return ""
}

func (c *param) whyIntRefused(v string) string {
	n, err := strconv.ParseInt(v, 10, 64)
	switch {
	case err != nil || strconv.FormatInt(n, 10) != v: // "+1", "007" and "-0" are not in the canonical form
		return "is not an integer"
	case c.min != nil && n < *c.min:
		return fmt.Sprintf("is below %d", *c.min)
	case c.max != nil && n > *c.max:
		return fmt.Sprintf("is above %d", *c.max)
	}
	return ""
}

// Bind takes the parameters of a hook from a delivery. It returns all problems at once, or an error that wraps ErrBody if
// the body does not have the format that the hook reads, and [expression.ErrLimit] if it is too much for an expression.
func (h *Hook) Bind(in Input) (Values, []ParamProblem, error) {
	in, err := h.Open(in)
	if err != nil {
		return nil, nil, err
	}
	v := make(Values, len(h.params))
	var problems []ParamProblem
	for _, name := range slices.Sorted(maps.Keys(h.params)) {
		value, text, err := h.params[name].findValue(in, in.opened)
		if err != nil {
			return nil, nil, fmt.Errorf("parameter %s: %w", name, err)
		}
		if text == "" {
			text = h.params[name].whyRefused(value)
		}
		if text != "" {
			problems = append(problems, ParamProblem{Param: name, Text: text})
			continue
		}
		// The value is copied: the run keeps it for a long time, and a substring of a form, a query or a header would
		// keep all of that in memory.
		v[name] = strings.Clone(value)
	}
	if len(problems) > 0 {
		return nil, problems, nil
	}
	if problems = h.CheckValues(v); len(problems) > 0 {
		return nil, problems, nil
	}
	return v, nil, nil
}

// CheckValues reports the values that are not allowed, or not allowed in the place of their hole.
func (h *Hook) CheckValues(v Values) (problems []ParamProblem) {
	for _, name := range slices.Sorted(maps.Keys(h.params)) {
		value, ok := v[name]
		text := "is missing"
		if ok {
			text = h.params[name].whyRefused(value)
		}
		if text != "" {
			problems = append(problems, ParamProblem{Param: name, Text: text})
		}
	}
	if len(problems) == 0 {
		problems = h.checkDashes(v)
	}
	return problems
}

// findValue returns the value of one parameter, or the problem if the value is missing. The error is that of an
// expression that costs too much.
func (c *param) findValue(in Input, b *body) (value, problem string, err error) {
	if c.expr != nil {
		return c.computeValue(in)
	}
	value, problem = c.lookUpValue(in, b)
	return value, problem, nil
}

func (c *param) lookUpValue(in Input, b *body) (value, problem string) {
	missing := make([]string, 0, len(c.from))
	for _, path := range c.from {
		v, err := in.lookup(path, b)
		if err == nil && c.kind == "json" {
			return compactText(path, in.Body)
		}
		if err == nil {
			return c.scalarText(v, path.Root() == "claim" || path.Root() == "body" && b.form == nil)
		}
		missing = append(missing, err.Error())
	}
	return c.replaceMissing(strings.Join(missing, "; "))
}

// replaceMissing returns the default, or else the problem that the value is missing.
func (c *param) replaceMissing(why string) (value, problem string) {
	if c.fallback != nil {
		return *c.fallback, ""
	}
	return "", "is missing: " + why
}

// compactText returns the text of a part of the body, which is decoded already.
func compactText(path strictjson.Path, body []byte) (value, problem string) {
	text, err := strictjson.Compact(path.Cut(body), maxValue)
	switch {
	case errors.Is(err, strictjson.ErrTooLong):
		return "", tooLong
	case err != nil:
		return "", "is not JSON"
	}
	return text, ""
}

// singleValue returns the value of a field that may be repeated. Several values are returned as a list, which
// scalarText refuses: the command might use one of them and a proxy another.
func singleValue(values []string) any {
	switch len(values) {
	case 0:
		return nil
	case 1:
		return values[0]
	}
	return values
}

// scalarText converts a scalar to text. Types are strict where the source has types: a JSON string is not a number and
// not a bool. A number gets its canonical form here, if it has one.
func (c *param) scalarText(v any, typed bool) (value, problem string) {
	switch v := v.(type) {
	case string:
		switch {
		case typed && c.kind == "int":
			return "", "is a text and not an integer"
		case typed && c.kind == "number":
			return "", "is a text and not a number"
		case typed && c.kind == "bool":
			return "", "is a text and not true or false"
		}
		return c.canonicalText(v), ""
	case bool:
		return strconv.FormatBool(v), "" // which is not a valid int
	case fmt.Stringer: // json.Number, as it was written, which is not a valid bool
		return c.canonicalText(v.String()), ""
	case []string:
		return "", "is given more than once"
	}
	return "", "is a list or an object, and one value is needed"
}

// canonicalText returns a number of type number in its canonical form, and any other text as it is.
func (c *param) canonicalText(text string) string {
	if c.kind == "number" {
		if plain, ok := strictjson.PlainDecimal(text); ok {
			return plain
		}
	}
	return text
}
