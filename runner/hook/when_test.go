package hook_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/textproto"
	"net/url"
	"strings"
	"testing"

	"sallyport/internal/diag"
	"sallyport/runner/hook"
)

// whenHook returns a hook with conditions in the form that the configuration decodes.
func whenHook(t testing.TB, when map[string]any, as string) *hook.Hook {
	t.Helper()
	return newHook(t, hook.Spec{When: when, Command: []string{"/bin/true"}, Body: hook.BodySpec{As: as}})
}

func whyIgnored(t testing.TB, h *hook.Hook, in hook.Input) string {
	t.Helper()
	in, err := h.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	why, err := h.WhyIgnored(in)
	if err != nil {
		t.Fatal(err)
	}
	return why
}

// push is a delivery with values of each kind in each source.
func push() hook.Input {
	return hook.Input{
		Event: "push",
		Body: []byte(`{"ref":"refs/heads/main","deleted":false,"count":2,"one":"1","null":null,"list":["a"],` +
			`"object":{"a.b":1},"float":1.0,"message":"fix [skip]\n\nmore","repository":{"name":"app"}}`),
		Query:  url.Values{"stage": {"prod"}, "twice": {"a", "a"}, "n": {"2"}, "on": {"true"}, "empty": {""}},
		Header: textproto.MIMEHeader{"X-Stage": {"prod"}, "X-Twice": {"a", "a"}},
		Claims: map[string]any{"sub": "etl", "n": json.Number("2"), "ok": true},
	}
}

func TestWhen_Tests(t *testing.T) {
	t.Parallel()
	type m = map[string]any
	for _, row := range []struct {
		key   string
		test  any
		found string // empty: the condition holds
	}{
		{"event", "push", ""},
		{"event", "Push", `the value is "push"`},
		{"event", []any{"create", "push"}, ""},
		{"event", []any{"create", "delete"}, `the value is "push"`},
		{"event", m{"not": "ping"}, ""},
		{"event", m{"not": "push"}, `the value is "push"`},
		{"event", m{"not": []any{"ping", "push"}}, `the value is "push"`},
		{"body.ref", "refs/heads/main", ""},
		{"body.ref", m{"match": "refs/heads/.*"}, ""},
		{"body.ref", m{"match": "heads"}, `the value is "refs/heads/main"`},
		{"body.ref", m{"match": "refs/heads/.*", "not": "refs/heads/main"}, `the value is "refs/heads/main"`},
		{"body.ref", m{"match": "refs/heads/.*", "not": m{"match": "refs/heads/wip-.*"}}, ""},
		{"body.message", m{"not": m{"match": `.*\[skip\].*`}}, `the value is "fix [skip]\n\nmore"`},
		{"body.message", m{"match": `.*\[skip\].*`}, `the value is "fix [skip]\n\nmore"`},
		{"body.repository.name", "app", ""},
		{"body.deleted", false, ""},
		{"body.deleted", true, "the value is false"},
		{"body.deleted", "false", "the value is false"},
		{"body.count", int64(2), ""},
		{"body.count", int64(3), "the value is 2"},
		{"body.count", "2", "the value is 2"},
		{"body.list[0]", "a", ""},
		{"body.list[1]", "a", "the value is missing"},
		{`body.object["a.b"]`, int64(1), ""},
		{`header["X-Stage"]`, "prod", ""},
		{"body.count", m{"match": "[0-9]"}, ""},
		{"body.one", int64(1), `the value is "1"`},
		{"body.float", int64(1), "the value is 1.0"},
		{"body.null", m{"exists": true}, "the value is missing"},
		{"body.null", m{"exists": false}, ""},
		{"body.none", "x", "the value is missing"},
		{"body.none", m{"not": "x"}, "the value is missing"},
		{"body.list", "a", "the value is a list or an object"},
		{"body.list", m{"not": "a"}, "the value is a list or an object"},
		{"body.list", m{"exists": true}, ""},
		{"body.object", m{"exists": false}, "the value is a list or an object"},
		{"query.stage", "prod", ""},
		{"query.n", int64(2), ""},
		{"query.n", "2", ""},
		{"query.on", true, ""},
		{"query.empty", "", ""},
		{"query.empty", m{"exists": false}, `the value is ""`},
		{"query.twice", "a", "the value is given more than once"},
		{"query.twice", m{"not": "b"}, "the value is given more than once"},
		{"query.twice", m{"exists": false}, "the value is given more than once"},
		{"header.x-stage", "prod", ""},
		{"header.X-Twice", "a", "the value is given more than once"},
		{"header.X-None", m{"exists": false}, ""},
		{"claim.sub", "etl", ""},
		{"claim.n", int64(2), ""},
		{"claim.n", "2", "the value is 2"},
		{"claim.ok", true, ""},
	} {
		want := ""
		if row.found != "" {
			want = "the condition " + row.key + " does not hold: " + row.found
		}
		if got := whyIgnored(t, whenHook(t, m{row.key: row.test}, ""), push()); got != want {
			t.Errorf("%s: %v: %q, want %q", row.key, row.test, got, want)
		}
	}
}

