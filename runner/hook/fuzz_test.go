package hook_test

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"sallyport/runner/hook"
)

// FuzzArgv sends any values to a hook that takes any text, and also passes them to Argv directly. Either there are
// problems, or each argument of the file is one argument with its literals and the unchanged values, and none became
// an option.
func FuzzArgv(f *testing.F) {
	h := newHook(f, hook.Spec{
		Command: []string{"/bin/echo", "{a}", "--x={b}", "a{a}-{b}{{", "fixed", "--", "{b}", "sub", "{c}", "{a}{c}"},
		Params: map[string]hook.ParamSpec{
			"a": textParam("body", "a"), "b": textParam("query", "b"), "c": {From: hook.From{"body", "c"}, Match: "(?s).*", Default: new("")},
		},
	})
	f.Fuzz(func(t *testing.T, body []byte, other, query string) {
		in := hook.Input{Body: body, Query: map[string][]string{"b": {query}}}
		v, problems, err := h.Bind(in)
		if err == nil && len(problems) == 0 {
			if v["b"] != query {
				t.Errorf("%q became %q", query, v["b"])
			}
			checkArgv(t, h, v, true)
		} else if v != nil {
			t.Errorf("values %q in spite of %v, %v", v, problems, err)
		}
		checkArgv(t, h, hook.Values{"a": string(body), "b": query, "c": other}, false)
	})
}

// FuzzBodyReading has hooks of all formats read the same bytes. A body has parameters as JSON or as a form, and with
// the format payload they are those of the JSON. A second read finds the same.
func FuzzBodyReading(f *testing.F) {
	hooks := map[string]*hook.Hook{}
	for _, as := range []string{"json", "form", "payload"} {
		hooks[as] = newHook(f, hook.Spec{
			Command: []string{"/bin/echo", "--x={x}"}, Body: hook.BodySpec{As: as},
			Params: map[string]hook.ParamSpec{"x": {From: hook.From{"body", "x"}, Match: "(?s).*", Default: new("none")}},
		})
	}
	for _, body := range []string{
		`{"x":"1"}`, "x=1", `{"a":"&x=1&"}`, " [\"&x=1\"]", "\"&x=1\"", "1&x=1", "\ufeff{&x=1", "x=1&x=2", "",
		"payload={}&x=1", `payload={"x":1}`, `payload=%7B"x":"+"}`, "payload=x=1",
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		found := map[string]string{}
		for as, h := range hooks {
			v, problems, err := h.Bind(hook.Input{Body: body})
			again, problemsAgain, errAgain := h.Bind(hook.Input{Body: body, Query: map[string][]string{"x": {"2"}}, Header: map[string][]string{"X": {"2"}}})
			if v["x"] != again["x"] || len(problems) != len(problemsAgain) || (err == nil) != (errAgain == nil) {
				t.Errorf("%q is read as %q, then as %q", body, v, again)
			}
			if x, ok := v["x"]; ok && x != "none" {
				found[as] = x
			}
		}
		want, isJSON := found["json"]
		if _, isForm := found["form"]; isForm && isJSON || isJSON && found["payload"] != want {
			t.Errorf("%q has two readings: %q", body, found)
		}
		// A body and the same body in a form are the same to a hook that takes both.
		form := hook.Input{Body: []byte(url.Values{"payload": {string(body)}}.Encode()), PayloadForm: true}
		for as, h := range hooks {
			v, _, err := h.Bind(form)
			if x, ok := v["x"]; as != "form" && (ok != isJSON && x != "none" || isJSON && x != want) {
				t.Errorf("%q in a form is read by %s as %q, %v, and alone as %q", body, as, v, err, found)
			}
		}
	})
}

// FuzzFlight fills a template with two sets of values: the flights are the same only if the values are the same.
func FuzzFlight(f *testing.F) {
	f.Add("{a}-{b}", "x", "y-z", "x-y", "z")
	f.Add("{a}{b}", "x", "yz", "xy", "z")
	f.Add("{a}2{b}", "2", "", "", "2")
	f.Add("{a}%2D{b}-{a}", "-", "%", "%2D", "-")
	f.Add("{a}é{b}", "\u00c3", "\u00a9", "é", "")
	f.Fuzz(func(t *testing.T, flight, a1, b1, a2, b2 string) {
		h, problems := compile(hook.Spec{
			Command: []string{"/bin/echo", "{a}{b}"}, Flight: hook.FlightSpec{Key: flight}, Params: map[string]hook.ParamSpec{"a": textParam("body", "a"), "b": textParam("body", "b")},
		})
		for _, value := range []string{a1, b1, a2, b2} {
			if len(problems) > 0 || !utf8.ValidString(value) {
				return
			}
		}
		one, two := hook.Values{"a": a1, "b": b1}, hook.Values{"a": a2, "b": b2}
		for name := range one {
			if !strings.Contains(strings.ReplaceAll(flight, "{{", ""), "{"+name+"}") {
				one[name], two[name] = "", ""
			}
		}
		if got, other := h.Flight(one), h.Flight(two); (got == other) != maps.Equal(one, two) {
			t.Errorf("%s: %q and %q give %q and %q", flight, one, two, got, other)
		}
	})
}

func checkArgv(t *testing.T, h *hook.Hook, v hook.Values, bound bool) {
	t.Helper()
	argv, err := h.Argv(v)
	if err != nil {
		if bound {
			t.Errorf("bound and refused: %v", err)
		}
		return
	}
	a, b, c := v["a"], v["b"], v["c"]
	want := []string{"/bin/echo", a, "--x=" + b, "a" + a + "-" + b + "{", "fixed", "--", b, "sub", c, a + c}
	if !slices.Equal(argv, want) || len(argv) != len(h.Spec().Command) {
		t.Errorf("got %q, want %q", argv, want)
	}
	for i, word := range argv {
		if !utf8.ValidString(word) || strings.ContainsRune(word, 0) {
			t.Errorf("argument %d is %q", i, word)
		}
	}
	for _, i := range []int{1, 8, 9} { // argument 6 follows the --
		if strings.HasPrefix(argv[i], "-") {
			t.Errorf("argument %d is an option: %q", i, argv[i])
		}
	}
}
