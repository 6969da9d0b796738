package handlers_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"sallyport/handlers"
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
}

// FuzzHeaders sends the same body with any header: its parameters stay the same.
func FuzzHeaders(f *testing.F) {
	spec := func(as string) *hook.Spec {
		return &hook.Spec{
			Unauthenticated: true, Command: []string{"/bin/echo", "--x={x}"}, Body: hook.BodySpec{As: as},
			Params: map[string]hook.ParamSpec{"x": {From: hook.From{"body", "x"}, Match: "(?s).*"}},
		}
	}
	var p diag.List
	hooks := hook.Compile(map[string]*hook.Spec{"json": spec("json"), "form": spec("form")}, nil, &p)
	if p.Bad() {
		f.Fatal(p.All())
	}
	f.Add([]byte(`{"x":"1&x=2"}`), "Content-Type", "application/x-www-form-urlencoded", "text/plain")
	f.Add([]byte("x=1"), "content-type", "application/json", "multipart/form-data; boundary=x")
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
