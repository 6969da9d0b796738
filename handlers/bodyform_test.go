package handlers_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"sallyport/handlers"
	"sallyport/internal/client"
	"sallyport/internal/diag"
	"sallyport/runner/hook"
)

// TestContentType_ChangesNoReading sends a signed body, which would be refused as JSON and is accepted as a form,
// with other content types: signatures of this kind do not cover them. Only the hook decides how a body is read.
func TestContentType_ChangesNoReading(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := build(t, dir, fmt.Sprintf(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {caller: {rate: 1000/s, burst: 1000}}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
hooks:
  start:
    path: /start
    callers: [good]
    command: [%q, %q, "{ref}"]
    params: {ref: {from: body.ref, enum: [refs/heads/main]}}
  form:
    path: /form
    callers: [good]
    command: [%q, %q, "{ref}"]
    params: {ref: {from: body.ref, enum: [refs/heads/main]}}
    body: {as: form}
`, dir+"/job.sh", dir, dir+"/job.sh", dir))
	seen := `{"ref":"refs/heads/feature","commits":[{"message":"fix&ref=refs/heads/main&x="}]}`
	for path, want := range map[string]int{"/start": http.StatusUnprocessableEntity, "/form": http.StatusBadRequest} {
		for _, kind := range []string{"application/json", "application/x-www-form-urlencoded", "text/plain", "", "a;b"} {
			d := h.by("good", seen).to(path)
			d.header.Set("Content-Type", kind)
			h.answers(want, d)
		}
	}
	if n := h.startedRuns(); n != 0 {
		t.Errorf("%d runs were started", n)
	}
	d := h.by("good", "a=1&ref=refs%2Fheads%2Fmain")
	h.answers(http.StatusBadRequest, d.to("/start"))
	h.starts(d.to("/form"))
	d = h.by("good", `{"ref":"refs/heads/main"}`)
	d.header.Set("Content-Type", "application/x-www-form-urlencoded")
	h.starts(d.to("/start"))
	// JSON as text/plain, as several senders send it, is read like any other.
	d = h.by("good", ` {"ref":"refs/heads/main"}`)
	d.header.Set("Content-Type", "text/plain; charset=utf-8")
	h.starts(d.to("/start"))
}

// TestPayloadForm_SameRun sends JSON and the same JSON in a form, from senders that send both. The command gets the
// same argument and the same standard input, for any Content-Type. A form with anything else is refused.
func TestPayloadForm_SameRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/record.sh", []byte("#!/bin/sh\n{ echo \"$2\"; cat; } >\"$1/ran\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	config := `
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {caller: {rate: 1000/s, burst: 1000}, address: {rate: 1000/s, burst: 1000}, failures: {rate: 1000/s, burst: 1000}}
callers:
  github: {hmac: {scheme: github, keys: [{file: good}]}}
  gitea: {hmac: {scheme: gitea, keys: [{file: good}]}}
  stripe: {hmac: {scheme: stripe, keys: [{file: good}]}}
  token: {token: {header: X-Token, keys: [{file: guest}]}}
hooks:
`
	for name, rest := range map[string]string{
		"github": "callers: [github]", "gitea": "callers: [gitea]", "stripe": "callers: [stripe]",
		"token": "callers: [token], body: {as: payload}", "json": "callers: [token], body: {as: json}",
		"form": "callers: [github], body: {as: form}",
	} {
		config += fmt.Sprintf("  %s: {%s, stdin: body, command: [%q, %q, \"{text}\"], "+
			"params: {text: {from: body.text, match: '.*'}}}\n", name, rest, dir+"/record.sh", dir)
	}
	config += fmt.Sprintf("  stdin: {callers: [github], stdin: body, command: [%q, %q]}\n", dir+"/record.sh", dir)
	h := build(t, dir, config)
	const doc = `{"text":"a b+c & é; 100%","payload":"x"}`
	form := url.Values{"payload": {doc}}.Encode()
	twice := form + "&text=other"
	// sign returns a delivery to the hook of a scheme. Spaces before the JSON make it another delivery.
	sign := func(scheme, body string) delivery {
		d := delivery{body: body, header: http.Header{"X-Token": {guestKey}}, path: "/hooks/" + scheme}
		if by, err := client.HMAC(scheme, []byte(goodKey)); err == nil {
			if d.header, err = by("", []byte(body), h.clock.now()); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	wantRun := func(d delivery, text string) {
		t.Helper()
		h.starts(d)
		if got, err := os.ReadFile(dir + "/ran"); err != nil || string(got) != text {
			t.Errorf("%s ran with %q, %v, want %q", d.path, got, err, text)
		}
	}
	pad, last := " ", "a b+c & é; 100%\n"
	for _, scheme := range []string{"github", "gitea", "token"} {
		for _, kind := range []string{"application/json", "application/x-www-form-urlencoded", "text/plain", ""} {
			for _, wrap := range []bool{false, true} {
				body := pad + doc
				if wrap {
					body = url.Values{"payload": {body}}.Encode()
				}
				d := sign(scheme, body)
				d.header.Set("Content-Type", kind)
				wantRun(d, last+pad+doc)
				pad += " "
			}
		}
		refused := http.StatusBadRequest
		if scheme == "gitea" { // which does not sign the form
			refused = http.StatusUnauthorized
		}
		signed := sign(scheme, doc)
		signed.body = twice
		if scheme == "github" {
			signed = sign(scheme, twice)
		}
		for _, kind := range []string{"application/json", "application/x-www-form-urlencoded"} {
			signed.header.Set("Content-Type", kind)
			h.answers(refused, signed)
		}
	}
	// The same signature, with the other reading: it is the same delivery.
	d := sign("gitea", doc)
	h.starts(d)
	d.body = form
	if a := h.answers(http.StatusOK, d); a.header.Get("Idempotent-Replayed") == "" {
		t.Errorf("gitea's JSON in a form is another delivery: %v", a.header)
	}
	for name, body := range map[string]string{
		"not JSON": "payload=text", "a name twice": "payload=%7B%22text%22:%221%22,%22text%22:%222%22%7D",
		"an escape": "payload=%7B%22text%22:%221%22%7D%", "in a form again": url.Values{"payload": {form}}.Encode(),
	} {
		if a := h.answers(http.StatusBadRequest, sign("github", body)); !strings.Contains(a.body, "this hook reads JSON") {
			t.Errorf("%s: %s", name, a.body)
		}
	}
	h.answers(http.StatusBadRequest, sign("stripe", form)) // which sends no forms
	json := sign("token", form).to("/hooks/json")
	h.answers(http.StatusBadRequest, json)
	h.answers(http.StatusUnprocessableEntity, sign("github", form).to("/hooks/form")) // it has no field text
	wantRun(sign("github", twice).to("/hooks/form"), "other\n"+twice)
	wantRun(sign("github", form).to("/hooks/stdin"), "\n"+doc)
}

// TestContentEncoding_Refused checks that an encoded body is refused before it is read, without a credential, and that
// the answer names the encoding.
func TestContentEncoding_Refused(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	for _, c := range []struct {
		lines []string
		named string // empty if the body is not encoded
	}{
		{[]string{"gzip"}, "gzip"},
		{[]string{"GZip"}, "GZip"},
		{[]string{"identity, br"}, "br"},
		{[]string{"identity", " zstd\t"}, "zstd"},
		{[]string{"", ",deflate,"}, "deflate"},
		{[]string{"gzip;q=1"}, "gzip;q=1"},
		{[]string{"identity identity"}, "identity identity"},
		{[]string{strings.Repeat("x", 50)}, strings.Repeat("x", 40)},
		{[]string{"identity"}, ""},
		{[]string{"Identity , identity"}, ""},
		{[]string{""}, ""},
		{[]string{"", ","}, ""},
	} {
		d := delivery{body: "body", header: http.Header{"Content-Encoding": c.lines}}
		if c.named == "" {
			h.answers(http.StatusUnauthorized, d)
			continue
		}
		a := h.answers(http.StatusUnsupportedMediaType, d)
		if a.asked || a.header.Get("Accept-Encoding") != "identity" || !strings.Contains(a.body, "urn:sallyport:encoding") ||
			!strings.Contains(a.body, `the Content-Encoding \"`+c.named+`\"`) {
			t.Errorf("%q: the body was asked for: %t; %v %s", c.lines, a.asked, a.header, a.body)
		}
	}
	signed := h.by("good", "1")
	signed.header.Set("Content-Encoding", "gzip")
	h.answers(http.StatusUnsupportedMediaType, signed)
	signed.header.Set("Content-Encoding", "identity")
	h.starts(signed)
}

