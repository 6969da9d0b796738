package hook_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/internal/diag"
	"sallyport/runner/hook"
)

// compile compiles one hook called h, with a caller, and any text as parameter
// for each name in params.
func compile(s hook.Spec, params ...string) (*hook.Hook, []diag.Problem) {
	if s.Callers == nil && !s.Unauthenticated {
		s.Callers = grants("ci")
	}
	if s.Params == nil {
		s.Params = map[string]hook.ParamSpec{}
	}
	for _, name := range params {
		s.Params[name] = textParam("body", name)
	}
	var p diag.List
	hooks := hook.Compile(map[string]*hook.Spec{"h": &s}, []string{"ci"}, &p)
	return hooks["h"], p.All()
}

func grants(callers ...string) []hook.Grant {
	list := make([]hook.Grant, len(callers))
	for i, c := range callers {
		list[i].Caller = c
	}
	return list
}

// textParam returns a parameter that takes any text.
func textParam(from ...string) hook.ParamSpec { return hook.ParamSpec{From: from, Match: "(?s).*"} }

func newHook(t testing.TB, s hook.Spec, params ...string) *hook.Hook {
	t.Helper()
	h, problems := compile(s, params...)
	if len(problems) > 0 {
		t.Fatalf("refused: %v", problems)
	}
	return h
}

// refuse checks that there is exactly one problem, at the dotted path below the hook, whose text contains the words.
func refuse(t *testing.T, problems []diag.Problem, path, words string) {
	t.Helper()
	if len(problems) != 1 {
		t.Errorf("want one problem, with %q, and got %v", words, problems)
		return
	}
	if got := strings.TrimPrefix(strings.Join(problems[0].Path, "."), "h."); got != path || !strings.Contains(problems[0].Text, words) {
		t.Errorf("%s: %s; want %s: … %s …", got, problems[0].Text, path, words)
	}
}

// file creates a file with a mode, regardless of the umask, in a folder that no other user may write to.
func file(t testing.TB, name string, mode os.FileMode) string {
	t.Helper()
	name = filepath.Join(folder(t, 0o755), name)
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
	return name
}

func folder(t testing.TB, mode os.FileMode) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	return dir
}

func link(t testing.TB, target, name string) string {
	t.Helper()
	name = filepath.Join(folder(t, 0o755), name)
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
	return name
}
