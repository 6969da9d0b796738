package hook_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"sallyport/internal/diag"
	"sallyport/runner/hook"
)

func TestCompile_RefusesMistakes(t *testing.T) {
	echo := func(change func(*hook.Spec)) hook.Spec {
		s := hook.Spec{Command: []string{"/bin/echo"}}
		change(&s)
		return s
	}
	param := func(p hook.ParamSpec) hook.Spec {
		return hook.Spec{Command: []string{"/bin/echo", "--x={x}"}, Params: map[string]hook.ParamSpec{"x": p}}
	}
	body := hook.From{"body", "x"}
	for _, c := range []struct {
		reason, path, words string
		spec                hook.Spec
	}{
		{"a path with dots", "path", "not a plain path", echo(func(s *hook.Spec) { s.Path = "/a/../b" })},
		{"a relative path", "path", "not a plain path", echo(func(s *hook.Spec) { s.Path = "a" })},
		{"a path that ends with a slash", "path", "not a plain path", echo(func(s *hook.Spec) { s.Path = "/a/" })},
		{"a path with an escape", "path", "not a plain path", echo(func(s *hook.Spec) { s.Path = "/a%2fb" })},
		{"a path of the server's own", "path", "path of the server", echo(func(s *hook.Spec) { s.Path = "/runs/x" })},
		{"no caller may start it", "callers", "is empty", echo(func(s *hook.Spec) { s.Callers = grants() })},
		{"an unknown caller", "callers.0", "unknown caller", echo(func(s *hook.Spec) { s.Callers = grants("cd") })},
		{"a caller twice", "callers.1", "twice", echo(func(s *hook.Spec) { s.Callers = grants("ci", "ci") })},
		{"callers and dangerously_unauthenticated", "dangerously_unauthenticated", "contradicts", echo(func(s *hook.Spec) { s.Callers, s.Unauthenticated = grants("ci"), true })},
		{"an unknown policy", "busy", "not a policy", echo(func(s *hook.Spec) { s.Busy.Kind = "wait" })},
		{"a queue of no length", "busy", "from 1 to", echo(func(s *hook.Spec) { s.Busy.Kind = "queue" })},
		{"a queue below zero", "busy", "from 1 to", echo(func(s *hook.Spec) { s.Busy.Queue = -1 })},
		{"a queue without an end", "busy", "from 1 to", echo(func(s *hook.Spec) { s.Busy.Queue = 10_001 })},
		{"a queue timeout without a queue", "queue_timeout", "needs a queue", echo(func(s *hook.Spec) { s.QueueTimeout = time.Minute })},
		{"a time to wait below zero", "queue_timeout", "below zero", echo(func(s *hook.Spec) { s.QueueTimeout, s.Busy.Kind = -1, "join" })},
		{"an unknown way to repeat", "on_interrupted", "not a policy", echo(func(s *hook.Spec) { s.OnInterrupted = "retry" })},
		{"a count to keep below zero", "keep", "at least", echo(func(s *hook.Spec) { s.Keep.Count = -1 })},
		{"an age to keep below zero", "keep", "at least", echo(func(s *hook.Spec) { s.Keep.Age = -1 })},
		{"an unknown right", "callers.0.may.1", "not a right", echo(func(s *hook.Spec) { s.Callers = grantsWith("start", "write") })},
		{"a right in capitals", "callers.0.may.0", "not a right", echo(func(s *hook.Spec) { s.Callers = grantsWith("Start") })},
		{"a right twice", "callers.0.may.1", "twice", echo(func(s *hook.Spec) { s.Callers = grantsWith("read", "read") })},
		{"no right at all", "callers.0.may", "is empty: leave the caller out", echo(func(s *hook.Spec) { s.Callers = grantsWith() })},
		{"a caller twice, first with no right", "callers.1", "twice", echo(func(s *hook.Spec) { s.Callers = append(grantsWith("read"), grants("ci")...) })},
		{"an unknown stdin", "stdin", "not a source", echo(func(s *hook.Spec) { s.Stdin = "Body" })},
		{"a relative dir", "dir", "existing folder", echo(func(s *hook.Spec) { s.Dir = "tmp" })},
		{"a dir that is missing", "dir", "existing folder", echo(func(s *hook.Spec) { s.Dir = "/nowhere" })},
		{"a timeout below zero", "timeout", "below zero", echo(func(s *hook.Spec) { s.Timeout = -1 })},
		{"a grace below zero", "grace", "below zero", echo(func(s *hook.Spec) { s.Grace = -1 })},
		{"a body timeout of hours", "body.timeout", "is over 10m0s", echo(func(s *hook.Spec) { s.Body.Timeout = 10*time.Minute + 1 })},
		{"a body timeout below zero", "body.timeout", "below zero", echo(func(s *hook.Spec) { s.Body.Timeout = -1 })},
		{"an unknown form of a body", "body.as", "json, form or payload", echo(func(s *hook.Spec) { s.Body.As = "xml" })},
		{"a body too large for the database", "body.max", "over 900MiB", echo(func(s *hook.Spec) { s.Stdin, s.Body.Max = "body", 1000<<20 })},
		{"a huge body", "body.max", "over 1GiB", echo(func(s *hook.Spec) { s.Body.Max = 1<<30 + 1 })},
		{"a huge output", "output", "1TiB", echo(func(s *hook.Spec) { s.Output.Tail = 1<<40 + 1 })},
		{"a flight that is always the same", "flight", "no hole", echo(func(s *hook.Spec) { s.Flight.Key = "all" })},
		{"a flight of no parameter", "flight", "no parameter", echo(func(s *hook.Spec) { s.Flight.Key = "{x}" })},
		{"a hole without a parameter", "command.1", "no parameter", echo(func(s *hook.Spec) { s.Command = []string{"/bin/echo", "{x}"} })},
		{"a hole that does not end", "command.1", "write {name}", echo(func(s *hook.Spec) { s.Command = []string{"/bin/echo", "{x"} })},
		{"a hole with a blank", "command.1", "write {name}", echo(func(s *hook.Spec) { s.Command = []string{"/bin/echo", "{ x}"} })},
		{"an empty hole", "command.1", "write {name}", echo(func(s *hook.Spec) { s.Command = []string{"/bin/echo", "{}"} })},
		{"a brace alone", "command.1", "closes nothing", echo(func(s *hook.Spec) { s.Command = []string{"/bin/echo", "x}"} })},
		{"a parameter that nothing uses", "params.x", "nothing uses", echo(func(s *hook.Spec) { s.Params = map[string]hook.ParamSpec{"x": textParam("body", "x")} })},
		{"neither match nor enum", "params.x", "match and enum", param(hook.ParamSpec{From: body})},
		{"a pattern and a list", "params.x", "one of match and enum", param(hook.ParamSpec{From: body, Match: "a", Enum: []string{"a"}})},
		{"an empty list", "params.x.enum", "is empty: no value would be allowed", param(hook.ParamSpec{From: body, Enum: []string{}})},
		{"a malformed pattern", "params.x.match", "missing closing", param(hook.ParamSpec{From: body, Match: "("})},
		{"a pattern that leaves its group", "params.x.match", "unexpected )", param(hook.ParamSpec{From: body, Match: "a)|(?:b"})},
		{"a pattern that quotes what follows it", "params.x.match", "missing closing", param(hook.ParamSpec{From: body, Match: `\Qa`})},
		{"a pattern for a number", "params.x", "leave match and enum out", param(hook.ParamSpec{From: body, Type: "int", Match: "1"})},
		{"an unknown type", "params.x.type", "not a type", param(hook.ParamSpec{From: body, Type: "float"})},
		{"bounds of a text", "params.x", "type: int", param(hook.ParamSpec{From: body, Match: "a", Min: new(int64(1))})},
		{"a pattern for JSON", "params.x", "leave match and enum out", param(hook.ParamSpec{From: body, Type: "json", Match: ".*"})},
		{"a list of numbers", "params.x", "leave match and enum out", param(hook.ParamSpec{From: body, Type: "number", Enum: []string{"1"}})},
		{"bounds of JSON", "params.x", "type: number", param(hook.ParamSpec{From: body, Type: "json", Max: new(int64(1))})},
		{"JSON of a header", "params.x.from", "header.a has no JSON text", param(hook.ParamSpec{From: hook.From{"header.a"}, Type: "json"})},
		{"JSON of a claim", "params.x.from", "claim.a has no JSON", param(hook.ParamSpec{From: hook.From{"body.a", "claim.a"}, Type: "json"})},
		{"a default that is not compact", "params.x.default", "compact form", param(hook.ParamSpec{From: body, Type: "json", Default: new("[ ]")})},
		{"a default that is not canonical", "params.x.default", "not a number", param(hook.ParamSpec{From: body, Type: "number", Default: new("1.0")})},
		{"min above max", "params.x.max", "below min", param(hook.ParamSpec{From: body, Type: "int", Min: new(int64(2)), Max: new(int64(1))})},
		{"a default that is not allowed", "params.x.default", "not one of", param(hook.ParamSpec{From: body, Enum: []string{"a"}, Default: new("b")})},
		{"no source", "params.x.from", "does not say where", param(hook.ParamSpec{Match: "a"})},
		{"an unknown source", "params.x.from", "not a source", param(hook.ParamSpec{From: hook.From{"cookie", "a"}, Match: "a"})},
		{"a whole body", "params.x.from", "names no member", param(hook.ParamSpec{From: hook.From{"body"}, Match: "a"})},
		{"a query with dots", "params.x.from", "one name", param(hook.ParamSpec{From: hook.From{"query", "a", "b"}, Match: "a"})},
		{"an empty name", "params.x.from", "empty name", param(hook.ParamSpec{From: hook.From{"body", "", "b"}, Match: "a"})},
		{"an empty name in a path", "params.x.from", "empty name", fromPaths("body..b")},
		{"no source", "params.x.from", "does not say", fromPaths()},
		{"an unknown source in a path", "params.x.from", "not a source", fromPaths("cookie.a")},
		{"a path with a bad index", "params.x.from", "write [0] for the first", fromPaths("body.a[x]")},
		{"a list in a query", "params.x.from", "a query is not a list", fromPaths("query.a[0]")},
		{"a header with a step", "params.x.from", `write header["a.b"]`, fromPaths("header.a.b")},
		{"a list in a form", "params.x.from", "a form has no lists", fromForm("body.a[0]")},
		{"JSON of a form", "params.x.from", "body.a has no JSON text", jsonOfForm("body.a")},
		{"a path twice", "params.x.from.1", "listed twice", fromPaths("body.a", "body.a")},
		{"a bad path among others", "params.x.from.1", "not a source", fromPaths("body.a", "cookie.a")},
		{"a bare name among paths", "params.x.from.1", "names no member", fromPaths("body.a", "query")},
		{"a bare name before paths", "params.x.from", `write query["body.a"]`, fromPaths("query", "body.a")},
	} {
		t.Run(c.reason, func(t *testing.T) {
			_, problems := compile(c.spec)
			refuse(t, problems, c.path, c.words)
		})
	}
}