// FuzzHeaders sends the same body with any header: its parameters stay the same.
func FuzzHeaders(f *testing.F) {
	spec := func(as string) *hook.Spec { // handlers.Bind binds for a caller that sends JSON in forms, too
		return &hook.Spec{
			Unauthenticated: true, Command: []string{"/bin/echo", "--x={x}"}, Body: hook.BodySpec{As: as},
			Params: map[string]hook.ParamSpec{"x": {From: hook.From{"body", "x"}, Match: "(?s).*"}},
		}
	}
	var p diag.List
	hooks := hook.Compile(map[string]*hook.Spec{
		"json": spec("json"), "form": spec("form"), "payload": spec("payload"),
	}, nil, &p)
	if p.Bad() {
		f.Fatal(p.All())
	}
	f.Add([]byte(`{"x":"1&x=2"}`), "Content-Type", "application/x-www-form-urlencoded", "text/plain")
	f.Add([]byte("x=1"), "content-type", "application/json", "multipart/form-data; boundary=x")
	f.Add([]byte(`payload={"x":"1"}`), "Content-Type", "application/json", "application/x-www-form-urlencoded")
	f.Add([]byte(`payload={"x":"1"}&x=2`), "Content-Type", "application/json", "application/x-www-form-urlencoded")
	f.Add([]byte(`{"x":"1"}`), "Content-Encoding", "gzip", "utf-16")
	f.Add([]byte(`{"x":"1"}`), "X-Http-Method-Override", "PUT", "charset=utf-7")
	f.Fuzz(func(t *testing.T, body []byte, name, one, two string) {
		for as, h := range hooks {
			bind := func(header http.Header) (hook.Values, error) {
				r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/"+as, strings.NewReader(string(body)))
				r.Header = header
				return handlers.Bind(r, body, h)
			}
			want, refused := bind(http.Header{})
			for _, header := range []http.Header{
				{name: {one}},
				{http.CanonicalHeaderKey(name): {one}},
				{name: {one, two}},
				{"Content-Type": {one}},
				{"Content-Type": {one, two}},
			} {
				if got, err := bind(header); !maps.Equal(got, want) || (err == nil) != (refused == nil) {
					t.Errorf("%s with %v: %q, %v, and without %q, %v", as, header, got, err, want, refused)
				}
			}
		}
	})
}
