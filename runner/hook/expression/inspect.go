package expression

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
)

// inspector looks through a checked expression for what the compiler allows and this package does not.
type inspector struct {
	*Expression

	text     string
	info     *ast.SourceInfo
	problems []Problem
	bare     map[int64]bool // uses of the variable header, until the name that follows is found
}

// inspect notes what the expression reads, and returns the problems.
func (e *Expression) inspect(text string, tree *ast.AST) []Problem {
	in := &inspector{Expression: e, text: text, info: tree.SourceInfo(), bare: map[int64]bool{}}
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(in.visit)) // operands come before what uses them
	for id := range in.bare {
		in.report(id, `name a header here, as in header["X-Name"]: others may have a credential`)
	}
	slices.SortFunc(in.problems, func(a, b Problem) int { return a.Offset - b.Offset })
	return in.problems
}

func (in *inspector) offset(id int64) int {
	at := in.info.GetStartLocation(id)
	return findOffset(in.text, at.Line(), at.Column())
}

func (in *inspector) report(id int64, format string, a ...any) {
	in.problems = append(in.problems, Problem{in.offset(id), fmt.Sprintf(format, a...)})
}

func (in *inspector) visit(e ast.Expr) {
	switch e.Kind() {
	case ast.IdentKind:
		name := strings.TrimPrefix(e.AsIdent(), ".")
		if slices.Contains(names(), name) {
			in.variables[name] = true
		}
		if name == "header" {
			in.bare[e.ID()] = true
		}
	case ast.SelectKind:
		in.nameHeader(e.AsSelect().Operand(), e.AsSelect().FieldName())
	case ast.CallKind:
		in.visitCall(e)
	case ast.ComprehensionKind:
		for _, name := range []string{e.AsComprehension().IterVar(), e.AsComprehension().IterVar2()} {
			if slices.Contains(names(), name) {
				in.report(e.ID(), "%s is a variable already: use another name for the element", name)
			}
		}
	case ast.LiteralKind:
		if d, ok := e.AsLiteral().(types.Double); ok && !isExact(float64(d)) {
			in.report(e.ID(), "a number with a point must be below 2^53, to be exact: write a whole number without a point")
		}
	case ast.StructKind:
		in.report(e.ID(), "a message cannot be created here")
	case ast.ListKind, ast.MapKind, ast.UnspecifiedExprKind:
	}
}

// nameHeader notes a header that is read by its name.
func (in *inspector) nameHeader(operand ast.Expr, name string) {
	if in.bare[operand.ID()] {
		delete(in.bare, operand.ID())
		in.headers[name] = in.offset(operand.ID())
	}
}

func (in *inspector) visitCall(e ast.Expr) {
	call := e.AsCall()
	switch args := call.Args(); call.FunctionName() {
	case operators.Index:
		if name, ok := literalText(args[1]); ok {
			in.nameHeader(args[0], name)
		}
	case overloads.Matches:
		if _, ok := literalText(args[len(args)-1]); !ok {
			in.report(e.ID(), "matches needs a regular expression in quotes, so that a delivery cannot choose it")
		}
	}
}

func literalText(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	text, ok := e.AsLiteral().(types.String)
	return string(text), ok
}

// isExact reports whether a number is smaller than all whole numbers that floating point cannot represent. Such a number
// can be compared with any whole number.
func isExact(d float64) bool { return math.Abs(d) < 1<<53 }
