package runner_test

import (
	"os"
	"testing"

	"sallyport/internal/diag"
	"sallyport/runner/hook"
)

// newHook compiles a hook called h, with a caller, and any text as parameter for each name in params.
func newHook(t testing.TB, s hook.Spec, params ...string) *hook.Hook {
	t.Helper()
	return namedHook(t, "h", s, params...)
}

func namedHook(t testing.TB, name string, s hook.Spec, params ...string) *hook.Hook {
	t.Helper()
	if s.Callers == nil {
		s.Callers = []hook.Grant{{Caller: "ci"}}
	}
	if s.Params == nil {
		s.Params = map[string]hook.ParamSpec{}
	}
	for _, name := range params {
		s.Params[name] = hook.ParamSpec{From: hook.From{"body", name}, Match: "(?s).*"}
	}
	var p diag.List
	hooks := hook.Compile(map[string]*hook.Spec{name: &s}, []string{"ci"}, &p)
	if problems := p.All(); len(problems) > 0 {
		t.Fatalf("refused: %v", problems)
	}
	return hooks[name]
}

func folder(t testing.TB, mode os.FileMode) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	return dir
}
