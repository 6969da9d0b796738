package runner_test

import (
	"testing"

	"sallyport/internal/diag"
	"sallyport/runner"
)

func TestDigestTellsHooksApart(t *testing.T) {
	digest := func(name string, change func(*runner.HookSpec)) string {
		t.Helper()
		spec := &runner.HookSpec{
			Callers: grants("a", "b"), Command: []string{"/bin/echo", "{x}", "{y}"},
			Params: map[string]runner.ParamSpec{
				"x": {Match: "a+", From: runner.From{"query", "x"}},
				"y": {Enum: []string{"1"}, From: runner.From{"query", "y"}},
			},
			Env: map[string]string{"A": "1", "B": "2"},
		}
		change(spec)
		var p diag.List
		hooks := runner.Compile(map[string]*runner.HookSpec{name: spec}, []string{"a", "b"}, &p)
		if p.Bad() {
			t.Fatal(p.All())
		}
		return hooks[name].Digest()
	}
	same := digest("job", func(*runner.HookSpec) {})
	for range 20 { // whatever order a map comes in
		if got := digest("job", func(*runner.HookSpec) {}); got != same || got == "" {
			t.Fatalf("the same hook has the digests %q and %q", same, got)
		}
	}
	if digest("job", func(s *runner.HookSpec) { s.Busy = runner.BusySpec{Kind: "reject"} }) != same {
		t.Error("a default that is written out makes another hook of it")
	}
	seen := map[string]string{same: "the hook itself", digest("other", func(*runner.HookSpec) {}): "the name"}
	for what, change := range map[string]func(*runner.HookSpec){
		"command": func(s *runner.HookSpec) { s.Command = append(s.Command, "more") },
		"callers": func(s *runner.HookSpec) { s.Callers = s.Callers[:1] },
		"match": func(s *runner.HookSpec) {
			s.Params["x"] = runner.ParamSpec{Match: "b+", From: runner.From{"query", "x"}}
		},
		"env":     func(s *runner.HookSpec) { s.Env["A"] = "3" },
		"timeout": func(s *runner.HookSpec) { s.Timeout = 1 },
		"flight":  func(s *runner.HookSpec) { s.Flight = "{y}" },
		"output":  func(s *runner.HookSpec) { s.Output.Head = 1 },
	} {
		d := digest("job", change)
		if other, taken := seen[d]; taken {
			t.Errorf("%s has the digest of %s", what, other)
		}
		seen[d] = what
	}
}
