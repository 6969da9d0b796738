package config_test

import (
	"path/filepath"
	"strings"
	"testing"

	"sallyport/internal/config"
)

const withHooks = `
state: state
tls: {cert: nowhere.pem, key: nowhere.key}
callers:
  github: {hmac: {scheme: github, keys: [{id: a, file: no/such/secret}]}}
hooks:
  start: {callers: [github], command: [/bin/true]}
`

func TestLoadHooks_WithoutSecrets(t *testing.T) {
	name := filepath.Join(t.TempDir(), "sallyport.yaml")
	writeFile(t, name, withHooks, 0o600)
	hooks, _, found := config.LoadHooks(name)
	if len(hooks) != 1 || hooks["start"] == nil || len(found) > 0 {
		t.Fatalf("got %v, %v", hooks, found)
	}
}

func TestLoadHooks_SameRules(t *testing.T) {
	for fault, text := range map[string]string{
		"unknown caller":           strings.Replace(withHooks, "[github]", "[gitlab]", 1),
		"hooks.start.comand":       strings.Replace(withHooks, "command", "comand", 1),
		"is not a name":            strings.Replace(withHooks, "  start:", `  "a b":`, 1),
		"callers.github.hmac.skim": strings.Replace(withHooks, "scheme", "skim", 1), // anywhere in the file
		"does not exist":           strings.Replace(withHooks, "/bin/true", "/no/such/program", 1),
	} {
		name := filepath.Join(t.TempDir(), "sallyport.yaml")
		writeFile(t, name, text, 0o600)
		hooks, _, found := config.LoadHooks(name)
		if all := strings.Join(formatDiagnostics(filepath.Dir(name), found), "\n"); hooks != nil || !strings.Contains(all, fault) {
			t.Errorf("%s: got %v\n%s", fault, hooks, all)
		}
	}
	name := filepath.Join(t.TempDir(), "sallyport.yaml")
	writeFile(t, name, withHooks, 0o622)
	if hooks, _, _ := config.LoadHooks(name); hooks != nil {
		t.Error("a file that others may write was taken")
	}
	if hooks, _, _ := config.LoadHooks(name + "x"); hooks != nil {
		t.Error("a missing file was taken")
	}
}
