package hook_test

import (
	"bytes"
	"errors"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"sallyport/runner/hook"
)

// bombs are bodies of about a megabyte that cost a reader more than others.
func bombs() map[string]string {
	return map[string]string{
		"100,000 elements": `{"x":[` + strings.Repeat("{},", 99_999) + `{"a":"last"}]}`,
		"100,000 members":  `{"x":[` + strings.Repeat(`{"a":1},`, 99_999) + `{"a":"last"}]}`,
		"deep lists":       `{"x":` + strings.Repeat("[", 1<<20),
		"deep objects":     `{"x":` + strings.Repeat(`{"x":`, 1<<18),
		"a number":         `{"x":[1` + strings.Repeat("0", 1<<20) + `]}`,
		"escapes":          `{"x":["` + strings.Repeat(`\u0000`, 1<<17) + `"]}`,
	}
}

// bombHooks read one element, and the whole list as JSON, which is longer than an argument may be.
func bombHooks(t testing.TB) map[string]*hook.Hook {
	t.Helper()
	return map[string]*hook.Hook{
		"an element": oneParamHook(t, hook.ParamSpec{From: hook.From{"body.x[-1].a"}, Match: ".*"}),
		"a list":     oneParamHook(t, hook.ParamSpec{From: hook.From{"body.x"}, Type: "json"}),
		"a number":   oneParamHook(t, hook.ParamSpec{From: hook.From{"body.x[0]"}, Type: "number"}),
	}
}

// TestBind_MemoryBounded checks that no body takes more memory than 128 times its length, as JSON and in a form, and
// that values that are too long, and bodies that are too deep, are refused.
func TestBind_MemoryBounded(t *testing.T) {
	for name, text := range bombs() {
		form := url.Values{"payload": {text}}.Encode()
		for reads, h := range bombHooks(t) {
			bodies := []string{text}
			if reads == "a list" { // the most work
				bodies = append(bodies, form)
			}
			for _, body := range bodies {
				in := hook.Input{Body: []byte(body), PayloadForm: true}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				v, problems, err := h.Bind(in)
				runtime.ReadMemStats(&after)
				if used := after.TotalAlloc - before.TotalAlloc; used > 128*uint64(len(text)) {
					t.Errorf("%s, %s: %d bytes for a body of %d", name, reads, used, len(body))
				}
				found := reads == "an element" && v["x"] == "last"
				if deep := strings.HasPrefix(name, "deep"); deep != errors.Is(err, hook.ErrBody) || !deep && found == (len(problems) > 0) {
					t.Errorf("%s, %s: %v, %v, %v", name, reads, v, problems, err)
				}
			}
		}
	}
}

func BenchmarkBind_Bombs(b *testing.B) {
	for name, text := range bombs() {
		for reads, h := range bombHooks(b) {
			for form, body := range map[string]string{"json": text, "form": url.Values{"payload": {text}}.Encode()} {
				b.Run(name+"/"+reads+"/"+form, func(b *testing.B) {
					b.ReportAllocs()
					b.SetBytes(int64(len(body)))
					for b.Loop() {
						_, _, _ = h.Bind(hook.Input{Body: bytes.Clone([]byte(body)), PayloadForm: true})
					}
				})
			}
		}
	}
}
