package hook_test

import (
	"strings"
	"testing"

	"sallyport/internal/diag"
	"sallyport/runner/hook"
)

// TestCompile_SharedPath checks which hooks may have the same path, and when a delivery may start two unintentionally.
func TestCompile_SharedPath(t *testing.T) {
	when := map[string]any{"body.ref": "refs/heads/main"}
	for name, c := range map[string]struct {
		a, b hook.Spec
		want string // part of the only diagnostic
		bad  bool
	}{
		"both have conditions":  {hook.Spec{Callers: grants("ci"), When: when}, hook.Spec{Callers: grants("ci"), When: when}, "", false},
		"one has no conditions": {hook.Spec{Callers: grants("ci")}, hook.Spec{Callers: grants("ci"), When: when}, "a has no conditions", false},
		"neither has conditions": {
			hook.Spec{Callers: grants("ci")}, hook.Spec{Callers: grants("ci")}, "a delivery of the caller ci can start both", false,
		},
		"different callers": {hook.Spec{Callers: grants("ci")}, hook.Spec{Callers: grants("cd")}, "", false},
		"one without authentication": {
			hook.Spec{Unauthenticated: true}, hook.Spec{Callers: grants("ci"), When: when}, "share a path only if both have callers", true,
		},
		"both without authentication": {
			hook.Spec{Unauthenticated: true, When: when}, hook.Spec{Unauthenticated: true, When: when}, "share a path only if", true,
		},
	} {
		c.a.Path, c.b.Path = "/one", "/one"
		c.a.Command, c.b.Command = []string{"/bin/true"}, []string{"/bin/true"}
		var p diag.List
		hook.Compile(map[string]*hook.Spec{"a": &c.a, "b": &c.b}, []string{"ci", "cd"}, &p)
		var found []string
		for _, one := range p.All() {
			if !strings.Contains(one.Text, "any client that reaches") {
				found = append(found, strings.Join(one.Path, ".")+": "+one.Text)
			}
		}
		text := strings.Join(found, "\n")
		if p.Bad() != c.bad || len(found) > 1 || (c.want == "") != (len(found) == 0) || !strings.Contains(text, c.want) ||
			c.want != "" && !strings.HasPrefix(text, "b.path: ") {
			t.Errorf("%s: bad %v: %s", name, p.Bad(), text)
		}
	}
}
