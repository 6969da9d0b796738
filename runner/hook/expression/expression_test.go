package expression_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sallyport/internal/strictjson"
	"sallyport/runner/hook/expression"
)

// delivery returns the variables of a delivery with a JSON body.
func delivery(t testing.TB, body string) expression.Variables {
	t.Helper()
	v, err := decode(body)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func decode(body string) (expression.Variables, error) {
	v, err := strictjson.Decode([]byte(body))
	return func(name string) (any, error) {
		switch name {
		case "event":
			return "push", nil
		case "body":
			return v, nil
		case "query", "header":
			return expression.Object{
				Member: func(name string) (any, bool) {
					return map[string]any{"a": "1", "twice": expression.Repeated{}}[name], name == "a" || name == "twice"
				},
				Names: func() []string { return []string{"a", "twice"} }, Length: 2,
			}, nil
		}
		return nil, expression.Missing("the delivery has no token")
	}, err
}

func compileCondition(t testing.TB, text string) *expression.Expression {
	t.Helper()
	e, problems := expression.CompileCondition(text)
	if len(problems) > 0 {
		t.Fatalf("%s: %v", text, problems)
	}
	return e
}

const push = `{"ref":"refs/heads/main","deleted":false,"base":null,"n":12,"big":9007199254740993,"half":0.5,"float":95.0,
	"exp":1e3,"huge":12345678901234567890,"long":0.1000000000000000055511,"far":1e30,"self":{"a":[1,{"b":"x"}]},
	"commits":[{"id":"c1","modified":["src/a.go","docs/b.md"],"added":[]},{"id":"c2","added":["docs/c.md"]}],
	"labels":["a","b"],"text":"Repo:Tag"}`

// TestExplain_Conditions evaluates conditions. The result is "true", "false", or why there is none.
func TestExplain_Conditions(t *testing.T) {
	from := delivery(t, push)
	for text, want := range map[string]string{
		`event == "push" && body.ref == "refs/heads/main"`:               "true",
		`event == "push" && body.deleted`:                                "false",
		`!body.deleted`:                                                  "true",
		`body.commits.exists(c, c.added.exists(f, f.startsWith("d")))`:   "true",
		`body.commits.all(c, c.id.startsWith("c"))`:                      "true",
		`body.commits.exists_one(c, c.id == "c2")`:                       "true",
		`size(body.commits.filter(c, has(c.modified))) == 1`:             "true",
		`body.commits.map(c, c.id) == ["c1", "c2"]`:                      "true",
		`(body.commits[0].modified + body.commits[1].added).size() == 3`: "true",
		`body.ref in ["refs/heads/main", "x"]`:                           "true",
		`"b" in body.labels`:                                             "true",
		`"ref" in body`:                                                  "true",
		`body.ref.matches("^refs/heads/(main|dev)$")`:                    "true",
		`body.missing == "x"`:                                            "no such key: missing",
		`body.missing != "x"`:                                            "no such key: missing",
		`!(body.missing == "x")`:                                         "no such key: missing",
		`body.missing == "x" || event == "push"`:                         "true", // as CEL defines it
		`has(body.missing)`:                                              "false",
		`has(body.base) && body.base == null`:                            "true",
		`body.base.id == "x"`:                                            "no such key: id",
		`body.ref.id == "x"`:                                             "no such key: id",
		`body.commits[2].id == "x"`:                                      "index out of bounds: 2",
		`body["missing"] == "x"`:                                         "no such key: missing",
		`body[body.ref] == "x"`:                                          "no such key: refs/heads/main",
		`claims.sub == "x"`:                                              "the delivery has no token",
		`!has(claims.sub)`:                                               "the delivery has no token",
		`body.ref`:                                                       "the result is not true or false",
		`body.ref > 3`:                                                   "no such overload",
		`body.n / 0 == 1`:                                                "division by zero",
		`query.a == "1" && header["a"] == "1"`:                           "true",
		`query.twice == "1"`:                                             "the value is given more than once",
		`query.b == "1"`:                                                 "no such key: b",
		`!has(header.b)`:                                                 "true",
		`body.self == {"a": [1, {"b": "x"}]}`:                            "true",
		`body.self != {"a": [1, {"b": "y"}]}`:                            "true",
		`{"b": "x"} in body.self.a`:                                      "true",
		`body.map(k, k)[0] == "base"`:                                    "true", // sorted
		`type(body.ref) == string`:                                       "true",
		`body.ref.split("/")[2] == "main"`:                               "true",
		`body.ref.replace("refs/heads/", "") == "main"`:                  "true",
		`body.text.lowerAscii().substring(5) == "tag"`:                   "true",
		`body.text.substring(9) == ""`:                                   "index out of bounds",
		`body.ref == "refs/heads/main" ? body.n == 12 : false`:           "true",
	} {
		operand, why, err := compileCondition(t, text).Explain(from)
		got := why
		switch {
		case err != nil:
			got = "error: " + err.Error()
		case operand == "":
			got = "true"
		case why == "":
			got = "false"
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// TestExplain_Operand names the operand of && that is not true.
func TestExplain_Operand(t *testing.T) {
	e := compileCondition(t, "event == 'push' &&\n  body.commits.exists(c, c.id == \"c3\") && body.missing")
	if operand, why, err := e.Explain(delivery(t, push)); operand != `body.commits.exists(c, c.id == "c3")` || why != "" {
		t.Errorf("got %q, %q, %v", operand, why, err)
	}
}

// TestExplain_Numbers compares numbers by their value, or not at all.
func TestExplain_Numbers(t *testing.T) {
	const inexact = "the value is a number that cannot be represented exactly"
	from := delivery(t, push)
	for text, want := range map[string]string{
		`body.big == 9007199254740993`:           "true",
		`body.big == 9007199254740992`:           "false",
		`body.big > 9007199254740992`:            "true",
		`body.half == 0.5 && body.half < 1`:      "true",
		`body.float == 95 && body.float == 95.0`: "true",
		`body.exp == 1000`:                       "true",
		`body.huge > 0`:                          inexact,
		`body.huge == body.huge`:                 inexact,
		`[body.huge] == [1]`:                     inexact,
		`body.long == 0.1`:                       inexact,
		`body.far > 0`:                           inexact,
		`body.n * 1000000000000000000 > 0`:       "integer overflow",
		`double(body.big) > 1.0`:                 "the result is a number that cannot be represented exactly",
		`double(body.n) / 0.0 > 1.0`:             "the result is a number that cannot be represented exactly",
		`body.n == "12"`:                         "false",
	} {
		operand, why, err := compileCondition(t, text).Explain(from)
		got := why
		if err != nil {
			got = err.Error()
		} else if operand == "" {
			got = "true"
		} else if why == "" {
			got = "false"
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// TestCompileCondition_Problems has the place of each problem.
func TestCompileCondition_Problems(t *testing.T) {
	for text, want := range map[string]string{
		"event == ":                     "Syntax error",
		"event == \"push\" &&\n  bdy.x": "undeclared reference to 'bdy' (did you mean 'body'?)",
		"event == 3":                    "found no matching overload for '_==_' applied to '(string, int)'",
		"event":                         "the result is of the type string, but must be bool",
		"event.foo == 3":                "type 'string' does not support field selection",
		"now() > 3":                     "undeclared reference to 'now'",
		`timestamp("2026-01-01T00:00:00Z") == body.t`:                "undeclared reference to 'timestamp'",
		`body.ref.matches("(")`:                                      "invalid matches argument",
		`body.ref.matches(body.pattern)`:                             "matches needs a regular expression in quotes",
		`"x".matches(body.pattern)`:                                  "matches needs a regular expression in quotes",
		`header[body.x] == "x"`:                                      "name a header here",
		`header.exists(h, h == "x")`:                                 "name a header here",
		`"x" in header`:                                              "name a header here",
		`[header][0].x == "y"`:                                       "name a header here",
		`body.a.exists(header, header == 1)`:                         "header is a variable already",
		`body.id == 9007199254740992.0`:                              "must be below 2^53",
		`google.protobuf.Value{} == body.x`:                          "a message cannot be created here",
		strings.Repeat("(", 300) + "true" + strings.Repeat(")", 300): "recursion limit",
		`event == "` + strings.Repeat("x", 10_000) + `"`:             "expression code point size exceeds limit",
	} {
		e, problems := expression.CompileCondition(text)
		if e != nil || len(problems) == 0 || !strings.Contains(problems[0].Text, want) {
			t.Errorf("%.60s: got %v, want %s", text, problems, want)
		}
	}
	_, problems := expression.CompileCondition("event == 'é' &&\n  event == bdy.x && cly")
	if len(problems) != 2 || problems[0].Offset != 28 || problems[1].Offset != 37 {
		t.Errorf("got %v", problems)
	}
}

// TestExpression_Reads reports the parts of a delivery that an expression reads.
func TestExpression_Reads(t *testing.T) {
	e := compileCondition(t, `event == "push" && header["X-A"] == "1" && has(header.b)`)
	if !e.Reads("event") || !e.Reads("header") || e.Reads("body") || e.Reads("claims") {
		t.Error("wrong variables")
	}
	if names := e.HeaderNames(); !slices.Equal(names, []string{"X-A", "b"}) || e.HeaderOffset("X-A") != 19 ||
		e.HeaderOffset("b") != 47 {
		t.Errorf("got %q", names)
	}
}

// TestScalar_Results checks the canonical form of results.
func TestScalar_Results(t *testing.T) {
	from := delivery(t, push)
	for text, want := range map[string]string{
		`body.ref.substring(11)`:       `main`,
		`body.n + 1`:                   `13`,
		`body.half + 1.0`:              `1.5`,
		`body.float`:                   `95`,
		`size(body.labels) == 2`:       `true`,
		`string(body.n) + "-" + event`: `12-push`,
		`body.base`:                    `missing: the result is null`,
		`body.nothing`:                 `missing: no such key: nothing`,
		`body.labels`:                  `error: the result is a list or an object, and one value is needed`,
		`body.huge`:                    `error: the value is a number that cannot be represented exactly`,
	} {
		e, problems := expression.CompileValue(text, "string", "int", "double", "bool")
		if len(problems) > 0 {
			t.Errorf("%s: %v", text, problems)
			continue
		}
		v, err := e.Scalar(from)
		got := ""
		switch n := v.(type) {
		case string:
			got = n
		case bool:
			got = "true"
		case interface{ String() string }:
			got = n.String()
		}
		if errors.Is(err, expression.ErrMissing) {
			got = "missing: " + err.Error()
		} else if err != nil {
			got = "error: " + err.Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
	if _, problems := expression.CompileValue("event", "int"); len(problems) != 1 ||
		problems[0].Text != "the result is of the type string, but must be int" {
		t.Errorf("got %v", problems)
	}
}

// TestJSON_Results checks that a result is the JSON that type: json accepts.
func TestJSON_Results(t *testing.T) {
	from := delivery(t, push)
	for text, want := range map[string]string{
		`body.self`:                 `{"a":[1,{"b":"x"}]}`,
		`body.commits.map(c, c.id)`: `["c1","c2"]`,
		`{"ref": body.ref, "b": [], "a<": body.base}`: `{"a<":null,"b":[],"ref":"refs/heads/main"}`,
		`[body.huge]`: `error: the value is a number that cannot be represented exactly`,
		`{1: 2}`:      `error: the result has an object with a name that is not text`,
		`[string]`:    `error: the result has a type, which JSON does not have`,
	} {
		e, problems := expression.CompileValue(text, "list", "map")
		if len(problems) > 0 {
			t.Errorf("%s: %v", text, problems)
			continue
		}
		got, err := e.JSON(from, 1000)
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
		if err == nil {
			if compact, err := strictjson.Compact([]byte(got), 1000); err != nil || compact != got {
				t.Errorf("%s is not compact: %s, %v", got, compact, err)
			}
		}
	}
}

// TestStandardSubset_Functions has no function of times, which would read a file or a clock.
func TestStandardSubset_Functions(t *testing.T) {
	for _, text := range []string{`timestamp("x")`, `duration("1s")`, `bytes("x")`, `uint(1)`, `body.getFullYear()`} {
		if _, problems := expression.CompileValue(text, "string"); len(problems) == 0 ||
			!slices.ContainsFunc(problems, func(p expression.Problem) bool { return strings.Contains(p.Text, "undeclared") }) {
			t.Errorf("%s: %v", text, problems)
		}
	}
}
