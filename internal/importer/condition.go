package importer

import (
	"fmt"
	"net/textproto"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"sallyport/internal/strictjson"
)

// canonicalHeader returns the name of a header as HTTP writes it.
func canonicalHeader(name string) string { return textproto.CanonicalMIMEHeaderKey(name) }

var digits = regexp.MustCompile(`^(0|[1-9][0-9]{0,8})$`)

// valuePath returns the path of a value here. It returns an empty text for a source without one.
func valuePath(a argument, body bodyForm) string {
	name := string(a.Name)
	switch a.source() {
	case "header":
		return strictjson.NamesPath("header", canonicalHeader(name)).String()
	case "query":
		return strictjson.NamesPath("query", name).String()
	case "payload":
	default:
		return ""
	}
	if body == bodyIsForm {
		return strictjson.NamesPath("body", name).String()
	}
	if body == bodyIsPayload {
		name = strings.TrimPrefix(name, payloadField)
	}
	path := "body"
	steps := strings.Split(name, ".")
	if body == bodyIsJSON && len(steps) > 1 && steps[0] == "root" && digits.MatchString(steps[1]) {
		steps = steps[1:] // root is the name of a list that is the whole body
	}
	for _, step := range steps {
		switch {
		case digits.MatchString(step):
			path += "[" + step + "]"
		default:
			path += strictjson.NamesPath("", step).String()
		}
	}
	return path
}

// condition collects what a value must fulfil.
type condition struct {
	path     string
	positive alternatives
	negative alternatives
}

// importConditions returns the mapping of when, or nil.
func importConditions(parts []alternatives, body bodyForm, n *hookNotes) yaml.MapSlice {
	var list []*condition
	for _, part := range parts {
		c := findCondition(&list, part, body, n)
		if c == nil {
			continue
		}
		switch negated := part[0].negated; {
		case negated && len(part) > 1:
			n.refuse(part[0].at, "has an alternative that is negated: write a hook for each alternative")
		case negated:
			c.negative = append(c.negative, part...)
		case c.positive != nil:
			n.refuse(part[0].at, "is a second condition on the same value: write one of both")
		default:
			c.positive = part
		}
	}
	var when yaml.MapSlice
	for _, c := range list {
		when = append(when, yaml.MapItem{Key: c.path, Value: c.marshal(body)})
	}
	return when
}

// findCondition returns the condition for the value that all alternatives read.
func findCondition(list *[]*condition, part alternatives, body bodyForm, n *hookNotes) *condition {
	path := valuePath(part[0].Parameter, body)
	for _, l := range part {
		switch {
		case path == "":
			n.refuse(l.at, "no condition reads the source %q", l.Parameter.Source)
			return nil
		case valuePath(l.Parameter, body) != path:
			n.refuse(l.at, "is an alternative on another value: write a hook for each alternative")
			return nil
		case l.negated != part[0].negated:
			n.refuse(l.at, "is an alternative that is negated: write a hook for each alternative")
			return nil
		case l.Type != "value" && l.Type != "regex":
			n.refuse(l.at, "%q is not a type of match", l.Type)
			return nil
		case l.Type == "regex":
			if _, err := regexp.Compile(string(l.Regex)); err != nil {
				n.refuse(l.at, "%v", err)
				return nil
			}
		}
	}
	for _, c := range *list {
		if c.path == path {
			return c
		}
	}
	c := &condition{path: path}
	*list = append(*list, c)
	return c
}

// marshal returns the test of a condition.
func (c *condition) marshal(body bodyForm) any {
	typed := strings.HasPrefix(c.path, "body") && body != bodyIsForm
	switch {
	case c.negative == nil:
		return c.positive.marshal(typed)
	case c.positive == nil:
		return yaml.MapSlice{{Key: "not", Value: c.negative.marshal(typed)}}
	}
	return yaml.MapSlice{
		{Key: "match", Value: text(c.positive.pattern())}, {Key: "not", Value: c.negative.marshal(typed)},
	}
}

// marshal returns the values of the alternatives, or a pattern. typed says that the source distinguishes text from
// other scalars, which a hooks file does not.
func (a alternatives) marshal(typed bool) any {
	var values []any
	for _, l := range a {
		value := string(l.Value)
		if l.Type == "regex" || typed && isFraction(value) {
			return yaml.MapSlice{{Key: "match", Value: text(a.pattern())}}
		}
		values = append(values, text(value))
		if !typed {
			continue
		}
		if i, err := strconv.ParseInt(value, 10, 64); err == nil && strconv.FormatInt(i, 10) == value {
			values = append(values, i)
		}
		if value == "true" || value == "false" {
			values = append(values, value == "true")
		}
	}
	if len(values) == 1 {
		return values[0]
	}
	return values
}

func isFraction(value string) bool {
	_, whole := strconv.ParseInt(value, 10, 64)
	_, err := strconv.ParseFloat(value, 64)
	return whole != nil && err == nil
}

// pattern returns an expression for the whole of a value that is one of the alternatives.
func (a alternatives) pattern() string {
	all := make([]string, len(a))
	for i, l := range a {
		all[i] = regexp.QuoteMeta(string(l.Value))
		if l.Type == "regex" {
			all[i] = wholePattern(string(l.Regex))
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	return "(?:" + strings.Join(all, ")|(?:") + ")"
}

// wholePattern returns an expression that matches the whole of the values in which expr matches a part.
func wholePattern(expr string) string {
	const any = "(?s:.*)"
	if expr == "" || expr == ".*" {
		return any
	}
	start, end := hasAnchors(expr)
	switch {
	case start && end:
		return expr[1 : len(expr)-1]
	case start:
		return expr[1:] + any
	case end:
		return any + expr[:len(expr)-1]
	}
	return fmt.Sprintf("%s(?:%s)%s", any, expr, any)
}

// hasAnchors reports whether a plain ^ and $ bind the whole of an expression.
func hasAnchors(expr string) (start, end bool) {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil || re.Op != syntax.OpConcat || len(re.Sub) == 0 {
		return false, false
	}
	start = expr[0] == '^' && re.Sub[0].Op == syntax.OpBeginText
	last := re.Sub[len(re.Sub)-1]
	end = strings.HasSuffix(expr, "$") && !strings.HasPrefix(expr, "(?") && last.Op == syntax.OpEndText
	return start, end
}

// conditionHeaders returns the headers that conditions read.
func conditionHeaders(parts []alternatives) (names []string) {
	for _, part := range parts {
		for _, l := range part {
			if l.Parameter.source() == "header" {
				names = append(names, canonicalHeader(string(l.Parameter.Name)))
			}
		}
	}
	return slices.Compact(names)
}
