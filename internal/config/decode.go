package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// decode fills a struct from data. It returns false if data cannot be parsed. Otherwise it has all values of the right
// shape, and r has a diagnostic for each of the others.
//
// A library parses the YAML. The library's decoder is not used: it stops at the first error, converts numbers into
// text, and reads an absent value as a default.
func decode(data []byte, into any, r *report) bool {
	root := parseYAML(data, r)
	if root == nil {
		return false
	}
	d := &decoder{report: r, fields: map[reflect.Type]map[string][]int{}}
	d.decodeValue(root, nodePlace(root), "", reflect.ValueOf(into).Elem())
	return true
}

type decoder struct {
	*report
	fields map[reflect.Type]map[string][]int // of a struct, by key
}

// reportShape reports a value of the wrong shape.
func (d *decoder) reportShape(at place, path, format string, a ...any) {
	d.broken[path] = true
	d.addDiagnostic(at, path, fmt.Sprintf(format, a...))
}

// decodeValue sets v from n, the node at path.
func (d *decoder) decodeValue(n ast.Node, at place, path string, v reflect.Value) {
	d.places[path] = at
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.DirectiveNode:
		d.broken[path] = true // reported before the file was parsed
		return
	case *ast.NullNode:
		d.reportShape(at, path, "is empty: give it a value, or leave it out")
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	_, isScalar := n.(ast.ScalarNode)
	switch to := v.Addr().Interface().(type) {
	case *any:
		*to = d.decodeAny(n, at, path)
		return
	case *time.Duration, *time.Time, encoding.TextUnmarshaler:
		d.decodeText(n, at, path, to)
		return
	case interface{ UnmarshalYAML(func(any) error) error }:
		if isScalar { // the parts of a list or a mapping are decoded one by one, so that each has its place
			d.decodeText(n, at, path, to)
			return
		}
	}
	d.decodeKind(n, at, path, v)
}

// decodeKind sets v from a node of the form that the kind of v requires.
func (d *decoder) decodeKind(n ast.Node, at place, path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		d.decodeStruct(n, at, path, v)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		d.decodeEntries(n, at, path, func(key string, keyAt place, value ast.Node, path string) {
			one := reflect.New(v.Type().Elem()).Elem()
			d.decodeValue(value, entryPlace(keyAt, value), path, one)
			v.SetMapIndex(reflect.ValueOf(key), one)
		})
	case reflect.Slice:
		list, ok := n.(*ast.SequenceNode)
		if !ok {
			d.reportKind(n, at, path, "a list")
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values)))
		for i, one := range list.Values {
			d.decodeValue(one, nodePlace(one), joinPath(path, strconv.Itoa(i)), v.Index(i))
		}
	case reflect.String:
		if s, ok := d.decodeString(n, at, path); ok {
			v.SetString(s)
		}
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.reportKind(n, at, path, "true or false")
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Int64:
		d.decodeInteger(n, at, path, v)
	default:
		d.reportShape(at, path, "cannot be read: %s has no form in this file", v.Type())
	}
}

// entryPlace returns the place to report for an entry of a mapping: the value's, or the key's if the value is not a
// scalar.
func entryPlace(key place, value ast.Node) place {
	if _, scalar := value.(ast.ScalarNode); scalar && value.Type() != ast.NullType {
		return nodePlace(value)
	}
	return key
}

// decodeEntries calls entry for each entry of a mapping.
func (d *decoder) decodeEntries(
	n ast.Node, at place, path string, entry func(key string, keyAt place, value ast.Node, path string),
) {
	m, ok := n.(ast.MapNode)
	if !ok {
		d.reportKind(n, at, path, "a mapping")
		return
	}
	seen := map[string]int{}
	for entries := m.MapRange(); entries.Next(); {
		key, value := entries.Key(), entries.Value()
		at := tokenPlace(key.GetToken())
		name, ok := key.(*ast.StringNode)
		if !ok {
			if kind := nameKind(key); kind != "" {
				d.addDiagnostic(at, path,
					fmt.Sprintf("the key %s is %s: quote it if text is meant", key.GetToken().Value, kind))
			}
			continue
		}
		if first, twice := seen[name.Value]; twice {
			d.addDiagnostic(at, joinPath(path, name.Value),
				fmt.Sprintf("is here a second time, after line %d", first))
			continue
		}
		seen[name.Value] = at.line
		entry(name.Value, at, value, joinPath(path, name.Value))
	}
}

func (d *decoder) decodeStruct(n ast.Node, at place, path string, v reflect.Value) {
	fields := d.fieldsOf(v.Type())
	d.decodeEntries(n, at, path, func(key string, keyAt place, value ast.Node, path string) {
		index, ok := fields[key]
		if !ok {
			names := make([]string, 0, len(fields))
			for name := range fields {
				names = append(names, name)
			}
			slices.Sort(names)
			d.reportShape(keyAt, path, "unknown key; the keys here are %s", strings.Join(names, ", "))
			return
		}
		at := entryPlace(keyAt, value)
		field := v.FieldByIndex(index)
		d.decodeValue(value, at, path, field)
		// The program reads a zero as "use the default", but the file asks for zero or an empty text. That is refused.
		switch field.Kind() { //nolint:exhaustive // the kinds that can be zero in the file
		case reflect.String, reflect.Int, reflect.Int64, reflect.Float64:
			if field.IsZero() && !d.broken[path] {
				d.reportShape(at, path, "is empty or zero: give it a value, or leave it out")
			}
		}
	})
}

