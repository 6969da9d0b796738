package strictjson_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"sallyport/internal/strictjson"
)

func TestDecode_Ambiguous(t *testing.T) {
	for name, text := range map[string]string{
		"a name twice":                    `{"a":1,"a":2}`,
		"a name twice, further down":      `{"a":[{"b":{"c":1,"c":1}}]}`,
		"a name twice, once escaped":      `{"a":1,"\u0061":2}`,
		"a value and another":             `{} {}`,
		"a value and a bracket":           `{}]`,
		"a value and text":                `1 x`,
		"nothing":                         ``,
		"blanks":                          " \n",
		"invalid UTF-8":                   "\"\xff\"",
		"half of a surrogate pair":        `"\ud800"`,
		"half of a pair, in capitals":     `"\uD83D"`,
		"the second half alone":           `"\udc00"`,
		"the halves in the wrong order":   `"\udc00\ud800"`,
		"two first halves":                `"\ud800\ud800"`,
		"half of a pair, then an escape":  `"\ud800\n"`,
		"half of a pair in a name":        `{"\ud800":1}`,
		"half of a pair after backslash":  `"\\\ud800"`,
		"a comment":                       `{} // x`,
		"a comma too many":                `[1,]`,
		"a comma too many in an object":   `{"a":1,}`,
		"a comma missing":                 `[1 2]`,
		"a bracket of the other kind":     `[1}`,
		"an end that is missing":          `{"a":[1`,
		"single quotes":                   `{'a':1}`,
		"NaN":                             `NaN`,
		"a byte order mark":               "\ufeff{}",
		"a control character in a string": "\"\x01\"",
		"a number that starts with zero":  `01`,
		"65 levels":                       strings.Repeat("[", 65) + strings.Repeat("]", 65),
	} {
		if v, err := strictjson.Decode([]byte(text)); err == nil {
			t.Errorf("%s is read: %q as %#v", name, text, v)
		}
	}
}

func TestDecode_Valid(t *testing.T) {
	for text, want := range map[string]any{
		`null`:                     nil,
		` true `:                   true,
		`12345678901234567890.0e1`: json.Number("12345678901234567890.0e1"), // as it was written
		`"\ud83d\ude00"`:           "😀",
		`"\\ud800"`:                `\ud800`, // a backslash and letters
		`"\ufffd"`:                 "\ufffd",
		"\"\ufffd\"":               "\ufffd",
		`[]`:                       []any{},
		`{"a":{"a":1},"b":{"a":1}}`: map[string]any{
			"a": map[string]any{"a": json.Number("1")}, "b": map[string]any{"a": json.Number("1")},
		},
	} {
		if v, err := strictjson.Decode([]byte(text)); err != nil || !reflect.DeepEqual(v, want) {
			t.Errorf("%s is read as %#v, %v", text, v, err)
		}
	}
	if _, err := strictjson.Decode([]byte(strings.Repeat("[", 64) + strings.Repeat("]", 64))); err != nil {
		t.Errorf("64 levels: %v", err)
	}
}

func TestLookup_NotAnObject(t *testing.T) {
	v, err := strictjson.Decode([]byte(`{"a":{"b":1,"n":null,"":2},"l":[{"b":1}],"k8s.io":{"x":3}}`))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]any{"a/b": json.Number("1"), "k8s.io/x": json.Number("3"), "a/": json.Number("2")} {
		if got, ok := strictjson.Lookup(v, strings.Split(path, "/")...); !ok || got != want {
			t.Errorf("%s: %v, %v", path, got, ok)
		}
	}
	for _, path := range []string{"x", "a/n", "a/b/c", "l/b", "l/0", "l/0/b", "k8s/io/x"} {
		if got, ok := strictjson.Lookup(v, strings.Split(path, "/")...); ok {
			t.Errorf("%s: %v", path, got)
		}
	}
	if _, ok := strictjson.Lookup(nil, "a"); ok {
		t.Error("found something in nothing")
	}
}

// FuzzDecode compares Decode with encoding/json: a value that Decode accepts, encoding/json also accepts and reads in
// the same way, and no object has a name twice.
func FuzzDecode(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := strictjson.Decode(data)
		if err != nil {
			return
		}
		if !json.Valid(data) {
			t.Fatalf("%q is not JSON but was read as %#v", data, got)
		}
		dec := json.NewDecoder(strings.NewReader(string(data)))
		dec.UseNumber()
		var want any
		if err := dec.Decode(&want); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: %#v, and encoding/json has %#v, %v", data, got, want, err)
		}
		// Written again and without its commas in strings, a value has as many
		// names as before unless some stood twice.
		if again, err := json.Marshal(got); err != nil || countMembers(again) != countMembers(data) {
			t.Fatalf("%q has %d names and %q has %d, %v", data, countMembers(data), again, countMembers(again), err)
		}
	})
}

// countMembers returns the number of members of all objects.
func countMembers(data []byte) (n int) {
	inString := false
	for i := 0; i < len(data); i++ {
		switch {
		case inString && data[i] == '\\':
			i++
		case data[i] == '"':
			inString = !inString
		case !inString && data[i] == ':':
			n++
		}
	}
	return n
}