func grantsWith(rights ...string) []hook.Grant {
	return []hook.Grant{{Caller: "ci", May: append([]string{}, rights...)}}
}

func TestMay_Rights(t *testing.T) {
	all := []hook.Right{hook.MayStart, hook.MayRead, hook.MayCancel}
	for _, c := range []struct {
		grants []hook.Grant
		want   []hook.Right
	}{
		{grants("ci"), []hook.Right{hook.MayStart}},
		{grantsWith("read"), []hook.Right{hook.MayRead}},
		{grantsWith("cancel", "start"), []hook.Right{hook.MayStart, hook.MayCancel}},
		{grantsWith("start", "read", "cancel"), all},
	} {
		h := newHook(t, hook.Spec{Command: []string{"/bin/echo"}, Callers: c.grants})
		for _, r := range all {
			if got := h.May("ci", r); got != slices.Contains(c.want, r) {
				t.Errorf("%+v: %s is %t", c.grants, r, got)
			}
			if h.May("cd", r) || h.May("", r) {
				t.Errorf("%+v: others may %s", c.grants, r)
			}
		}
	}
}

func TestBusySpec_Forms(t *testing.T) {
	for spec, want := range map[hook.BusySpec]hook.Policy{
		{}:                {Kind: hook.Reject},
		{Kind: "reject"}:  {Kind: hook.Reject},
		{Queue: 10_000}:   {Kind: hook.Queue, Depth: 10_000},
		{Kind: "join"}:    {Kind: hook.Join},
		{Kind: "replace"}: {Kind: hook.Replace},
	} {
		h := newHook(t, hook.Spec{Command: []string{"/bin/echo"}, Busy: spec})
		if h.Busy != want {
			t.Errorf("%s is %+v", spec, h.Busy)
		}
	}
	if got := (hook.BusySpec{Kind: "queue", Queue: 3}).String(); got != "queue: 3" {
		t.Errorf("got %q", got)
	}
}

