package expression

import (
	"strings"
	"sync"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// names returns the names of the variables.
func names() []string { return []string{"event", "body", "query", "header", "claims"} }

// environment returns the variables and functions of expressions. It is made when the first expression is compiled.
//
//nolint:gochecknoglobals // it never changes
var environment = sync.OnceValues(func() (*cel.Env, error) {
	texts := cel.MapType(cel.StringType, cel.StringType)
	return cel.NewCustomEnv(append(textFunctions(),
		cel.StdLib(cel.StdLibSubset(standardSubset())),
		cel.CustomTypeAdapter(adapter{}),
		cel.Variable("event", cel.StringType),
		cel.Variable("body", cel.DynType),
		cel.Variable("query", texts),
		cel.Variable("header", texts),
		cel.Variable("claims", cel.DynType),
		cel.CrossTypeNumericComparisons(true),
		cel.ASTValidators(cel.ValidateRegexLiterals()),
		cel.ParserExpressionSizeLimit(maxText),
		cel.ParserRecursionLimit(maxDepth),
		cel.ExpressionNodeLimit(maxNodes),
		cel.EnableMacroCallTracking(), // to write a part of an expression as it was
	)...)
})

// programOptions limit the cost and the time of an evaluation. The time is looked at after some elements of a list.
func programOptions() []cel.ProgramOption {
	return []cel.ProgramOption{
		cel.EvalOptions(cel.OptOptimize), cel.CostTracking(costs{}), cel.CostLimit(maxCost),
		cel.InterruptCheckFrequency(10), cel.CustomDecoratorV2(guardCall),
	}
}

// standardSubset lists the functions of CEL, without those for times, bytes and unsigned numbers, which JSON does not
// have.
func standardSubset() *env.LibrarySubset {
	s := env.NewLibrarySubset()
	for _, name := range []string{
		operators.Conditional, operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.NotStrictlyFalse,
		operators.Equals, operators.NotEquals, operators.Less, operators.LessEquals, operators.Greater,
		operators.GreaterEquals, operators.Add, operators.Subtract, operators.Multiply, operators.Divide, operators.Modulo,
		operators.Negate, operators.Index, operators.In,
		overloads.Size, overloads.Contains, overloads.StartsWith, overloads.EndsWith, overloads.Matches,
		overloads.TypeConvertString, overloads.TypeConvertInt, overloads.TypeConvertDouble, overloads.TypeConvertBool,
		overloads.TypeConvertDyn, overloads.TypeConvertType,
	} {
		s.AddIncludedFunctions(env.NewFunction(name))
	}
	return s
}

// textFunctions declares functions that CEL's own library of strings has, with a limit of their results.
func textFunctions() []cel.EnvOption {
	text, number, list := cel.StringType, cel.IntType, cel.ListType(cel.StringType)
	member := func(name string, result *cel.Type, op func(args ...ref.Val) ref.Val, args ...*cel.Type) cel.EnvOption {
		args = append([]*cel.Type{text}, args...)
		id := "string_" + name + strings.Repeat("_x", len(args)-1)
		return cel.Function(name, cel.MemberOverload(id, args, result, cel.FunctionBinding(op)))
	}
	return []cel.EnvOption{
		member("lowerAscii", text, lowerASCII),
		member("replace", text, replaceText, text, text),
		member("split", list, splitText, text),
		member("substring", text, substring, number),
		member("substring", text, substring, number, number),
	}
}

// maxResult is the most bytes of the result of a function.
const maxResult = 1 << 20

func texts(args []ref.Val) []string {
	all := make([]string, len(args))
	for i, arg := range args {
		text, _ := arg.(types.String) // by its declaration
		all[i] = string(text)
	}
	return all
}

func lowerASCII(args ...ref.Val) ref.Val {
	return types.String(strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r | 0x20
		}
		return r
	}, texts(args)[0]))
}

func replaceText(args ...ref.Val) ref.Val {
	a := texts(args)
	text, from, to := a[0], a[1], a[2]
	if len(text)+strings.Count(text, from)*max(0, len(to)-len(from)) > maxResult {
		return types.NewErr("the result of replace is longer than %d bytes", maxResult)
	}
	return types.String(strings.ReplaceAll(text, from, to))
}

func splitText(args ...ref.Val) ref.Val {
	a := texts(args)
	return types.NewStringList(adapter{}, strings.Split(a[0], a[1]))
}

// substring counts characters, like size.
func substring(args ...ref.Val) ref.Val {
	text := texts(args)[0]
	size := int64(utf8.RuneCountInString(text))
	from, to := args[1], ref.Val(types.Int(size))
	if len(args) > 2 {
		to = args[2]
	}
	start, _ := from.(types.Int) // by its declaration
	end, _ := to.(types.Int)
	if start < 0 || start > end || int64(end) > size {
		return types.WrapErr(Missing("index out of bounds: a text of substring is too short"))
	}
	return types.String(text[findOffset(text, 1, int(start)):findOffset(text, 1, int(end))])
}

// costs says what calls cost. CEL's own costs are for calls whose types are known when the file is loaded, which those
// of a body are not.
type costs struct{}

// CallCost implements the interface of CEL.
func (costs) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	cost := uint64(1)
	switch function {
	case visit:
		n, _ := result.(types.Int)
		cost = uint64(max(0, n))
	case overloads.Matches:
		cost += (1 + textSize(args[0])) * (1 + textSize(args[1]))
	case operators.Add, "lowerAscii", "replace", "substring":
		cost += textSize(args[0]) + textSize(result)
	case "split":
		cost += textSize(args[0]) + sizeOf(result)
	case operators.Index, operators.LogicalAnd, operators.LogicalOr, operators.NotStrictlyFalse:
		return nil
	default:
		for _, arg := range args {
			cost += textSize(arg)
		}
	}
	return &cost
}

// textSize returns the cost of reading a text once: CEL counts ten characters as one. Other values cost nothing.
func textSize(v ref.Val) uint64 {
	text, _ := v.(types.String)
	return uint64(len(text)) / 10
}

// sizeOf returns the cost of looking at each part of a value once.
func sizeOf(v ref.Val) uint64 {
	if list, ok := v.(traits.Sizer); ok && v.Type() != types.StringType {
		size, _ := list.Size().(types.Int)
		return uint64(max(0, size))
	}
	return textSize(v)
}
