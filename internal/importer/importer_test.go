package importer_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/rogpeppe/go-internal/txtar"

	"sallyport/internal/importer"
)

// TestImport_Golden compares what is made of each hooks file in testdata with the rest of the same archive: the notes,
// one a line, and the hooks and callers.
func TestImport_Golden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(err, "no files")
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]string{}
			for _, f := range archive.Files {
				parts[f.Name] = string(f.Data)
			}
			result, err := importer.Import([]byte(parts["hooks"]), "secrets")
			if err != nil {
				t.Fatal(err)
			}
			var notes strings.Builder
			for _, n := range result.Notes {
				notes.WriteString(n.String() + "\n")
			}
			for _, s := range result.Secrets {
				notes.WriteString("secret " + s.File + " of " + s.Hook + "\n")
			}
			_, config, _ := strings.Cut(string(result.YAML), "  key: certs/server.key\n")
			if os.Getenv("UPDATE_GOLDEN") != "" {
				archive.Files = []txtar.File{
					{Name: "hooks", Data: []byte(parts["hooks"])},
					{Name: "notes", Data: []byte(notes.String())},
					{Name: "config", Data: []byte(config)},
				}
				if err := os.WriteFile(name, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if notes.String() != parts["notes"] {
				t.Errorf("the notes are\n%s\nwant\n%s", &notes, parts["notes"])
			}
			if config != parts["config"] {
				t.Errorf("the configuration is\n%s\nwant\n%s", config, parts["config"])
			}
			for _, s := range result.Secrets {
				if strings.Contains(config, s.Text) || strings.Contains(notes.String(), s.Text) {
					t.Errorf("the secret %s is shown", s.File)
				}
			}
		})
	}
}

