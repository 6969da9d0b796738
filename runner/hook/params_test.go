package hook_test

import (
	"encoding/json"
	"errors"
	"maps"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"testing"

	"sallyport/runner/hook"
)

// delivery returns an Input with the same value in every source, as text.
func delivery(value string) hook.Input {
	quoted, _ := json.Marshal(value)
	return hook.Input{
		Body:   []byte(`{"a":{"b":` + string(quoted) + `}}`),
		Query:  url.Values{"q": {value}},
		Header: textproto.MIMEHeader{"X-Event": {value}},
		Claims: map[string]any{"k8s.io": map[string]any{"ns": value}},
	}
}

// oneParamHook returns a hook with x as its only parameter.
func oneParamHook(t testing.TB, p hook.ParamSpec) *hook.Hook {
	t.Helper()
	return newHook(t, hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Params: map[string]hook.ParamSpec{"x": p}})
}

func wantParam(t *testing.T, h *hook.Hook, in hook.Input, want string) {
	t.Helper()
	v, problems, err := h.Bind(in)
	if err != nil || len(problems) > 0 || v["x"] != want {
		t.Errorf("want %.40q, got %.40q, %v, %v", want, v["x"], problems, err)
		return
	}
	if argv, err := h.Argv(v); err != nil || len(argv) != 2 || argv[1] != "--x="+want {
		t.Errorf("argv %.80q, %v", argv, err)
	}
}

func turnAway(t *testing.T, h *hook.Hook, in hook.Input, words string) {
	t.Helper()
	v, problems, err := h.Bind(in)
	if err != nil || len(problems) != 1 || problems[0].Param != "x" || !strings.Contains(problems[0].Text, words) || v != nil {
		t.Errorf("want x %s, got %.40q, %v, %v", words, v, problems, err)
	}
}

func jsonBody(text string) hook.Input {
	return hook.Input{Body: []byte(text)}
}

// oneOfForm is like one, for a hook that reads forms.
func oneOfForm(t testing.TB, p hook.ParamSpec) *hook.Hook {
	t.Helper()
	return newHook(t, hook.Spec{
		Command: []string{"/bin/echo", "--x={x}"}, Params: map[string]hook.ParamSpec{"x": p}, Body: hook.BodySpec{As: "form"},
	})
}

func bodyInput(text string) hook.Input { return hook.Input{Body: []byte(text)} }

func TestBind_EverySource(t *testing.T) {
	for _, from := range []hook.From{{"body", "a", "b"}, {"query", "q"}, {"header", "x-event"}, {"claim", "k8s.io", "ns"}} {
		h := oneParamHook(t, hook.ParamSpec{From: from, Match: "(?s).*"})
		for _, value := range []string{
			"", "a b", "$(reboot)", "`reboot`", "; reboot", "a\nb\r\n", "'\"\\", "{x}", "{{", "%s%n", "*", "~", "é😀\ufffd", "--flag", strings.Repeat("v", 64<<10),
		} {
			wantParam(t, h, delivery(value), value)
		}
		turnAway(t, h, delivery("a\x00b"), "NUL")
		turnAway(t, h, delivery(strings.Repeat("v", 64<<10+1)), "longer than")
		turnAway(t, h, hook.Input{}, "is missing: no "+from.String())
	}
	for _, from := range []hook.From{{"query", "q"}, {"header", "X-Event"}} {
		turnAway(t, oneParamHook(t, hook.ParamSpec{From: from, Match: "(?s).*"}), delivery("\xff"), "UTF-8")
	}
	h := oneOfForm(t, textParam("body", "a", "b"))
	wantParam(t, h, bodyInput("a.b=1%202+3"), "1 2 3")
	turnAway(t, h, bodyInput("a.b=%ff"), "UTF-8")
	turnAway(t, h, bodyInput("a.b=%00"), "NUL")
	turnAway(t, h, bodyInput("a=1"), "is missing: no body.a.b in the form")
}