// TestWhen_AllMustHold also checks the order: the event name comes first.
func TestWhen_AllMustHold(t *testing.T) {
	t.Parallel()
	h := whenHook(t, map[string]any{"body.ref": "refs/heads/main", "event": "push", "body.deleted": false}, "")
	if why := whyIgnored(t, h, push()); why != "" {
		t.Error(why)
	}
	for want, in := range map[string]hook.Input{
		`the condition event does not hold: the value is "ping"`:         {Event: "ping", Body: []byte(`{"zen":"x"}`)},
		`the condition event does not hold: the value is missing`:        {Body: push().Body},
		`the condition body.deleted does not hold: the value is true`:    {Event: "push", Body: []byte(`{"ref":"refs/heads/main","deleted":true}`)},
		`the condition body.deleted does not hold: the value is missing`: {Event: "push"},
		`the condition body.ref does not hold: the value is "refs/heads/dev"`: {
			Event: "push", Body: []byte(`{"ref":"refs/heads/dev","deleted":false}`),
		},
	} {
		if got := whyIgnored(t, h, in); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if why := whyIgnored(t, newHook(t, hook.Spec{Command: []string{"/bin/true"}}), hook.Input{Body: []byte("not JSON")}); why != "" {
		t.Errorf("a hook without conditions ignores a delivery: %s", why)
	}
}

// TestWhen_Form: a form has no types.
func TestWhen_Form(t *testing.T) {
	t.Parallel()
	for key, test := range map[string]any{"body.command": "/deploy", "body.count": int64(2), "body.last": false} {
		h := whenHook(t, map[string]any{key: test}, "form")
		if why := whyIgnored(t, h, hook.Input{Body: []byte("command=%2Fdeploy&count=2&last=false")}); why != "" {
			t.Error(why)
		}
		if why := whyIgnored(t, h, hook.Input{Body: []byte("command=a&command=/deploy&count=3&last=true")}); why == "" {
			t.Errorf("%s holds", key)
		}
	}
}

func TestWhen_UnreadableBody(t *testing.T) {
	t.Parallel()
	h := whenHook(t, map[string]any{"body.ref": "x"}, "")
	if _, err := h.Open(jsonBody(`{"ref":"x","ref":"y"}`)); !errors.Is(err, hook.ErrBody) {
		t.Errorf("got %v", err)
	}
}

// TestWhen_LongValue: the reason has the beginning of the value, and no character of it can be mistaken.
func TestWhen_LongValue(t *testing.T) {
	t.Parallel()
	h := whenHook(t, map[string]any{"body.x": "y", "event": map[string]any{"exists": false}}, "")
	for value, words := range map[string]string{
		strings.Repeat("é", 1000): `é…"`,
		"a\n\x1b[31m\u202eb":      `"a\n\x1b[31m\u202eb"`,
	} {
		body, err := json.Marshal(map[string]string{"x": value})
		if err != nil {
			t.Fatal(err)
		}
		if why := whyIgnored(t, h, jsonBody(string(body))); !strings.Contains(why, words) || len(why) > 200 {
			t.Errorf("%d bytes: %s", len(why), why)
		}
	}
	if why := whyIgnored(t, h, jsonBody(`{"x":1`+strings.Repeat("0", 1000)+`}`)); len(why) > 200 {
		t.Errorf("%d bytes: %s", len(why), why)
	}
}

func TestWhen_Mistakes(t *testing.T) {
	t.Parallel()
	type m = map[string]any
	for _, row := range []struct {
		when        any
		path, words string
	}{
		{[]any{"push"}, "when", "is not a mapping"},
		{m{}, "when", "is empty"},
		{m{"ref": "x"}, "when.ref", `"ref" is not a source: write event, body.NAME`},
		{m{"event.name": "x"}, "when.event.name", "is not a source"},
		{m{"body": "x"}, "when.body", "names no member"},
		{m{"body..x": "x"}, "when.body..x", "empty name"},
		{m{"body[x]": "x"}, "when.body[x]", "has [x]"},
		{m{"header.Host": "x"}, "when.header.Host", "belongs to the connection"},
		{m{"header.transfer-encoding": "x"}, "when.header.transfer-encoding", "belongs to the connection"},
		{m{"header.Trailer": "x"}, "when.header.Trailer", "belongs to the connection"},
		{m{`header["a b"]`: "x"}, `when.header["a b"]`, "not the name of a header"},
		{m{"body.x": m{"not": []any{"1", int64(1)}}}, "when.body.x.not", "different types"},
		{m{"header.a[0]": "x"}, "when.header.a[0]", "is not a list"},
		{m{"header.a.b": "x"}, "when.header.a.b", "has one name"},
		{m{"event": []any{}}, "when.event", "is empty"},
		{m{"event": []any{"a", m{"not": "b"}}}, "when.event.1", "must be text"},
		{m{"body.x": 1.5}, "when.body.x", "must be text"},
		{m{"event": m{}}, "when.event", "is empty"},
		{m{"event": m{"is": "a"}}, "when.event.is", "unknown key; the keys here are exists, match, not"},
		{m{"event": m{"match": "("}}, "when.event.match", "missing closing"},
		{m{"event": m{"match": "a)|(?:b"}}, "when.event.match", "unexpected"},
		{m{"event": m{"match": int64(1)}}, "when.event.match", "as text"},
		{m{"event": m{"exists": "yes"}}, "when.event.exists", "true or false"},
		{m{"event": m{"exists": true, "match": "a"}}, "when.event.exists", "must be alone"},
		{m{"event": m{"not": m{"exists": true}}}, "when.event.not", "write {exists: false} instead"},
		{m{"event": m{"not": []any{}}}, "when.event.not", "is empty"},
	} {
		var p diag.List
		hook.Compile(map[string]*hook.Spec{"h": {When: row.when, Command: []string{"/bin/true"}, Callers: grants("ci")}}, []string{"ci"}, &p)
		if all := p.All(); len(all) != 1 || strings.Join(all[0].Path, ".") != "h."+row.path || !strings.Contains(all[0].Text, row.words) {
			t.Errorf("%v: %v, want %s: %s", row.when, all, row.path, row.words)
		}
	}
}

// TestWhen_ChangesDigest: a hook with another condition is another version.
func TestWhen_ChangesDigest(t *testing.T) {
	t.Parallel()
	seen := map[string]any{}
	type m = map[string]any
	for _, when := range []any{nil, m{"event": "1"}, m{"event": int64(1)}, m{"event": m{"not": "1"}}} {
		digest := newHook(t, hook.Spec{When: when, Command: []string{"/bin/true"}}).Digest()
		if other, twice := seen[digest]; twice {
			t.Errorf("%v and %v have the same digest", when, other)
		}
		seen[digest] = when
	}
}

// BenchmarkWhen shows what a mapping adds to a delivery of 10 KiB with one parameter.
func BenchmarkWhen(b *testing.B) {
	var body strings.Builder
	_, _ = body.WriteString(`{"ref":"refs/heads/main","deleted":false,"after":"c0ffee"`)
	for i := 0; body.Len() < 10<<10; i++ {
		_, _ = fmt.Fprintf(&body, `,"member%d":{"name":"some text","number":%d}`, i, i)
	}
	_, _ = body.WriteString("}")
	in := hook.Input{Event: "push", Body: []byte(body.String())}
	spec := hook.Spec{
		Command: []string{"/bin/echo", "--commit={commit}"},
		Params:  map[string]hook.ParamSpec{"commit": {From: hook.From{"body", "after"}, Match: "[0-9a-f]+"}},
	}
	bind := func(b *testing.B, h *hook.Hook) {
		b.Helper()
		for b.Loop() {
			opened, err := h.Open(in)
			if err != nil {
				b.Fatal(err)
			}
			if why, err := h.WhyIgnored(opened); err != nil || why != "" {
				b.Fatal(why, err)
			}
			if _, problems, err := h.Bind(opened); err != nil || problems != nil {
				b.Fatal(problems, err)
			}
		}
	}
	b.Run("without", func(b *testing.B) { bind(b, newHook(b, spec)) })
	spec.When = map[string]any{
		"event": "push", "body.ref": map[string]any{"match": "refs/heads/(main|release-.*)"}, "body.deleted": false,
	}
	b.Run("with", func(b *testing.B) { bind(b, newHook(b, spec)) })
	b.Run("alone", func(b *testing.B) {
		h := newHook(b, spec)
		opened, err := h.Open(in)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if why, err := h.WhyIgnored(opened); err != nil || why != "" {
				b.Fatal(why, err)
			}
		}
	})
}

