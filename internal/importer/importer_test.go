package importer_test

import (
	"encoding/json"
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