// TestBind_Paths checks that a path into lists finds its value, and that a missing step is named.
func TestBind_Paths(t *testing.T) {
	from := func(path string) *hook.Hook {
		return oneParamHook(t, hook.ParamSpec{From: hook.From{path}, Match: ".*"})
	}
	push := jsonBody(`{"push":{"changes":[{"new":{"name":"main"}},{"new":null}]},"a.b":"dot"}`)
	wantParam(t, from("body.push.changes[0].new.name"), push, "main")
	wantParam(t, from("body.push.changes[-2].new.name"), push, "main")
	wantParam(t, from(`body["a.b"]`), push, "dot")
	wantParam(t, from(`body[-1].ref`), jsonBody(`[{},{"ref":"main"}]`), "main")
	wantParam(t, from(`claim.groups[1]`), hook.Input{Claims: map[string]any{"groups": []any{"a", "b"}}}, "b")
	wantParam(t, from(`query["a.b"]`), hook.Input{Query: url.Values{"a.b": {"1"}}}, "1")
	turnAway(t, from("body.push.changes[1].new.name"), push, "there is no body.push.changes[1].new")
	turnAway(t, from("body.push.changes[2].new.name"), push, "body.push.changes has the length 2")
	turnAway(t, from("body[0].ref"), push, "body is an object")
	turnAway(t, from("body.push.changes"), push, "is a list or an object")
	fields := hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Body: hook.BodySpec{As: "form"}}
	fields.Params = map[string]hook.ParamSpec{"x": {From: hook.From{`body["a[0]"]`}, Match: ".*"}}
	wantParam(t, newHook(t, fields), bodyInput("a%5B0%5D=1"), "1")
}

func TestParams_Types(t *testing.T) {
	from := hook.From{"body", "x"}
	bounded := hook.ParamSpec{From: from, Type: "int", Min: new(int64(-5)), Max: new(int64(10))}
	number, field := oneParamHook(t, bounded), oneOfForm(t, bounded)
	for _, text := range []string{"-5", "0", "10"} {
		wantParam(t, number, jsonBody(`{"x":`+text+`}`), text)
		wantParam(t, field, bodyInput("x="+text), text)
	}
	for text, words := range map[string]string{
		"-6": "below -5", "11": "above 10", "1.0": "not an integer", "1e1": "not an integer", "-0": "not an integer",
		"9223372036854775808": "not an integer", "true": "not an integer", `"1"`: "a text and not an integer",
	} {
		turnAway(t, number, jsonBody(`{"x":`+text+`}`), words)
	}
	for _, text := range []string{"", "007", "%2B1", "+1", "1+", "0x1", "1_0", "%D9%A1"} { // the last is the Arabic digit one
		turnAway(t, field, bodyInput("x="+text), "not an integer")
	}
	yes := oneParamHook(t, hook.ParamSpec{From: from, Type: "bool"})
	wantParam(t, yes, jsonBody(`{"x":true}`), "true")
	yesForm := oneOfForm(t, hook.ParamSpec{From: from, Type: "bool"})
	wantParam(t, yesForm, bodyInput("x=false"), "false")
	for _, text := range []string{`"true"`, "1", "0"} {
		turnAway(t, yes, jsonBody(`{"x":`+text+`}`), "not true or false")
	}
	turnAway(t, yesForm, bodyInput("x=TRUE"), "not true or false")
	loose := oneParamHook(t, hook.ParamSpec{From: from, Match: `.*`})
	for text, want := range map[string]string{`1.50`: "1.50", `1e400`: "1e400", `false`: "false", `"1"`: "1"} {
		wantParam(t, loose, jsonBody(`{"x":`+text+`}`), want)
	}
	for _, text := range []string{`[]`, `["a"]`, `{}`, `{"y":1}`} {
		turnAway(t, loose, jsonBody(`{"x":`+text+`}`), "a list or an object")
	}
	turnAway(t, loose, jsonBody(`{"x":null}`), "is missing")
	turnAway(t, loose, jsonBody(`["x"]`), "is missing")
	turnAway(t, loose, hook.Input{}, "is missing")
}

// TestClaim_TypeAsSigned checks that a claim has the type with which it was signed.
func TestClaim_TypeAsSigned(t *testing.T) {
	number := oneParamHook(t, hook.ParamSpec{From: hook.From{"claim", "n"}, Type: "int"})
	wantParam(t, number, hook.Input{Claims: map[string]any{"n": json.Number("7")}}, "7")
	turnAway(t, number, hook.Input{Claims: map[string]any{"n": "7"}}, "a text and not an integer")
	turnAway(t, number, hook.Input{Claims: map[string]any{"n": []any{json.Number("7")}}}, "a list or an object")
}