// TestWhen_NotOfAnotherType: a comparison that cannot be made does not hold, negated or not.
func TestWhen_NotOfAnotherType(t *testing.T) {
	t.Parallel()
	type m = map[string]any
	for _, row := range []struct {
		body string
		test any
	}{
		{`{"x":"true"}`, m{"not": true}},
		{`{"x":1}`, m{"not": true}},
		{`{"x":"1"}`, m{"not": int64(1)}},
		{`{"x":1.0}`, m{"not": int64(1)}},
		{`{"x":1e0}`, m{"not": int64(1)}},
		{`{"x":1.0}`, m{"not": m{"match": "1"}}},
		{`{"x":1}`, m{"not": "1"}},
		{`{"x":true}`, m{"not": "true"}},
		{`{"x":"1"}`, m{"not": m{"not": int64(1)}}},
		{`{"x":{}}`, m{"not": "a"}},
		{`{}`, m{"not": "a"}},
		{``, m{"exists": false}},
		{`[]`, m{"exists": false}},
		{`"text"`, m{"exists": false}},
	} {
		if why := whyIgnored(t, whenHook(t, m{"body.x": row.test}, ""), jsonBody(row.body)); why == "" {
			t.Errorf("%s: %v holds", row.body, row.test)
		}
	}
	for body, test := range map[string]any{
		`{"x":2}`: m{"not": int64(1)}, `{"x":1.5}`: m{"not": int64(1)}, `{"x":false}`: m{"not": true},
		`{"x":"b"}`: m{"not": []any{"a", "c"}}, `{"x":1}`: m{"not": m{"not": int64(1)}},
		`{"x":null}`: m{"exists": false}, `{}`: m{"exists": false},
	} {
		if why := whyIgnored(t, whenHook(t, m{"body.x": test}, ""), jsonBody(body)); why != "" {
			t.Errorf("%s: %v: %s", body, test, why)
		}
	}
}

