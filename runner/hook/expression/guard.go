package expression

import (
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// guardCall replaces the calls for which CEL has no limit of cost while they are in progress, and those whose result
// may not be exact.
func guardCall(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	call, ok := i.(interpreter.InterpretableCall)
	if !ok {
		return i, nil
	}
	switch call.Function() {
	case operators.Equals, operators.NotEquals, operators.In:
		return &comparison{call, call.Args()}, nil
	case operators.Add, operators.Subtract, operators.Multiply, operators.Divide, overloads.TypeConvertDouble:
		return &arithmetic{call}, nil
	}
	return i, nil
}

// arithmetic is a call whose result is an error if it is a number that may not be exact.
type arithmetic struct{ interpreter.InterpretableCall }

// Exec implements [interpreter.InterpretableV2].
func (a *arithmetic) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	v := a.InterpretableCall.Exec(frame)
	if d, ok := v.(types.Double); ok && !isExact(float64(d)) {
		return errInexact("the result")
	}
	return v
}

func errInexact(what string) ref.Val {
	return types.NewErr("%s is a number that cannot be represented exactly", what)
}

// comparison is ==, != or in. Each step of it costs something before the next one. CEL's own comparison of lists
// and objects costs something only when it ends, and a list that contains another many times can take for ever.
type comparison struct {
	interpreter.InterpretableCall

	operands []interpreter.InterpretableV2
}

// Exec implements [interpreter.InterpretableV2].
func (c *comparison) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	left := c.operands[0].Exec(frame)
	if types.IsError(left) {
		return left
	}
	right := c.operands[1].Exec(frame)
	if types.IsError(right) {
		return right
	}
	s := stepper{frame, c.InterpretableCall}
	switch {
	case c.Function() == operators.Equals:
		return s.equal(left, right)
	case c.Function() == operators.NotEquals:
		equal := s.equal(left, right)
		if types.IsError(equal) {
			return equal
		}
		return types.Bool(equal != types.True)
	}
	return s.contains(right, left)
}

type stepper struct {
	frame *interpreter.ExecutionFrame
	call  interpreter.InterpretableCall
}

// visit is the name of the call that stands for a step of a comparison.
const visit = "@visit"

type visitCall struct{}

// Function implements an interface of CEL.
func (visitCall) Function() string { return visit }

// OverloadID implements an interface of CEL.
func (visitCall) OverloadID() string { return visit }

// spend adds a cost. It does not return if that is too much: the evaluation ends.
func (s stepper) spend(cost uint64) {
	if tracker := s.frame.CostTracker(); tracker != nil {
		tracker.EvalZeroArity(s.frame, s.call.ID(), visitCall{}, types.Int(cost)) //nolint:gosec // G115: a size
	}
}

// contains implements in.
func (s stepper) contains(container, element ref.Val) ref.Val {
	switch c := container.(type) {
	case traits.Lister:
		for it := c.Iterator(); it.HasNext() == types.True; {
			if equal := s.equal(element, it.Next()); equal != types.False {
				return equal
			}
		}
		return types.False
	case traits.Mapper:
		s.spend(1)
		return c.Contains(element)
	}
	s.spend(1)
	return types.NewErr("no such overload: in")
}

// equal returns true, false or an error.
func (s stepper) equal(a, b ref.Val) ref.Val {
	s.spend(1 + min(sizeOf(a), sizeOf(b)))
	switch {
	case types.IsError(a):
		return a
	case types.IsError(b):
		return b
	}
	switch a := a.(type) {
	case traits.Lister:
		if b, ok := b.(traits.Lister); ok && a.Size() == b.Size() {
			return s.equalLists(a, b)
		}
		return types.False
	case traits.Mapper:
		if b, ok := b.(traits.Mapper); ok && a.Size() == b.Size() {
			return s.equalObjects(a, b)
		}
		return types.False
	}
	return types.Equal(a, b)
}

func (s stepper) equalLists(a, b traits.Lister) ref.Val {
	for one, other := a.Iterator(), b.Iterator(); one.HasNext() == types.True; {
		if equal := s.equal(one.Next(), other.Next()); equal != types.True {
			return equal
		}
	}
	return types.True
}

func (s stepper) equalObjects(a, b traits.Mapper) ref.Val {
	for names := a.Iterator(); names.HasNext() == types.True; {
		name := names.Next()
		one, _ := a.Find(name)
		other, found := b.Find(name)
		if !found {
			return types.False
		}
		if equal := s.equal(one, other); equal != types.True {
			return equal
		}
	}
	return types.True
}
