// Package expression compiles and evaluates the CEL expressions of a configuration file: conditions of hooks, and
// computed parameters.
//
// [CompileCondition] and [CompileValue] check an expression when the file is loaded, and return each [Problem] with its
// place in the text. [Expression.Explain] and [Expression.Scalar] evaluate it for one delivery, whose parts they get
// from [Variables].
//
// An evaluation has a limit of cost and, if that is not enough, of time: a delivery cannot make it take long or use
// much memory. The result depends on nothing but the delivery: there is no clock and no random value, and members of an
// object of the delivery have an order. (Those of a map that the expression itself writes have none.) A number is exact, or its use is an error. What cannot be evaluated is an error, and never true:
// [ErrMissing] if the delivery does not have a value, [ErrLimit] if a limit is exceeded.
package expression

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
	"cel.dev/cel-go/parser"
)

// The limits of an expression. maxCost is enough to look at each of 50,000 objects once. maxTime is for what costs
// little and takes long, such as the hash of a long text.
const (
	maxText  = 8 << 10 // characters
	maxDepth = 100
	maxNodes = 10_000
	maxCost  = 1_000_000   // of an evaluation
	maxTime  = time.Second // of an evaluation
)

var (
	// ErrMissing is wrapped by the error of an evaluation that needs a value that the delivery does not have.
	ErrMissing = errors.New("no such value")
	// ErrLimit is wrapped by the error of an evaluation that costs too much. It is for the operator: the expression is
	// not suitable for such a delivery.
	ErrLimit = errors.New("the limit of an expression is exceeded")
)

// Problem is one problem of an expression.
type Problem struct {
	Offset int // in bytes
	Text   string
}

// Expression is a compiled expression. It never changes.
type Expression struct {
	parts     []part // all must be true, in a condition; one, in a value
	variables map[string]bool
	headers   map[string]int // by name as it is written, with the offset
}

// part is an operand of the && of a condition, or the whole expression.
type part struct {
	text    string
	program cel.Program
}

// CompileCondition compiles an expression whose result is true or false.
func CompileCondition(text string) (*Expression, []Problem) {
	return compile(text, splitOperands, "bool")
}

// CompileValue compiles an expression whose result has one of the given types of CEL.
func CompileValue(text string, results ...string) (*Expression, []Problem) {
	return compile(text, func(e ast.Expr) []ast.Expr { return []ast.Expr{e} }, results...)
}

func compile(text string, split func(ast.Expr) []ast.Expr, results ...string) (*Expression, []Problem) {
	env, err := environment()
	if err != nil {
		return nil, []Problem{{Text: err.Error()}}
	}
	tree, issues := env.Compile(text)
	if problems := locateIssues(text, issues); len(problems) > 0 {
		return nil, problems
	}
	// An environment declares nothing with the type dyn but parts of the delivery, whose types are known later.
	got := cel.FormatCELType(tree.OutputType())
	if !slices.Contains(results, tree.OutputType().TypeName()) && got != "dyn" {
		return nil, []Problem{{Text: fmt.Sprintf("the result is of the type %s, but must be %s", got,
			strings.Join(results, ", "))}}
	}
	e := &Expression{variables: map[string]bool{}, headers: map[string]int{}}
	whole := tree.NativeRep()
	if problems := e.inspect(text, whole); len(problems) > 0 {
		return nil, problems
	}
	for _, one := range split(whole.Expr()) {
		sub := ast.NewCheckedAST(ast.NewAST(one, whole.SourceInfo()), whole.TypeMap(), whole.ReferenceMap())
		program, err := env.PlanProgram(sub, programOptions()...)
		if err != nil {
			return nil, []Problem{{Text: err.Error()}}
		}
		written, err := parser.Unparse(one, whole.SourceInfo())
		if err != nil {
			written = text
		}
		e.parts = append(e.parts, part{strings.Join(strings.Fields(written), " "), program})
	}
	return e, nil
}

// splitOperands returns the operands of the && of an expression. If one after the other is evaluated, the result is the
// same, and the one that is not true is known.
func splitOperands(e ast.Expr) []ast.Expr {
	if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != operators.LogicalAnd {
		return []ast.Expr{e}
	}
	var all []ast.Expr
	for _, operand := range e.AsCall().Args() {
		all = append(all, splitOperands(operand)...)
	}
	return all
}