// importedPattern returns the pattern that a match of type regex becomes.
func importedPattern(t *testing.T, expr string) string {
	t.Helper()
	hooks, err := json.Marshal([]any{map[string]any{
		"id": "a", "execute-command": "/bin/true", "trigger-rule": map[string]any{"match": map[string]any{
			"type": "regex", "regex": expr, "parameter": map[string]any{"source": "payload", "name": "x"},
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	result, err := importer.Import(hooks, "secrets")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Hooks map[string]struct {
			When map[string]struct {
				Match string `yaml:"match"`
			} `yaml:"when"`
		} `yaml:"hooks"`
	}
	if err := yaml.Unmarshal(result.YAML, &config); err != nil {
		t.Fatal(err)
	}
	return config.Hooks["a"].When["body.x"].Match
}

// TestImport_PatternsMatchTheSame: a pattern of the hooks file matches a part of a value, one of the configuration the
// whole. Both accept the same values, whatever anchors, alternations and flags the pattern has.
func TestImport_PatternsMatchTheSame(t *testing.T) {
	t.Parallel()
	values := []string{"", "a", "b", "ab", "ba", "xaby", "a\nb", "b\na", "a\n", "\na", "A", "$", "^a$", "a|b", "a b", "'", `"`}
	for _, expr := range []string{
		"", ".*", "a", "^a", "a$", "^a$", "^a|b$", "(^a)|(b$)", "(?i)^a$", "(?m)^a$", "^(?m)a$", `a\$`, `^a\$`, "^", "$",
		"^$", "^^a$$", "a|b", "^(a|b)$", "[$]", `\Aa\z`, "(?s)a.b", "a.b", `'`, `"`, "^a|^b", "a$|b$", "^a$|b",
	} {
		pattern := importedPattern(t, expr)
		whole, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
		if err != nil {
			t.Errorf("%q becomes %q: %v", expr, pattern, err)
			continue
		}
		for _, v := range values {
			if got, want := whole.MatchString(v), regexp.MustCompile(expr).MatchString(v); got != want {
				t.Errorf("%q, which becomes %q, and the value %q: %t, want %t", expr, pattern, v, got, want)
			}
		}
	}
}

// TestImport_NotHooks: a file that is not a list of hooks is an error, and never an empty configuration.
func TestImport_NotHooks(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "[]", "{}", `"text"`, "[", "- id: {{ if true }}", "a: 1"} {
		if result, err := importer.Import([]byte(text), "secrets"); err == nil {
			t.Errorf("%q: %s", text, result.YAML)
		}
	}
}

// TestImport_TextStaysText: text that YAML could read as something else is in quotes, as a value and as a key.
func TestImport_TextStaysText(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"1e3", ".inf", "---", "<<", "yes", "null", "~", "0x1f", "-", "a: b", "a #b", "'", `"`, `\`, "{x", "a\nb", "\u202e",
		"\ttab", " a ", "#", "!x", "&x", "*x", "@x", "%x", "é",
	} {
		hooks, err := json.Marshal([]any{map[string]any{
			"id": "a", "execute-command": "/bin/true",
			"pass-arguments-to-command":   []any{map[string]any{"source": "string", "name": text}},
			"pass-environment-to-command": []any{map[string]any{"source": "url", "name": "q" + text, "envname": "Q"}},
			"trigger-rule": map[string]any{"match": map[string]any{
				"type": "value", "value": text, "parameter": map[string]any{"source": "payload", "name": "x" + text},
			}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		result, err := importer.Import(hooks, "secrets")
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		var config struct {
			Hooks map[string]struct {
				Command []string       `yaml:"command"`
				When    map[string]any `yaml:"when"`
			} `yaml:"hooks"`
		}
		if err := yaml.Unmarshal(result.YAML, &config); err != nil {
			t.Fatalf("%q: %v\n%s", text, err, result.YAML)
		}
		hook := config.Hooks["a"]
		want := strings.NewReplacer("{", "{{", "}", "}}").Replace(text)
		if len(hook.Command) != 2 || hook.Command[1] != want {
			t.Errorf("%q: command %q\n%s", text, hook.Command, result.YAML)
		}
		for _, v := range hook.When {
			if list, ok := v.([]any); ok {
				v = list[0]
			}
			if m, ok := v.(map[string]any); ok {
				v = m["match"]
			}
			if v != text && v != regexp.QuoteMeta(text) {
				t.Errorf("%q: when %q\n%s", text, hook.When, result.YAML)
			}
		}
	}
}

// TestImport_PartOfSecret: a secret of which only a part is a template is refused. Its key would be the text of the
// template, which is public.
func TestImport_PartOfSecret(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{`prefix-{{ getenv "S" }}`, `{{ getenv "S" }}{{ getenv "T" }}`} {
		result, err := importer.Import([]byte(`- id: deploy
  execute-command: /bin/true
  trigger-rule:
    match:
      type: payload-hmac-sha256
      secret: `+secret+`
      parameter: {source: header, name: X-Hub-Signature-256}
`), "secrets")
		if err == nil && (len(result.Secrets) > 0 || strings.Contains(string(result.YAML), "hmac")) {
			t.Errorf("%s: secrets %v\n%s", secret, result.Secrets, result.YAML)
		}
	}
}

// importRule imports one hook with a rule, and returns the result and the hook of the configuration.
func importRule(t *testing.T, trigger map[string]any, more map[string]any) (*importer.Result, map[string]any) {
	t.Helper()
	hook := map[string]any{"id": "a", "execute-command": "/bin/true", "trigger-rule": trigger}
	maps.Copy(hook, more)
	hooks, err := json.Marshal([]any{hook})
	if err != nil {
		t.Fatal(err)
	}
	result, err := importer.Import(hooks, "secrets")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Hooks map[string]map[string]any `yaml:"hooks"`
	}
	if err := yaml.Unmarshal(result.YAML, &config); err != nil {
		t.Fatal(err)
	}
	return result, config.Hooks["a"]
}

func matchRule(kind, text, source, name string) map[string]any {
	field := map[string]string{"value": "value", "regex": "regex"}[kind]
	if field == "" {
		field = "secret"
	}
	return map[string]any{"match": map[string]any{
		"type": kind, field: text, "parameter": map[string]any{"source": source, "name": name},
	}}
}

// TestImport_SecretUnderAnyName: a comparison with a secret, under whatever name, becomes a token of a caller, or the
// hook is refused. The secret is never a condition, where it would lie in the configuration.
func TestImport_SecretUnderAnyName(t *testing.T) {
	t.Parallel()
	const drawn = "f3a9c1e5b2d4f60a8c0e"
	for _, c := range []struct{ kind, text, source, name string }{
		{"value", "open-sesame-open", "url", "auth"},
		{"value", "open-sesame-open", "url", "pass"},
		{"value", "open-sesame-open", "query", "code"},
		{"value", "open-sesame-open", "url", "key"},
		{"value", "open-sesame-open", "url", "accessKey"},
		{"value", "open-sesame-open", "header", "X-Anything"},
		{"value", "open-sesame-open", "payload", "auth"},
		{"value", "open-sesame-open", "payload", "hook.pass"},
		{"value", "open-sesame-open", "payload", "config.userPwd"},
		{"value", "open-sesame-open", "payload", "data.code"},
		{"value", drawn, "url", "x"},
		{"value", drawn, "header", "User-Agent"},
		{"value", drawn, "payload", "id"},
		{"value", "7f0e6b1c-2f1c-4c5e-9a55-0c3b8a9d1e2f", "url", "hook"},
		{"regex", "^" + drawn + "$", "url", "x"},
		{"regex", "^open", "payload", "auth"},
	} {
		t.Run(c.source+" "+c.name, func(t *testing.T) {
			t.Parallel()
			result, hook := importRule(t, matchRule(c.kind, c.text, c.source, c.name), nil)
			switch {
			case result.Refused() == 0 && (hook["callers"] == nil || hook["when"] != nil):
				t.Errorf("the hook is\n%s", result.YAML)
			case c.source == "payload" && result.Refused() == 0:
				t.Errorf("a secret in the body is imported:\n%s", result.YAML)
			case strings.Contains(string(result.YAML), c.text):
				t.Errorf("the configuration has the secret:\n%s", result.YAML)
			}
		})
	}
}

// TestImport_PublicValues: a comparison with a value that is no secret stays a condition, also beside a credential.
func TestImport_PublicValues(t *testing.T) {
	t.Parallel()
	signed := matchRule("payload-hmac-sha256", "mysecret-and-more-1", "header", "X-Hub-Signature-256")
	for _, c := range []struct {
		text, source, name string
		signed             bool
	}{
		{"refs/heads/release-2026", "payload", "ref", false},
		{"v1.2.3-rc1", "payload", "release.tag_name", false},
		{"production", "url", "env", false},
		{"push", "header", "X-Event", false},
		{"true", "payload", "bypass", false},
		{"OPS-12", "payload", "issue.key", true},
		{"200", "payload", "result.code", true},
		{"7f0e6b1c-2f1c-4c5e-9a55-0c3b8a9d1e2f", "payload", "repository.uuid", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rule := matchRule("value", c.text, c.source, c.name)
			if c.signed {
				rule = map[string]any{"and": []any{signed, rule}}
			}
			result, hook := importRule(t, rule, nil)
			if result.Refused() > 0 || hook["when"] == nil || (hook["callers"] != nil) != c.signed {
				t.Errorf("%v\n%s", result.Notes, result.YAML)
			}
		})
	}
}

// TestImport_AlternativeSecrets: secrets of which one must sign become keys of one caller only if they are for the same
// header and hash. Each key of a caller is accepted wherever one is.
func TestImport_AlternativeSecrets(t *testing.T) {
	t.Parallel()
	sign := func(hash, secret, header string) any {
		return matchRule("payload-hmac-"+hash, "mysecret-and-more-"+secret, "header", header)
	}
	soft := map[string]any{"trigger-signature-soft-failures": true}
	for name, c := range map[string]struct {
		one, other any
		keys       int // 0: refused
	}{
		"same header":            {sign("sha256", "1", "X-Hub-Signature-256"), sign("sha256", "2", "x-hub-signature-256"), 2},
		"two headers of GitHub":  {sign("sha1", "1", "X-Hub-Signature"), sign("sha256", "2", "X-Hub-Signature-256"), 0},
		"the same secret, twice": {sign("sha1", "1", "X-Hub-Signature"), sign("sha256", "1", "X-Hub-Signature-256"), 1},
		"two hashes":             {sign("sha256", "1", "X-S"), sign("sha512", "2", "X-S"), 0},
		"two headers":            {sign("sha256", "1", "X-S"), sign("sha256", "2", "X-T"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			result, hook := importRule(t, map[string]any{"or": []any{c.one, c.other}}, soft)
			if c.keys == 0 && result.Refused() == 0 || c.keys > 0 && (hook == nil || len(result.Secrets) != c.keys) {
				t.Errorf("want %d keys: %v\n%s", c.keys, result.Notes, result.YAML)
			}
		})
	}
	result, _ := importRule(t, map[string]any{"or": []any{
		sign("sha256", "1", "X-Hub-Signature-256"), sign("sha256", "2", "X-Hub-Signature-256"),
	}}, nil)
	if len(result.Notes) != 1 || !strings.Contains(result.Notes[0].Text, "each secret is accepted now") {
		t.Errorf("without soft failures, the notes are %v", result.Notes)
	}
}

// TestImport_RootOfPayload: root stands for a list that is the whole body if a position follows, and is a member of an
// object otherwise.
func TestImport_RootOfPayload(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"root.1.event": "body[1].event", "root.0": "body[0]", "root.x": "body.root.x", "root": "body.root",
		"rooted.0": "body.rooted[0]", "a.root.0": "body.a.root[0]",
	} {
		_, hook := importRule(t, matchRule("value", "x", "payload", name), nil)
		when, ok := hook["when"].(map[string]any)
		if !ok || when[want] == nil {
			t.Errorf("%s becomes %v, want %s", name, hook, want)
		}
	}
	form := map[string]any{"parse-parameters-as-json": []any{map[string]any{"source": "payload", "name": "payload"}}}
	_, hook := importRule(t, matchRule("value", "x", "payload", "payload.root.0"), form)
	if when, ok := hook["when"].(map[string]any); !ok || when["body.root[0]"] == nil {
		t.Errorf("payload.root.0 of a form becomes %v", hook)
	}
}
