package hook

import (
	"errors"
	"fmt"
	"maps"
	"net/textproto"
	"slices"

	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
	"sallyport/runner/hook/expression"
)

type compileFunc func(text string) (*expression.Expression, []expression.Problem)

// compileExpression compiles an expression of the file, and adds its problems to p. The result is nil if there are any.
func compileExpression(text string, p *diag.List, compile compileFunc) *expression.Expression {
	e, problems := compile(text)
	for _, problem := range problems {
		p.Inside(text, problem.Offset).Errorf("%s", problem.Text)
	}
	if e == nil {
		return nil
	}
	for _, name := range e.HeaderNames() {
		if err := checkSource(strictjson.NamesPath("header", name), bodyJSON); err != nil {
			p.Inside(text, e.HeaderOffset(name)).Errorf("%v", err)
		}
	}
	return e
}

// explainExpression returns why a condition is not true.
func (h *Hook) explainExpression(e *expression.Expression, in Input) (string, error) {
	operand, why, err := e.Explain(in.variable)
	switch {
	case err != nil:
		return "", fmt.Errorf("when: %w", err)
	case operand == "":
		return "", nil
	case h.Unauthenticated:
		return "the condition does not hold", nil
	case why != "":
		why = ": " + shorten(why)
	}
	return "the condition " + shorten(operand) + " does not hold" + why, nil
}

// resultTypes returns the types of CEL that the result of an expression may have, for each type of a parameter.
func resultTypes(kind string) []string {
	switch kind {
	case "int":
		return []string{"int"}
	case "number":
		return []string{"int", "double"}
	case "bool":
		return []string{"bool"}
	case "json":
		return []string{"list", "map", "string", "int", "double", "bool"}
	}
	return []string{"string", "int", "double", "bool"}
}

// compileExpression compiles the expression of a parameter.
func (c *param) compileExpression(s ParamSpec, p *diag.List) {
	if s.From != nil {
		p.At("expr").Errorf("contradicts from: leave one of the two out")
	}
	c.expr = compileExpression(s.Expr, p.At("expr"), func(text string) (*expression.Expression, []expression.Problem) {
		return expression.CompileValue(text, resultTypes(c.kind)...)
	})
}

// computeValue returns the result of the expression as text, or the problem with it.
func (c *param) computeValue(in Input) (value, problem string, err error) {
	var v any
	if c.kind == "json" {
		v, err = c.expr.JSON(in.variable, maxValue)
	} else {
		v, err = c.expr.Scalar(in.variable)
	}
	switch {
	case errors.Is(err, expression.ErrLimit):
		return "", "", err
	case errors.Is(err, expression.ErrMissing):
		value, problem = c.replaceMissing(shorten(err.Error()))
	case errors.Is(err, strictjson.ErrTooLong):
		problem = tooLong
	case err != nil:
		problem = "cannot be computed: " + shorten(err.Error())
	default:
		value, problem = c.scalarText(v, true)
	}
	return value, problem, nil
}

// variable returns the value of a variable of an expression.
func (in Input) variable(name string) (any, error) {
	switch name {
	case eventSource:
		if in.Event == "" {
			return nil, expression.Missing("the event name is missing")
		}
		return in.Event, nil
	case "query":
		return fieldsObject(in.Query, func(name string) string { return name }), nil
	case "header":
		return fieldsObject(in.Header, textproto.CanonicalMIMEHeaderKey), nil
	case "claims":
		if in.Claims == nil {
			return nil, expression.Missing("the delivery has no token")
		}
		return in.Claims, nil
	}
	switch {
	case in.opened == nil:
		return nil, errNotOpened
	case in.opened.form != nil:
		return fieldsObject(in.opened.form, func(name string) string { return name }), nil
	case in.opened.json == nil:
		return nil, expression.Missing("the body is empty or null")
	}
	return in.opened.json, nil
}

// fieldsObject returns fields that may be repeated as an object. canonical returns the name under which fields has a
// field.
func fieldsObject(fields map[string][]string, canonical func(string) string) expression.Object {
	return expression.Object{
		Member: func(name string) (any, bool) {
			switch v := singleValue(fields[canonical(name)]).(type) {
			case nil:
				return nil, false
			case string:
				return v, true
			}
			return expression.Repeated{}, true
		},
		Names:  func() []string { return slices.Sorted(maps.Keys(fields)) },
		Length: len(fields),
	}
}
