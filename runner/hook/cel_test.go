package hook_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"sallyport/runner/hook"
	"sallyport/runner/hook/expression"
)

func celHook(t testing.TB, when, as string) *hook.Hook {
	t.Helper()
	return newHook(t, hook.Spec{When: when, Command: []string{"/bin/true"}, Body: hook.BodySpec{As: as}})
}

// TestWhen_Expression evaluates expressions on the same delivery as other conditions.
func TestWhen_Expression(t *testing.T) {
	for when, want := range map[string]string{
		`event == "push" && body.ref.endsWith("/main")`:                      "",
		`event == "push" && body.ref == "x"`:                                 `the condition body.ref == "x" does not hold`,
		`body.nothing == "x"`:                                                `the condition body.nothing == "x" does not hold: no such key: nothing`,
		`query.stage == "prod" && header["x-stage"] == "prod"`:               "",
		`query.twice == "a"`:                                                 `the condition query.twice == "a" does not hold: the value is given more than once`,
		`header["X-Twice"] == "a"`:                                           `the condition header["X-Twice"] == "a" does not hold: the value is given more than once`,
		`claims.sub == "etl" && claims.n == 2 && claims.ok && !has(query.x)`: "",
		`body.list.exists(x, x == "a") && body.object["a.b"] == 1`:           "",
	} {
		if why := whyIgnored(t, celHook(t, when, "json"), push()); why != want {
			t.Errorf("%s: got %q, want %q", when, why, want)
		}
	}
	form := hook.Input{Body: []byte("a=1&b=2&b=3")}
	if why := whyIgnored(t, celHook(t, `body.a == "1" && !has(body.c) && "b" in body`, "form"), form); why != "" {
		t.Error(why)
	}
	if why := whyIgnored(t, celHook(t, `body.b[0] == "2"`, "form"), form); !strings.HasSuffix(why, "given more than once") {
		t.Error(why)
	}
	for when, want := range map[string]string{
		`event != "x"`: "the event name is missing", `!has(claims.x)`: "the delivery has no token",
		`!has(body.x)`: "the body is empty or null",
	} {
		if why := whyIgnored(t, celHook(t, when, "json"), hook.Input{}); !strings.HasSuffix(why, want) {
			t.Errorf("%s: %q", when, why)
		}
	}
	open := newHook(t, hook.Spec{When: "body.a == 1", Command: []string{"/bin/true"}, Callers: grants("ci")})
	if why := whyIgnored(t, open, hook.Input{Body: []byte(`{}`)}); why == "" {
		t.Error("a missing member holds")
	}
}

// TestWhen_ExpressionLimit is an error, not a condition that does not hold.
func TestWhen_ExpressionLimit(t *testing.T) {
	h := celHook(t, "body.all(a, body.all(b, body.all(c, true)))", "json")
	in, err := h.Open(hook.Input{Body: []byte("[" + strings.Repeat("1,", 999) + "1]")})
	if err != nil {
		t.Fatal(err)
	}
	if why, err := h.WhyIgnored(in); why != "" || !errors.Is(err, expression.ErrLimit) {
		t.Errorf("got %q, %v", why, err)
	}
}

// TestWhen_ExpressionProblems has the place of a problem below the hook.
func TestWhen_ExpressionProblems(t *testing.T) {
	_, problems := compile(hook.Spec{When: "event == \"x\" && bdy.x", Command: []string{"/bin/true"}})
	refuse(t, problems, "when", "undeclared reference to 'bdy'")
	if problems[0].Skip != 12 {
		t.Errorf("after %d characters", problems[0].Skip)
	}
	_, problems = compile(hook.Spec{When: `header.Host == "x"`, Command: []string{"/bin/true"}})
	refuse(t, problems, "when", "the server never has this header")
}

