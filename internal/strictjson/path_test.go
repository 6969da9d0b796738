package strictjson_test

import (
	"strings"
	"testing"

	"sallyport/internal/strictjson"
)

func mustParse(t testing.TB, text string) strictjson.Path {
	t.Helper()
	p, err := strictjson.ParsePath(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustDecode(t testing.TB, text string) any {
	t.Helper()
	v, err := strictjson.Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

const pathDocument = `{"push":{"changes":[{"new":{"name":"main"}},{"new":null}]},"a.b":{"]\"":1},"":{"":"empty"},
	"é 😀":2,"0":"zero","none":[],"deep":[[1,[2,3]]],"yes":true,"c\u0000":4}`

func TestPath_Lookup(t *testing.T) {
	v := mustDecode(t, pathDocument)
	for text, want := range map[string]string{
		`body.push.changes[0].new.name`:                   "main",
		`body.push.changes[-2].new.name`:                  "main",
		`body["push"]["changes"][0]["new"]["name"]`:       "main",
		`body["\u0070ush"].changes[0]["new"].name`:        "main",
		`body["a.b"]["]\""]`:                              "1",
		`body[""][""]`:                                    "empty",
		`body.é 😀`:                                        "2",
		`body.0`:                                          "zero",
		`body.deep[0][1][-1]`:                             "3",
		`body["c\u0000"]`:                                 "4",
		`body.yes`:                                        "true",
		`body.push.changes[1].new`:                        "! no body.push.changes[1].new",
		`body.push.changes[1].new.name`:                   "! no body.push.changes[1].new.name: there is no body.push.changes[1].new",
		`body.push.changes[2].new`:                        "! no body.push.changes[2].new: body.push.changes has the length 2",
		`body.push.changes[-3]`:                           "! no body.push.changes[-3]: body.push.changes has the length 2",
		`body.none[-1]`:                                   "! no body.none[-1]: body.none has the length 0",
		`body.push.changes.0.new`:                         "! no body.push.changes.0.new: body.push.changes is a list, so write body.push.changes[0]",
		`body.push.changes.new`:                           "! no body.push.changes.new: body.push.changes is a list",
		`body.push[0]`:                                    "! no body.push[0]: body.push is an object",
		`body[0]`:                                         "! no body[0]: body is an object",
		`body.yes[0]`:                                     "! no body.yes[0]: body.yes is true or false",
		`body["0"].x`:                                     "! no body.0.x: body.0 is text",
		`body["a.b"]["]\""].x`:                            `! no body["a.b"]["]\""].x: body["a.b"]["]\""] is a number`,
		`body.missing`:                                    "! no body.missing",
		`body.missing[0].x`:                               "! no body.missing[0].x: there is no body.missing",
		`body.deep[2147483647]`:                           "! no body.deep[2147483647]: body.deep has the length 1",
		`body.deep[-2147483648]`:                          "! no body.deep[-2147483648]: body.deep has the length 1",
		`body` + strings.Repeat(`.x`, 64):                 "! no body" + strings.Repeat(".x", 64) + ": there is no body.x",
		`body["push"]["changes"][0]["new"]["name"]["\n"]`: `! no body.push.changes[0].new.name["\n"]: body.push.changes[0].new.name is text`,
	} {
		p := mustParse(t, text)
		got, err := p.Lookup(v)
		if err != nil {
			got = "! " + err.Error()
		}
		if describeValue(got) != want {
			t.Errorf("%s: got %v, want %s", text, got, want)
		}
		if again := mustParse(t, p.String()); again.String() != p.String() {
			t.Errorf("%s is written as %s and read as %s", text, p, again)
		}
	}
	if got, err := mustParse(t, "body[0].x").Lookup(mustDecode(t, `[{"x":"first"}]`)); got != "first" {
		t.Errorf("top-level list: %v, %v", got, err)
	}
	if _, err := mustParse(t, "body.x.y").Lookup(nil); err == nil || err.Error() != "no body.x.y" {
		t.Errorf("no body: %v", err)
	}
}

func describeValue(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		return "true"
	case interface{ String() string }:
		return v.String()
	}
	return "?"
}

func TestParsePath_Malformed(t *testing.T) {
	for text, want := range map[string]string{
		`body.`:                                 `has an empty name: write [""]`,
		`body..a`:                               `has an empty name`,
		`body.a[0].`:                            `has an empty name`,
		`body.a[0]b`:                            `has "b" after a bracket: write a dot before a name`,
		`body.a["b"]c`:                          `has "c" after a bracket`,
		`body.a]`:                               `write ["a]"]`,
		`body.a"b"`:                             `write ["a\"b\""]`,
		`body.a[`:                               `has [ without ]`,
		`body.a[]`:                              `has []: write [0] for the first element, [-1] for the last`,
		`body.a[*]`:                             `has [*]`,
		`body.a[b]`:                             `or ["b"] for a name`,
		`body.a['b']`:                           `or ["b"] for a name`,
		`body.a[+1]`:                            `has [+1]`,
		`body.a[01]`:                            `has [01]`,
		`body.a[-0]`:                            `has [-0]`,
		`body.a[ 1]`:                            `has [ 1]`,
		`body.a[1:2]`:                           `has [1:2]`,
		`body.a[2147483648]`:                    `has [2147483648]`,
		`body["a`:                               `has a name in quotes that is not written as in JSON`,
		`body["a"`:                              `has a name in quotes`,
		`body["a\"]`:                            `has a name in quotes`,
		`body["a\x"]`:                           `has a name in quotes`,
		`body["\ud800"]`:                        `has a name in quotes`,
		"body[\"\xff\"]":                        `is not valid UTF-8`,
		"body.\xff":                             `is not valid UTF-8`,
		`body["a"b"]`:                           `has a name in quotes`,
		`body` + strings.Repeat(".x", 65):       `more than 64 steps`,
		`body` + strings.Repeat("[0]", 100_000): `more than 64 steps`,
	} {
		if p, err := strictjson.ParsePath(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80q: got %s, %v, want %s", text, p, err, want)
		}
	}
}

// TestPath_LongList checks that an element of a list of 100,000 is found, from both ends, and without allocation.
func TestPath_LongList(t *testing.T) {
	const elements = 100_000
	text := `{"a":[` + strings.Repeat("{},", elements-1) + `{"x":"last"}]}`
	v := mustDecode(t, text)
	for _, path := range []string{"body.a[99999].x", "body.a[-1].x"} {
		if got, err := mustParse(t, path).Lookup(v); got != "last" {
			t.Errorf("%s: %v, %v", path, got, err)
		}
	}
	p := mustParse(t, "body.a[-1].x")
	if n := testing.AllocsPerRun(10, func() { _, _ = p.Lookup(v) }); n > 0 {
		t.Errorf("a lookup allocates %v times", n)
	}
}

func TestNamesPath_AnyCharacters(t *testing.T) {
	p := strictjson.NamesPath("claim", "kubernetes.io", "name space", "")
	if got, want := p.String(), `claim["kubernetes.io"].name space[""]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if names, ok := p.Names(); !ok || len(names) != 3 || p.Root() != "claim" {
		t.Errorf("got %q, %v", names, ok)
	}
	if names, ok := mustParse(t, "body.a[0]").Names(); ok {
		t.Errorf("got %q", names)
	}
}

// FuzzParsePath parses any text: a path that is written again is the same path.
func FuzzParsePath(f *testing.F) {
	f.Add(`body.push.changes[0].new["a.b"]`)
	f.Add(`body["\u0000\\\""][-1]`)
	f.Add(`body["�"]["<"]. [0]`)
	f.Add("body.\x80")
	v := mustDecode(f, pathDocument)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := strictjson.ParsePath(text)
		if err != nil {
			return
		}
		again, err := strictjson.ParsePath(p.String())
		if err != nil || again.String() != p.String() {
			t.Fatalf("%q is written as %q and read as %q, %v", text, p, again, err)
		}
		one, _ := p.Lookup(v)
		two, _ := again.Lookup(v)
		if describeValue(one) != describeValue(two) {
			t.Errorf("%q finds %v, and %q finds %v", text, one, again, two)
		}
	})
}