func TestUnmarshal_SingleWord(t *testing.T) {
	var got struct {
		Callers []hook.Grant
		Busy    hook.BusySpec
	}
	err := yaml.Unmarshal([]byte("callers: [ci, admin]\nbusy: join"), &got)
	if err != nil || len(got.Callers) != 2 || got.Callers[1].Caller != "admin" || got.Busy.Kind != "join" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCompile_AllProblems(t *testing.T) {
	_, problems := compile(hook.Spec{Path: "x", Callers: grants("cd"), Busy: hook.BusySpec{Kind: "no"}, Command: []string{"sh", "{y}"}, Env: map[string]string{"PATH": "{z}"}})
	if len(problems) < 6 {
		t.Errorf("got %v", problems)
	}
}

func TestCompile_SamePath(t *testing.T) {
	var p diag.List
	echo := func() *hook.Spec {
		return &hook.Spec{Path: "/a", Callers: grants("ci"), Command: []string{"/bin/echo"}}
	}
	hook.Compile(map[string]*hook.Spec{"a": echo(), "b": echo(), "c": nil}, []string{"ci"}, &p)
	all := p.All()
	if len(all) != 2 || strings.Join(all[0].Path, ".") != "b.path" || strings.Join(all[1].Path, ".") != "c" {
		t.Errorf("got %v", all)
	}
}

func TestCompile_UnauthenticatedWarns(t *testing.T) {
	_, problems := compile(hook.Spec{Unauthenticated: true, Command: []string{"/bin/echo"}})
	refuse(t, problems, "dangerously_unauthenticated", "any client")
	if !problems[0].Warning {
		t.Error("it keeps the server from starting")
	}
}

func TestCompile_Defaults(t *testing.T) {
	spec := hook.Spec{Callers: grants("ci"), Command: []string{"/bin/echo"}}
	h := newHook(t, spec)
	if h.Path != "/hooks/h" || h.Timeout != time.Hour || h.Grace != 10*time.Second || h.Body.Max != 1<<20 ||
		h.Body.Timeout != 10*time.Second || h.Output.Head != 1<<20 || h.Output.Tail != 9<<20 || h.Spec().Busy.Kind != "reject" {
		t.Errorf("got %+v", h.Spec())
	}
	if spec.Path != "" || spec.Timeout != 0 {
		t.Errorf("the file's own changed: %+v", spec)
	}
}

func TestEnv_SteeringVariables(t *testing.T) {
	env := func(name, value string) []diag.Problem {
		_, problems := compile(hook.Spec{
			Command: []string{"/bin/echo", "{x}"}, Env: map[string]string{name: value},
			Params: map[string]hook.ParamSpec{"x": textParam("body", "x")},
		})
		return problems
	}
	for _, name := range []string{
		"PATH", "HOME", "IFS", "ENV", "BASH_ENV", "LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "PYTHONPATH", "PERL5LIB",
		"NODE_OPTIONS", "GIT_SSH_COMMAND", "JAVA_TOOL_OPTIONS", "http_proxy", "HTTPS_PROXY", "EDITOR", "XDG_CONFIG_HOME", "OPENSSL_CONF", "MAKEFLAGS",
	} {
		refuse(t, env(name, "{x}"), "env."+name, "cannot have a hole")
		if problems := env(name, "/fixed"); len(problems) > 0 {
			t.Errorf("the file itself may not set %s: %v", name, problems)
		}
	}
	for _, name := range []string{"REF", "EVENT", "GOAL", "NODE", "PGDATABASE", "CI_COMMIT", "pathname"} {
		if problems := env(name, "{x}"); len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
		}
	}
	refuse(t, env("SALLYPORT_RUN", "x"), "env.SALLYPORT_RUN", "by the server itself")
	refuse(t, env("TRACEPARENT", "x"), "env.TRACEPARENT", "by the server itself")
	refuse(t, env("A=B", "x"), "env.A=B", "not a name")
	refuse(t, env("A", "x\x00"), "env.A", "NUL")
}