// locateIssues returns the errors of the compiler.
func locateIssues(text string, issues *cel.Issues) (problems []Problem) {
	for _, issue := range issues.Errors() {
		line, _, _ := strings.Cut(issue.Message, "\n")
		line = strings.TrimSuffix(line, " (in container '')") // there are no containers here
		problems = append(problems, Problem{findOffset(text, issue.Location.Line(), issue.Location.Column()), line})
	}
	return problems
}

// findOffset returns the offset of a line from 1 and a column from 0, which counts characters.
func findOffset(text string, line, column int) int {
	offset := 0
	for ; line > 1; line-- {
		end := strings.IndexByte(text[offset:], '\n')
		if end < 0 {
			break
		}
		offset += end + 1
	}
	for ; column > 0 && offset < len(text); column-- {
		_, size := utf8.DecodeRuneInString(text[offset:])
		offset += size
	}
	return offset
}

// Reads reports whether the expression reads a variable.
func (e *Expression) Reads(variable string) bool { return e != nil && e.variables[variable] }

// HeaderNames returns the names of the headers that the expression reads, as they are written and sorted.
func (e *Expression) HeaderNames() []string {
	if e == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(e.headers))
}

// HeaderOffset returns the offset of a header that the expression reads, in bytes.
func (e *Expression) HeaderOffset(name string) int { return e.headers[name] }

// Variables returns the value of a variable: a value as strictjson decodes it, or an [Object]. The error wraps
// [ErrMissing] if the delivery does not have it.
type Variables func(name string) (any, error)

// Explain returns an empty text if the condition is true, or else its first operand that is not. why says why that
// operand has no result, and is empty if it is false. The error wraps [ErrLimit].
func (e *Expression) Explain(from Variables) (operand, why string, err error) {
	ev, end := begin(from)
	defer end()
	for i := range e.parts {
		one := &e.parts[i]
		value, err := one.evaluate(ev)
		switch {
		case errors.Is(err, ErrLimit):
			return "", "", fmt.Errorf("%s: %w", one.text, err)
		case err != nil:
			return one.text, err.Error(), nil
		case value == types.True:
			continue
		case value != types.False:
			why = "the result is not true or false"
		}
		return one.text, why, nil
	}
	return "", "", nil
}

// evaluation is that of all parts of an expression, for one delivery.
type evaluation struct {
	ctx  context.Context // the time that all parts have together
	vars activation
	cost uint64
}

// begin returns an evaluation, and the function that ends it.
func begin(from Variables) (*evaluation, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), maxTime)
	return &evaluation{ctx: ctx, vars: activation{from: from}}, cancel
}

// evaluate returns the result.
func (p *part) evaluate(ev *evaluation) (ref.Val, error) {
	value, details, err := p.program.ContextEval(ev.ctx, &ev.vars)
	if spent := details.ActualCost(); spent != nil {
		ev.cost += *spent
	}
	var missing *missingError
	switch {
	case ev.cost > maxCost || errors.Is(err, context.DeadlineExceeded):
		return nil, ErrLimit
	case err == nil:
		return value, nil
	case errors.As(err, &missing):
		return nil, missing
	case strings.HasPrefix(err.Error(), "internal error"):
		return nil, fmt.Errorf("%w: %w", ErrLimit, err) // a defect, which the operator has to know
	case strings.HasPrefix(err.Error(), "no such key") || strings.HasPrefix(err.Error(), "index out of bounds"):
		return nil, &missingError{err.Error()}
	}
	return nil, err
}

type missingError struct{ text string }

func (e *missingError) Error() string { return e.text }

// Is makes the error one that wraps [ErrMissing].
func (e *missingError) Is(target error) bool { return target == ErrMissing }

// Missing returns the error of [Variables] for what the delivery does not have.
func Missing(text string) error { return &missingError{text} }

// activation gives an evaluation the variables that it reads, each of which is got once.
type activation struct {
	from  Variables
	known map[string]any
}

// ResolveName implements [interpreter.Activation].
func (a *activation) ResolveName(name string) (any, bool) {
	if v, ok := a.known[name]; ok {
		return v, true
	}
	if !slices.Contains(names(), name) {
		return nil, false
	}
	v, err := a.from(name)
	if err != nil {
		v = types.WrapErr(err)
	}
	if a.known == nil {
		a.known = make(map[string]any, len(names()))
	}
	a.known[name] = v
	return v, true
}

// Parent implements [interpreter.Activation].
func (*activation) Parent() interpreter.Activation { return nil }
