package hook_test

import (
	"encoding/json"
	"math/big"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"sallyport/internal/strictjson"
	"sallyport/runner/hook"
)

// TestNumber_Canonical checks that a number has one form, whichever form the sender uses.
func TestNumber_Canonical(t *testing.T) {
	spec := hook.ParamSpec{From: hook.From{"body", "x"}, Type: "number"}
	h, form := oneParamHook(t, spec), oneOfForm(t, spec)
	for text, want := range map[string]string{
		"0": "0", "-0": "0", "0.000": "0", "-0e5": "0", "7": "7", "-12.50": "-12.5", "1.0": "1", "1e3": "1000", "1.5E+2": "150",
		"25e-1": "2.5", "1e-3": "0.001", "100": "100", "1200e-1": "120", "0.05": "0.05", "12345678901234567890.123456789": "12345678901234567890.123456789",
		"1e63": "1" + strings.Repeat("0", 63), "1e-62": "0." + strings.Repeat("0", 61) + "1",
	} {
		wantParam(t, h, jsonBody(`{"x":`+text+`}`), want)
		wantParam(t, form, bodyInput("x="+url.QueryEscape(text)), want)
	}
	const refused = "is not a number of at most 64 characters"
	for _, text := range []string{
		"1e64", "-1e63", "1e-63", "1e128", "1e999999999999999999999", "1e-99999", "0e1000", "1." + strings.Repeat("0", 63), strings.Repeat("9", 65),
		"1" + strings.Repeat("0", 60_000), "0." + strings.Repeat("0", 60_000) + "1",
	} {
		turnAway(t, h, jsonBody(`{"x":`+text+`}`), refused)
		turnAway(t, form, bodyInput("x="+text), refused)
	}
	for _, text := range []string{"", "NaN", "Inf", "-Inf", "Infinity", "+1", "01", "-01", ".5", "1.", "1e", "1e+", "0x1", "1_0", "1,5", " 1", "1 ", "1\n", "--1", "١"} {
		turnAway(t, form, bodyInput("x="+url.QueryEscape(text)), refused)
	}
	turnAway(t, h, jsonBody(`{"x":"1.5"}`), "is a text and not a number")
	turnAway(t, h, jsonBody(`{"x":true}`), refused)
	turnAway(t, h, jsonBody(`{"x":[1]}`), "is a list or an object")
	turnAway(t, oneParamHook(t, hook.ParamSpec{From: hook.From{"claim", "x"}, Type: "number"}), hook.Input{Claims: map[string]any{"x": "1"}}, "is a text and not a number")
	wantParam(t, oneParamHook(t, hook.ParamSpec{From: hook.From{"claim", "x"}, Type: "number"}), hook.Input{Claims: map[string]any{"x": json.Number("1.50")}}, "1.5")

	spec.Min, spec.Max = new(int64(-1)), new(int64(10))
	bounded := oneParamHook(t, spec)
	for text, words := range map[string]string{"-1.001": "is below -1", "10.001": "is above 10", "1e30": "is above 10"} {
		turnAway(t, bounded, jsonBody(`{"x":`+text+`}`), words)
	}
	wantParam(t, bounded, jsonBody(`{"x":-1.0}`), "-1")
	wantParam(t, bounded, jsonBody(`{"x":9.999}`), "9.999")
	alone := newHook(t, hook.Spec{Command: []string{"/bin/echo", "{x}"}, Params: map[string]hook.ParamSpec{"x": spec}})
	turnAway(t, alone, jsonBody(`{"x":-0.5}`), `may not begin with "-"`)
	if _, err := h.Argv(hook.Values{"x": "1.50"}); err == nil {
		t.Error("another form of a number became an argument")
	}
}

// FuzzNumber compares each number with the value of its text: it has the same value, and one form.
func FuzzNumber(f *testing.F) {
	h := oneParamHook(f, hook.ParamSpec{From: hook.From{"query", "q"}, Type: "number"})
	for _, text := range []string{"-12.50", "1e3", "25E-1", "0.0010", "1e64", "-0", "1e-200"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, _, err := h.Bind(hook.Input{Query: url.Values{"q": {text}}})
		if err != nil {
			t.Fatal(err)
		}
		number, ok := v["x"]
		if !ok {
			return
		}
		want, isNumber := new(big.Rat).SetString(text)
		got, _ := new(big.Rat).SetString(number)
		if !json.Valid([]byte(text)) || !isNumber || got.Cmp(want) != 0 || len(number) > 64 || strings.ContainsAny(number, "eE+") {
			t.Errorf("%q became %q", text, number)
		}
		again, _, _ := h.Bind(hook.Input{Query: url.Values{"q": {number}}})
		if again["x"] != number {
			t.Errorf("%q became %q, and that %q", text, number, again["x"])
		}
	})
}