func TestEnviron_Sorted(t *testing.T) {
	h := newHook(t, hook.Spec{Command: []string{"/bin/echo"}, Env: map[string]string{"B": "{x}=\n{x}", "A": "{{}}"}}, "x")
	if got := h.Environ(hook.Values{"x": "v"}); !slices.Equal(got, []string{"A={}", "B=v=\nv"}) {
		t.Errorf("got %q", got)
	}
}

func TestFlight_TwoHooks(t *testing.T) {
	h := newHook(t, hook.Spec{Command: []string{"/bin/echo"}, Flight: hook.FlightSpec{Key: "{x}"}}, "x")
	if got := h.Flight(hook.Values{"x": "eu/1"}); got != "h/eu/1" {
		t.Errorf("got %q", got)
	}
	if got := newHook(t, hook.Spec{Command: []string{"/bin/echo"}}).Flight(nil); got != "h" {
		t.Errorf("got %q", got)
	}
}

func TestFlight_IsOfOneSetOfValues(t *testing.T) {
	h := newHook(t, hook.Spec{Command: []string{"/bin/echo"}, Flight: hook.FlightSpec{Key: "{x}-{y}"}}, "x", "y")
	for want, v := range map[string]hook.Values{
		"h/a-b": {"x": "a", "y": "b"}, "h/a-b%2Dc": {"x": "a", "y": "b-c"}, "h/a%2Db-c": {"x": "a-b", "y": "c"}, "h/é%252D-": {"x": "é%2D", "y": ""},
	} {
		if got := h.Flight(v); got != want {
			t.Errorf("%q: got %q, want %q", v, got, want)
		}
	}
}