// TestMatch_WholeValue checks that match applies to the whole value.
func TestMatch_WholeValue(t *testing.T) {
	date := oneParamHook(t, hook.ParamSpec{From: hook.From{"query", "q"}, Match: `\d{4}|x`})
	wantParam(t, date, delivery("2026"), "2026")
	for _, value := range []string{"2026\n", "\n2026", "20261", "2026x", "yx", ""} {
		turnAway(t, date, delivery(value), "does not match")
	}
	lines := oneParamHook(t, hook.ParamSpec{From: hook.From{"query", "q"}, Match: `(?m)^\d+$`})
	turnAway(t, lines, delivery("1\n; reboot"), "does not match")
	region := oneParamHook(t, hook.ParamSpec{From: hook.From{"query", "q"}, Enum: []string{"eu", "us"}})
	wantParam(t, region, delivery("eu"), "eu")
	turnAway(t, region, delivery("EU"), "not one of")
	turnAway(t, region, delivery(""), "not one of")
}

func TestBind_Default(t *testing.T) {
	region := hook.ParamSpec{From: hook.From{"body", "x"}, Enum: []string{"eu", "us"}, Default: new("eu")}
	h, formHook := oneParamHook(t, region), oneOfForm(t, region)
	for _, in := range []hook.Input{{}, jsonBody(`{}`), jsonBody(`{"x":null}`)} {
		wantParam(t, h, in, "eu")
	}
	wantParam(t, formHook, bodyInput("y=1"), "eu")
	turnAway(t, h, jsonBody(`{"x":""}`), "not one of")
	turnAway(t, formHook, bodyInput("x="), "not one of")
}

// TestParams_Duplicate checks that a parameter that is given twice is refused.
func TestParams_Duplicate(t *testing.T) {
	turnAway(t, oneParamHook(t, textParam("query", "q")), hook.Input{Query: url.Values{"q": {"a", "a"}}}, "more than once")
	turnAway(t, oneParamHook(t, textParam("header", "X-A")), hook.Input{Header: textproto.MIMEHeader{"X-A": {"a", "b"}}}, "more than once")
	turnAway(t, oneOfForm(t, textParam("body", "x")), bodyInput("x=1&x=2"), "more than once")
	if _, _, err := oneParamHook(t, textParam("body", "x")).Bind(jsonBody(`{"x":1,"x":2}`)); !errors.Is(err, hook.ErrBody) {
		t.Errorf("got %v", err)
	}
}

func TestBodyOfAnotherForm_IsMalformed(t *testing.T) {
	wantMalformed := func(h *hook.Hook, body string) {
		t.Helper()
		v, problems, err := h.Bind(hook.Input{Body: []byte(body)})
		if !errors.Is(err, hook.ErrBody) || v != nil || problems != nil {
			t.Errorf("%q: %v, %v, %v", body, v, problems, err)
		}
	}
	for _, body := range []string{`{`, `{"x":1} {}`, "{\"x\":\"\xff\"}", "x=1", "payload=%7B%7D", "--b\r\nContent-Disposition: form-data\r\n"} {
		wantMalformed(oneParamHook(t, textParam("body", "x")), body)
	}
	for _, body := range []string{"x=%zz", "x=1;y=2", `{"x":"1"}`, ` {"a":"&x=1"}`, "\n[\"&x=1\"]", "\"&x=1\"", "\ufeff{&x=1"} {
		wantMalformed(oneOfForm(t, textParam("body", "x")), body)
	}
	// A hook without parameters from the body accepts any body.
	wantParam(t, oneParamHook(t, textParam("query", "q")), hook.Input{Body: []byte("{"), Query: url.Values{"q": {"1"}}}, "1")
}

func TestBind_AllProblemsWithoutValues(t *testing.T) {
	spec := hook.Spec{Command: []string{"/bin/echo", "{a}{b}{c}{d}"}, Params: map[string]hook.ParamSpec{
		"a": {From: hook.From{"body", "a"}, Type: "int"}, "b": {From: hook.From{"body", "b"}, Enum: []string{"x"}},
		"c": textParam("body", "c"), "d": textParam("body", "d"),
	}}
	_, problems, err := newHook(t, spec).Bind(jsonBody(`{"a":"s3cret","b":["s3cret"],"d":"fine"}`))
	if err != nil || len(problems) != 3 {
		t.Fatalf("got %v, %v", problems, err)
	}
	for i, name := range []string{"a", "b", "c"} {
		if problems[i].Param != name || strings.Contains(problems[i].Text, "s3cret") {
			t.Errorf("got %v", problems[i])
		}
	}
	spec.Params["c"] = hook.ParamSpec{From: hook.From{"body", "c"}, Match: "x"}
	_, problems, err = newHook(t, spec).Bind(jsonBody(`{"a":7.5,"b":"s3cret","c":"s3cret","d":"fine"}`))
	if err != nil || len(problems) != 3 {
		t.Errorf("got %v, %v", problems, err)
	}
}