// TestBind_Expression binds computed parameters.
func TestBind_Expression(t *testing.T) {
	other := "other"
	for _, row := range []struct {
		spec hook.ParamSpec
		want string // value, or ! and problem
	}{
		{hook.ParamSpec{Expr: `body.ref.substring(11)`, Match: "[a-z]+"}, "main"},
		{hook.ParamSpec{Expr: `body.ref`, Match: "[a-z]+"}, "! does not match the allowed pattern"},
		{hook.ParamSpec{Expr: `body.nothing.x`, Match: "[a-z]+"}, "! is missing: no such key: nothing"},
		{hook.ParamSpec{Expr: `body.nothing.x`, Match: "[a-z]+", Default: &other}, "other"},
		{hook.ParamSpec{Expr: `body["null"]`, Match: "[a-z]+", Default: &other}, "other"},
		{hook.ParamSpec{Expr: `body.count + 1`, Type: "int"}, "3"},
		{hook.ParamSpec{Expr: `body.one`, Type: "int"}, "! is a text and not an integer"},
		{hook.ParamSpec{Expr: `body.float + body.count`, Type: "number"}, "3"},
		{hook.ParamSpec{Expr: `body.count > 1`, Type: "bool"}, "true"},
		{hook.ParamSpec{Expr: `body.count / 0`, Type: "int", Default: nil}, "! cannot be computed: division by zero"},
		{hook.ParamSpec{Expr: `body.list`, Match: ".*"}, "! cannot be computed: the result is a list or an object, and one value is needed"},
		{hook.ParamSpec{Expr: `{"l": body.list, "o": body.object}`, Type: "json"}, `{"l":["a"],"o":{"a.b":1}}`},
		{hook.ParamSpec{Expr: `body.deleted ? "gone" : event`, Enum: []string{"gone", "push"}}, "push"},
	} {
		v, problems, err := oneParamHook(t, row.spec).Bind(push())
		got := v["x"]
		if len(problems) > 0 {
			got = "! " + problems[0].Text
		}
		if err != nil || got != row.want {
			t.Errorf("%s: got %q, %v, want %q", row.spec.Expr, got, err, row.want)
		}
	}
	for words, spec := range map[string]hook.ParamSpec{
		"contradicts from": {Expr: "event", From: hook.From{"body.x"}, Match: ".*"},
		"the result is of the type string, but must be int": {Expr: "event", Type: "int"},
	} {
		_, problems := compile(hook.Spec{Command: []string{"/bin/echo", "{x}"}, Params: map[string]hook.ParamSpec{"x": spec}})
		refuse(t, problems, "params.x.expr", words)
	}
}

// githubPush is a body of 10 KiB.
func githubPush() []byte {
	var commits []map[string]any
	for i := range 20 {
		commits = append(commits, map[string]any{
			"id": strings.Repeat("0123456789", 4), "message": strings.Repeat("change the page ", 10), "timestamp": "2026-11-28T10:00:00Z",
			"author": map[string]any{"name": "A. Developer", "email": "dev@example.com", "username": "dev"},
			"added":  []string{}, "removed": []string{}, "modified": []string{fmt.Sprintf("src/file%d.go", i), "README.md"},
		})
	}
	commits[10]["modified"] = []string{"docs/page.md"}
	body, _ := json.Marshal(map[string]any{
		"ref": "refs/heads/main", "deleted": false, "after": strings.Repeat("a", 40), "commits": commits,
		"repository": map[string]any{"full_name": "o/r", "id": 123456789, "description": strings.Repeat("x", 2500)},
	})
	return body
}

// BenchmarkWhyIgnored measures what conditions add to a delivery of 10 KiB whose body is decoded.
func BenchmarkWhyIgnored(b *testing.B) {
	body := githubPush()
	for name, when := range map[string]any{
		"none":       nil,
		"mapping":    map[string]any{"event": "push", "body.ref": "refs/heads/main", "body.deleted": false},
		"expression": `event == "push" && body.ref == "refs/heads/main" && !body.deleted`,
		"loop":       `event == "push" && body.commits.exists(c, c.modified.exists(f, f.startsWith("docs/")))`,
	} {
		h := newHook(b, hook.Spec{
			When: when, Command: []string{"/bin/echo", "{x}"},
			Params: map[string]hook.ParamSpec{"x": textParam("body.after")},
		})
		in, err := h.Open(hook.Input{Event: "push", Body: body})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("%s/%dKiB", name, len(body)>>10), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if why, err := h.WhyIgnored(in); why != "" || err != nil {
					b.Fatal(why, err)
				}
			}
		})
	}
}