// fieldsOf returns the fields of a struct by their keys, including those of inlined structs.
func (d *decoder) fieldsOf(t reflect.Type) map[string][]int {
	if fields, ok := d.fields[t]; ok {
		return fields
	}
	fields := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		if key := f.Tag.Get("yaml"); key != "" && key != "-" && key != ",inline" {
			fields[key] = f.Index
		}
	}
	d.fields[t] = fields
	return fields
}

// decodeText sets a value that has its own text format, for example a duration, from a scalar.
func (d *decoder) decodeText(n ast.Node, at place, path string, to any) {
	var s string
	switch n := n.(type) {
	case *ast.IntegerNode: // a size may be one
		s = n.Token.Value
	default:
		var ok bool
		if s, ok = d.decodeString(n, at, path); !ok {
			return
		}
	}
	var err error
	switch to := to.(type) {
	case *time.Duration:
		if *to, err = time.ParseDuration(s); err != nil {
			err = fmt.Errorf("%q is not a duration: write 30s, 10m or 1h30m", s)
		} else if *to < 0 {
			err = fmt.Errorf("%s is below zero", s)
		}
	case *time.Time:
		if *to, err = time.Parse(time.RFC3339, s); err != nil {
			err = fmt.Errorf("%q is not a time: write 2026-11-30T00:00:00Z", s)
		}
	case encoding.TextUnmarshaler:
		err = to.UnmarshalText([]byte(s))
	case interface{ UnmarshalYAML(func(any) error) error }:
		err = to.UnmarshalYAML(func(into any) error {
			p, ok := into.(*string)
			if !ok {
				return fmt.Errorf("%q is not a list", s)
			}
			*p = s
			return nil
		})
	}
	if err != nil {
		d.reportShape(at, path, "%s", err.Error())
	}
}

// decodeString returns the text of a scalar. Text that YAML reads as another type must be quoted, so that the author of
// the file need not know how YAML reads 1.10 or 0644.
func (d *decoder) decodeString(n ast.Node, at place, path string) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		if !isNumber(n) {
			return n.Value, true
		}
		d.reportShape(at, path, "%s is a number: quote it if text is meant", n.Value)
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		d.reportShape(at, path, "%s is %s: quote it if text is meant", n.GetToken().Value, nameKind(n))
	default:
		d.reportKind(n, at, path, "text")
	}
	return "", false
}

// isNumber reports whether a plain scalar is a number in YAML 1.2 that the library reads as text, because it is too
// large or has a form like 1e3.
func isNumber(n *ast.StringNode) bool {
	if n.Token.Type != token.StringType || n.Value == "" || !strings.ContainsRune("+-.0123456789", rune(n.Value[0])) {
		return false
	}
	_, err := strconv.ParseFloat(n.Value, 64)
	return err == nil || errors.Is(err, strconv.ErrRange)
}

func (d *decoder) decodeInteger(n ast.Node, at place, path string, v reflect.Value) {
	text := n.GetToken().Value
	if s, ok := n.(*ast.StringNode); n.Type() != ast.IntegerType && (!ok || !isNumber(s)) {
		d.reportKind(n, at, path, "a whole number")
		return
	}
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil || strconv.FormatInt(value, 10) != text || v.OverflowInt(value) {
		d.reportShape(at, path, "%s is not a plain decimal number, or too large", text)
		return
	}
	v.SetInt(value)
}

// decodeAny returns a value of the type that it has in the file.
func (d *decoder) decodeAny(n ast.Node, at place, path string) any {
	switch n := n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		m := map[string]any{}
		d.decodeEntries(n, at, path, func(key string, keyAt place, value ast.Node, path string) {
			var one any
			d.decodeValue(value, entryPlace(keyAt, value), path, reflect.ValueOf(&one).Elem())
			m[key] = one
		})
		return m
	case *ast.SequenceNode:
		list := make([]any, len(n.Values))
		d.decodeKind(n, at, path, reflect.ValueOf(&list).Elem())
		return list
	case *ast.BoolNode:
		return n.Value
	case *ast.IntegerNode:
		var i int64
		d.decodeInteger(n, at, path, reflect.ValueOf(&i).Elem())
		return i
	case *ast.FloatNode:
		return n.Value
	}
	s, _ := d.decodeString(n, at, path)
	return s
}

func (d *decoder) reportKind(n ast.Node, at place, path, want string) {
	got := nameKind(n)
	if got == "" {
		d.broken[path] = true
		return
	}
	d.reportShape(at, path, "is %s, but must be %s", got, want)
}

// nameKind returns a name for the kind of n, or an empty string if n was reported before.
func nameKind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.StringNode, *ast.LiteralNode:
		return "text"
	case *ast.BoolNode:
		return "true or false"
	case *ast.NullNode:
		return "null"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	}
	return ""
}