// TestJSON_Compact checks that a part of the body becomes one compact argument: members keep their order, numbers their
// digits, and each string has one form.
func TestJSON_Compact(t *testing.T) {
	part := func(path string) *hook.Hook {
		return oneParamHook(t, hook.ParamSpec{From: hook.From{path}, Type: "json"})
	}
	body := jsonBody("{\"a\" : { \"z\":1.50,\n\t\"b\": [1e400, -0, true, null, {}], \"\\u0061 <&>\":\"\\u00e9\\/\\ud83d\\ude00\\u0000\\n\\\"\u2028\"},\n" +
		"\"list\":[1, [ {\"x\":\"last\"} ] ], \"text\":\"-t\", \"none\":null}")
	for path, want := range map[string]string{
		"body.a":           `{"z":1.50,"b":[1e400,-0,true,null,{}],"a <&>":"é/😀\u0000\n\"\u2028"}`,
		"body.a.b":         `[1e400,-0,true,null,{}]`,
		"body.a.b[-1]":     `{}`,
		"body.list":        `[1,[{"x":"last"}]]`,
		"body.list[-1]":    `[{"x":"last"}]`,
		"body.list[1][0]":  `{"x":"last"}`,
		"body.text":        `"-t"`,
		`body["a"].b[0]`:   `1e400`,
		`body.a["a <&>"]`:  `"é/😀\u0000\n\"\u2028"`,
		"body.list[-2]":    `1`,
		"body.list[1][-1]": `{"x":"last"}`,
	} {
		wantParam(t, part(path), body, want)
	}
	turnAway(t, part("body.none"), body, "is missing")
	turnAway(t, part("body.list[2]"), body, "has the length 2")
	fits := strings.Repeat("a", 64<<10-2)
	wantParam(t, part("body.x"), jsonBody(`{"x": "`+fits+`" }`), `"`+fits+`"`)
	turnAway(t, part("body.x"), jsonBody(`{"x":"`+fits+`a"}`), "is longer than")
	turnAway(t, part("body.x"), jsonBody(`{"x":[`+strings.Repeat("{},", 100_000)+`{}]}`), "is longer than")
	wrapped := body
	wrapped.Body, wrapped.PayloadForm = []byte(url.Values{"payload": {string(body.Body)}}.Encode()), true
	wantParam(t, part("body.list"), wrapped, `[1,[{"x":"last"}]]`)

	h := part("body.a")
	for _, text := range []string{`{ }`, `{"a":1,"a":2}`, `{}{}`, `"\u0061"`, `"\/"`, "", "x", strings.Repeat("[", 100_000), `{"a":1}` + "\n"} {
		if _, err := h.Argv(hook.Values{"x": text}); err == nil {
			t.Errorf("%.20q became an argument", text)
		}
	}
}

// FuzzJSON checks that a part of a body and its compact text are the same value, and that the text has one form.
func FuzzJSON(f *testing.F) {
	h := oneParamHook(f, hook.ParamSpec{From: hook.From{"body.x"}, Type: "json"})
	for _, text := range []string{`{"b":1,"a":[]}`, `"\u003c\u2028é"`, `[-0,1e400]`, `{"x":1,"x":2}`, `"\ud800"`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, problems, err := h.Bind(jsonBody(`{"w":[1],"x":` + string(data) + `}`))
		text, ok := v["x"]
		if !ok {
			return
		}
		want, refused := strictjson.Decode([]byte(`{"w":[1],"x":` + string(data) + `}`))
		got, malformed := strictjson.Decode([]byte(`{"w":[1],"x":` + text + `}`))
		if err != nil || len(problems) > 0 || refused != nil || malformed != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q became %q: %v, %v, %v", data, text, err, refused, malformed)
		}
		again, _, err := h.Bind(jsonBody(`{"x":` + text + `}`))
		if err != nil || again["x"] != text {
			t.Errorf("%q became %q, %v", text, again["x"], err)
		}
	})
}
