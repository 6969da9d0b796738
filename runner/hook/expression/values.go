package expression

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"sallyport/internal/strictjson"
)

// adapter makes values of a delivery to values of CEL, when an expression reads them. Lists and objects are not copied.
type adapter struct{}

// NativeToValue implements [types.Adapter].
func (a adapter) NativeToValue(v any) ref.Val {
	switch v := v.(type) {
	case ref.Val:
		return v
	case nil:
		return types.NullValue
	case string:
		return types.String(v)
	case bool:
		return types.Bool(v)
	case json.Number:
		return convertNumber(v.String())
	case []any:
		return types.NewDynamicList(a, v)
	case map[string]any:
		return membersObject(v)
	case Repeated:
		return types.NewErr("the value is given more than once")
	}
	return types.DefaultTypeAdapter.NativeToValue(v)
}

// convertNumber returns a whole number or one with a point, by its value and not by how it is written. A number that
// neither can represent exactly is an error.
func convertNumber(text string) ref.Val {
	const digits = 18 // always fit
	if n, err := strconv.ParseInt(text[:min(len(text), digits+1)], 10, 64); err == nil && len(text) <= digits {
		return types.Int(n)
	}
	plain, ok := strictjson.PlainDecimal(text)
	if !ok {
		return errInexact("the value")
	}
	if n, err := strconv.ParseInt(plain, 10, 64); err == nil {
		return types.Int(n)
	}
	d, err := strconv.ParseFloat(plain, 64)
	if err != nil || !isExact(d) || formatNumber(d) != plain {
		return errInexact("the value")
	}
	return types.Double(d)
}

// formatNumber returns the shortest decimal number that is read as d.
func formatNumber(d float64) string { return strconv.FormatFloat(d, 'f', -1, 64) }

// Repeated is the value of a field of a form, a query or a header that is given more than once.
type Repeated struct{}

// Object is a value with members.
type Object struct {
	Member func(name string) (any, bool)
	Names  func() []string // sorted
	Length int
}

func membersObject(members map[string]any) Object {
	return Object{
		func(name string) (any, bool) { v, ok := members[name]; return v, ok },
		func() []string { return slices.Sorted(maps.Keys(members)) },
		len(members),
	}
}

// ConvertToNative implements [ref.Val].
func (o Object) ConvertToNative(to reflect.Type) (any, error) {
	return nil, fmt.Errorf("an object is not a %s", to)
}

// ConvertToType implements [ref.Val].
func (o Object) ConvertToType(to ref.Type) ref.Val {
	switch to {
	case types.MapType:
		return o
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("an object is not a %s", to.TypeName())
}

// Equal implements [ref.Val]. Expressions compare objects in another way, which has a limit.
func (o Object) Equal(ref.Val) ref.Val { return types.NewErr("objects cannot be compared here") }

// Type implements [ref.Val].
func (o Object) Type() ref.Type { return types.MapType }

// Value implements [ref.Val].
func (o Object) Value() any { return o }

// Contains implements [traits.Container].
func (o Object) Contains(name ref.Val) ref.Val {
	_, found := o.Find(name)
	return types.Bool(found)
}

// Get implements [traits.Indexer].
func (o Object) Get(name ref.Val) ref.Val {
	if v, found := o.Find(name); found {
		return v
	}
	return types.WrapErr(Missing(fmt.Sprintf("no such key: %v", name.Value())))
}

// Find implements [traits.Mapper].
func (o Object) Find(name ref.Val) (ref.Val, bool) {
	text, ok := name.(types.String)
	if !ok {
		return nil, false
	}
	v, found := o.Member(string(text))
	if !found {
		return nil, false
	}
	return adapter{}.NativeToValue(v), true
}

// Iterator implements [traits.Iterable].
func (o Object) Iterator() traits.Iterator {
	return types.NewStringList(adapter{}, o.Names()).Iterator()
}

// Size implements [traits.Sizer].
func (o Object) Size() ref.Val { return types.Int(o.Length) }

// errNotScalar is the error of a result that is a list or an object.
var errNotScalar = errors.New("the result is a list or an object, and one value is needed")

// Scalar evaluates an expression whose result is one value: text, true or false, or a number in its canonical form. The
// error wraps [ErrMissing] if the result is null or cannot be computed without a value that is missing, and [ErrLimit]
// if it costs too much.
func (e *Expression) Scalar(from Variables) (any, error) {
	v, err := e.value(from)
	if err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case types.String:
		return string(v), nil
	case types.Bool:
		return bool(v), nil
	case types.Int:
		return json.Number(strconv.FormatInt(int64(v), 10)), nil
	case types.Double:
		return json.Number(formatNumber(float64(v))), nil
	}
	return nil, errNotScalar
}

// value evaluates an expression, whose result is not null.
func (e *Expression) value(from Variables) (ref.Val, error) {
	ev, end := begin(from)
	defer end()
	v, err := e.parts[0].evaluate(ev)
	if err == nil && v == types.NullValue {
		return nil, Missing("the result is null")
	}
	return v, err
}

// JSON evaluates an expression and returns the result as compact JSON of at most most bytes, or an error that wraps
// [strictjson.ErrTooLong]. The members of objects are sorted.
func (e *Expression) JSON(from Variables, most int) (string, error) {
	v, err := e.value(from)
	if err != nil {
		return "", err
	}
	w := writer{most: most}
	err = w.write(v)
	return w.text.String(), err
}

// writer writes JSON.
type writer struct {
	text strings.Builder
	most int
}

func (w *writer) write(v ref.Val) error {
	if w.text.Len() > w.most {
		return strictjson.ErrTooLong
	}
	switch v := v.(type) {
	case *types.Err:
		return v
	case types.Null:
		w.text.WriteString("null")
	case types.Bool:
		w.text.WriteString(strconv.FormatBool(bool(v)))
	case types.Int:
		w.text.WriteString(strconv.FormatInt(int64(v), 10))
	case types.Double:
		w.text.WriteString(formatNumber(float64(v)))
	case types.String:
		return w.writeText(string(v))
	case traits.Lister:
		return w.writeList(v)
	case traits.Mapper:
		return w.writeObject(v)
	default:
		return fmt.Errorf("the result has a %s, which JSON does not have", v.Type().TypeName())
	}
	return nil
}

func (w *writer) writeText(text string) error {
	if len(text) > w.most {
		return strictjson.ErrTooLong
	}
	w.text.WriteString(strictjson.Quote(text))
	return nil
}

func (w *writer) writeList(list traits.Lister) error {
	separator := "["
	for it := list.Iterator(); it.HasNext() == types.True; separator = "," {
		w.text.WriteString(separator)
		if err := w.write(it.Next()); err != nil {
			return err
		}
	}
	if separator == "[" {
		w.text.WriteString(separator)
	}
	w.text.WriteString("]")
	return nil
}

func (w *writer) writeObject(object traits.Mapper) error {
	var names []string
	for it := object.Iterator(); it.HasNext() == types.True; {
		name, ok := it.Next().(types.String)
		if !ok {
			return errors.New("the result has an object with a name that is not text")
		}
		names = append(names, string(name))
	}
	slices.Sort(names)
	w.text.WriteString("{")
	for i, name := range names {
		if i > 0 {
			w.text.WriteString(",")
		}
		if err := w.writeText(name); err != nil {
			return err
		}
		w.text.WriteString(":")
		member, _ := object.Find(types.String(name))
		if err := w.write(member); err != nil {
			return err
		}
	}
	w.text.WriteString("}")
	return nil
}