func TestArgv_NoOption(t *testing.T) {
	for line, allowed := range map[string]bool{
		"{x}":            false,
		"{x}.log":        false,
		"{y}{x}":         false, // y is empty
		"--x={x}":        true,
		"-o{x}":          true,
		"./{x}":          true,
		"-- {x}":         true,
		"-- {y} {x}":     true,
		"-- f={y} {x}":   true,
		"-- run {x}":     false, // run may be a program with its own options, to which -- does not apply
		"-- run -- {x}":  true,
		"--x {x}":        false,
		"-- --x={y} {x}": true,
	} {
		names := params([]string{line})
		h := newHook(t, command(append([]string{"/bin/echo"}, strings.Fields(line)...)...), names...)
		for _, value := range []string{"-", "-x", "--upload-pack=x"} {
			_, problems, err := h.Bind(jsonBody(`{"x":"` + value + `","y":""}`))
			if err != nil || (len(problems) == 0) != allowed {
				t.Errorf("%s with %s: %v, %v", line, value, problems, err)
			}
			if _, err := h.Argv(hook.Values{"x": value, "y": ""}); (err == nil) != allowed {
				t.Errorf("argv of %s with %s: %v", line, value, err)
			}
		}
	}
}

func TestArgv_OneArgumentEach(t *testing.T) {
	h := newHook(t, command("/bin/echo", "", "{{x}}", "{x}", "a {x} b {y}{y}", "{{{x}}}"), "x", "y")
	argv, err := h.Argv(hook.Values{"x": "1 2", "y": "{x}\n", "z": "not a parameter"})
	if want := []string{"/bin/echo", "", "{x}", "1 2", "a 1 2 b {x}\n{x}\n", "{1 2}"}; err != nil || !slices.Equal(argv, want) {
		t.Errorf("got %q, %v", argv, err)
	}
}

func TestArgv_ChecksValues(t *testing.T) {
	h := newHook(t, hook.Spec{Command: []string{"/bin/echo", "{n}", "--r={r}"}, Params: map[string]hook.ParamSpec{
		"n": {From: hook.From{"body", "n"}, Type: "int"}, "r": {From: hook.From{"body", "r"}, Enum: []string{"eu"}},
	}})
	good := hook.Values{"n": "1", "r": "eu"}
	if _, err := h.Argv(good); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"n": "x", "r": "us"} {
		bad := maps.Clone(good)
		bad[name] = value
		if argv, err := h.Argv(bad); err == nil {
			t.Errorf("got %q", argv)
		}
		delete(bad, name)
		if argv, err := h.Argv(bad); err == nil {
			t.Errorf("without %s: %q", name, argv)
		}
	}
	if argv, err := h.Argv(hook.Values{"n": "-1", "r": "eu"}); err == nil {
		t.Errorf("got %q", argv)
	}
}

// TestTitle_OneShortLine checks that a title is one line of printable characters, and is cut between two of them.
func TestTitle_OneShortLine(t *testing.T) {
	t.Parallel()
	h := newHook(t, hook.Spec{
		Command: []string{"/bin/echo"}, Title: "a {x}{{}} \x1b",
		Params: map[string]hook.ParamSpec{"x": textParam("body", "x")},
	})
	for value, want := range map[string]string{
		"":                         "a {} �",
		"b":                        "a b{} �",
		"\x1b[2J\r\n\u202e\u009b":  "a �[2J����{} �",
		strings.Repeat("x", 192):   "a " + strings.Repeat("x", 192) + "{} �",
		strings.Repeat("x", 193):   "a " + strings.Repeat("x", 193) + "{} …",
		strings.Repeat("é", 100):   "a " + strings.Repeat("é", 99) + "…",
		strings.Repeat("😀", 50):    "a " + strings.Repeat("😀", 49) + "…",
		strings.Repeat("\n", 1000): "a " + strings.Repeat("�", 66) + "…",
	} {
		if got := h.Title(hook.Values{"x": value}); got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
	if got := newHook(t, hook.Spec{Command: []string{"/bin/echo"}}).Title(nil); got != "" {
		t.Errorf("without a title: %q", got)
	}
}