func TestSize_Text(t *testing.T) {
	for written, want := range map[string]hook.Size{
		"4096": 4096, "1B": 1, "64KiB": 64 << 10, "10MiB": 10 << 20, "1GiB": 1 << 30, "10kB": 10_000, "10KB": 10_000, "10MB": 10_000_000, "1GB": 1_000_000_000,
	} {
		var s hook.Size
		if err := s.UnmarshalText([]byte(written)); err != nil || s != want {
			t.Errorf("%s is %d, %v", written, s, err)
		}
		var again hook.Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%s is printed as %s", written, s)
		}
	}
	for _, written := range []string{"", "0", "0MiB", "-1", "+1", "1.5MiB", "1 MiB", "MiB", "1mib", "1K", "1TiB", "1_000", "0x10", "9223372036854775808", "9999999999GiB", "1MiBB"} {
		var s hook.Size
		if err := s.UnmarshalText([]byte(written)); err == nil {
			t.Errorf("%q is read as %d", written, s)
		}
	}
}

// fromPaths returns a hook with a parameter from these paths.
func fromPaths(paths ...string) hook.Spec {
	return hook.Spec{
		Command: []string{"/bin/echo", "--x={x}"},
		Params:  map[string]hook.ParamSpec{"x": {From: paths, Match: "a"}},
	}
}

// fromForm is fromPaths for a hook that reads a form.
func fromForm(path string) hook.Spec {
	s := fromPaths(path)
	s.Body.As = "form"
	return s
}

// jsonOfForm is fromForm for a parameter of type json.
func jsonOfForm(path string) hook.Spec {
	s := fromForm(path)
	s.Params["x"] = hook.ParamSpec{From: hook.From{path}, Type: "json"}
	return s
}

func TestFrom_Forms(t *testing.T) {
	for written, want := range map[string][]string{
		"from: body.a.b":                          {"body.a.b"},
		`from: 'body.a[0]["b.c"]'`:                {`body.a[0]["b.c"]`},
		"from: [body.a, query.a]":                 {"body.a", "query.a"},
		"from: [claim, kubernetes.io, namespace]": {"claim", "kubernetes.io", "namespace"},
	} {
		var got struct{ From hook.From }
		if err := yaml.Unmarshal([]byte(written), &got); err != nil || !slices.Equal(got.From, want) {
			t.Errorf("%s: %q, %v", written, got.From, err)
		}
	}
	failed := errors.New("no text")
	var f hook.From
	if err := f.UnmarshalYAML(func(any) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
}

// TestFlight_Shared: a run shares a flight by its values under the template of the hook, whatever its own flight is
// called; a run without one of these values shares every flight of the hook.
func TestFlight_Shared(t *testing.T) {
	for _, c := range []struct {
		template string
		values   hook.Values
		want     bool
	}{
		{"{x}", hook.Values{"x": "eu"}, true},
		{"{x}", hook.Values{"x": "us"}, false},
		{"{x}", hook.Values{"x": ""}, false},
		{"{x}", nil, true},
		{"{x}-{y}", hook.Values{"x": "eu"}, true},
		{"{x}-{y}", hook.Values{"x": "eu", "y": "b"}, false},
		{"", nil, true},
	} {
		spec := hook.Spec{Command: []string{"/bin/echo", "--x={x}", "--y={y}"}, Flight: hook.FlightSpec{Key: c.template}}
		h := newHook(t, spec, "x", "y")
		flight := h.Flight(hook.Values{"x": "eu", "y": "a"})
		if got := h.SharesFlight(flight, c.values); got != c.want {
			t.Errorf("%q, %v: %v", c.template, c.values, got)
		}
		if got := hook.FlightHook(flight); got != h.Name {
			t.Errorf("%q is of the hook %q", flight, got)
		}
	}
}
