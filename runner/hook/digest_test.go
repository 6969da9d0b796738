package hook_test

import (
	"testing"

	"sallyport/internal/diag"
	"sallyport/runner/hook"
)

// TestDigest_DistinctHooks checks that hooks that differ have different digests.
func TestDigest_DistinctHooks(t *testing.T) {
	digest := func(name string, change func(*hook.Spec)) string {
		t.Helper()
		spec := &hook.Spec{
			Callers: grants("a", "b"), Command: []string{"/bin/echo", "{x}", "{y}"},
			Params: map[string]hook.ParamSpec{
				"x": {Match: "a+", From: hook.From{"query", "x"}},
				"y": {Enum: []string{"1"}, From: hook.From{"query", "y"}},
			},
			Env: map[string]string{"A": "1", "B": "2"},
		}
		change(spec)
		var p diag.List
		hooks := hook.Compile(map[string]*hook.Spec{name: spec}, []string{"a", "b"}, &p)
		if p.Bad() {
			t.Fatal(p.All())
		}
		return hooks[name].Digest()
	}
	same := digest("job", func(*hook.Spec) {})
	for range 20 { // maps have a random order
		if got := digest("job", func(*hook.Spec) {}); got != same || got == "" {
			t.Fatalf("the same hook has the digests %q and %q", same, got)
		}
	}
	if digest("job", func(s *hook.Spec) { s.Busy = hook.BusySpec{Kind: "reject"} }) != same {
		t.Error("a default that is written out makes another hook of it")
	}
	seen := map[string]string{same: "the hook itself", digest("other", func(*hook.Spec) {}): "the name"}
	for what, change := range map[string]func(*hook.Spec){
		"command": func(s *hook.Spec) { s.Command = append(s.Command, "more") },
		"callers": func(s *hook.Spec) { s.Callers = s.Callers[:1] },
		"match": func(s *hook.Spec) {
			s.Params["x"] = hook.ParamSpec{Match: "b+", From: hook.From{"query", "x"}}
		},
		"env":     func(s *hook.Spec) { s.Env["A"] = "3" },
		"timeout": func(s *hook.Spec) { s.Timeout = 1 },
		"flight":  func(s *hook.Spec) { s.Flight.Key = "{y}" },
		"group":   func(s *hook.Spec) { s.Flight.Group = "y" },
		"output":  func(s *hook.Spec) { s.Output.Head = 1 },
	} {
		d := digest("job", change)
		if other, taken := seen[d]; taken {
			t.Errorf("%s has the digest of %s", what, other)
		}
		seen[d] = what
	}
}