// TestWhen_AbsentMember: a member is absent only from an object, and an element only from a list.
func TestWhen_AbsentMember(t *testing.T) {
	t.Parallel()
	absent := map[string]any{"exists": false}
	for key, bodies := range map[string]map[string]bool{
		"body.a.b":  {`{"a":{}}`: true, `{}`: true, `{"a":null}`: true, `{"a":"text"}`: false, `{"a":[]}`: false},
		"body.a[0]": {`{"a":[]}`: true, `{}`: true, `{"a":{}}`: false, `{"a":1}`: false},
		"claim.sub": {`{}`: false},
	} {
		for body, want := range bodies {
			why := whyIgnored(t, whenHook(t, map[string]any{key: absent}, ""), jsonBody(body))
			if (why == "") != want {
				t.Errorf("%s of %s: %q", key, body, why)
			}
		}
	}
}

// TestWhen_EventUnreadable: an event name that was sent twice is not absent.
func TestWhen_EventUnreadable(t *testing.T) {
	t.Parallel()
	h := whenHook(t, map[string]any{"event": map[string]any{"exists": false}}, "")
	if why := whyIgnored(t, h, hook.Input{}); why != "" {
		t.Error(why)
	}
	if why := whyIgnored(t, h, hook.Input{EventUnreadable: true}); why == "" {
		t.Error("an unreadable event name is absent")
	}
}

// TestWhen_Unauthenticated: the reason does not have the value, which any client can choose.
func TestWhen_Unauthenticated(t *testing.T) {
	t.Parallel()
	var p diag.List
	h := hook.Compile(map[string]*hook.Spec{"h": {
		When: map[string]any{"query.a": "b"}, Command: []string{"/bin/true"}, Unauthenticated: true,
	}}, nil, &p)["h"]
	in := hook.Input{Query: url.Values{"a": {"a secret"}}}
	if why := whyIgnored(t, h, in); why != "the condition query.a does not hold" {
		t.Error(why)
	}
}

// TestWhen_NotOpened: a delivery that Open has not returned is an error, and never a match.
func TestWhen_NotOpened(t *testing.T) {
	t.Parallel()
	h := whenHook(t, map[string]any{"body.x": map[string]any{"exists": false}}, "")
	if _, err := h.WhyIgnored(jsonBody(`{}`)); err == nil {
		t.Error("no error")
	}
}
