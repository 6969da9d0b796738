package auth_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/auth"
)

// hidden is part of every secret of these tests, and must not be in any error.
const hidden = "SESAME-"

func writeKey(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestSecret_Sources(t *testing.T) {
	dir, creds := t.TempDir(), t.TempDir()
	env := map[string]string{"KEY": hidden + "env", "CREDENTIALS_DIRECTORY": creds, "EMPTY": ""}
	src := auth.Sources{Dir: dir, Getenv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	at := func(name string) string { return filepath.Join(dir, name) }
	writeKey(t, at("plain"), hidden+"a\n", 0o600)
	writeKey(t, at("group"), hidden+"b", 0o440)
	writeKey(t, at("two"), hidden+"c\n\n", 0o400)
	writeKey(t, filepath.Join(creds, "cred"), hidden+"d\n", 0o400)
	if err := os.Symlink("plain", at("link")); err != nil {
		t.Fatal(err)
	}
	for want, k := range map[string]auth.KeySpec{
		"a": {File: "plain"}, "b": {File: at("group")}, "c\n": {File: "two"}, "d": {Credential: "cred"}, "env": {Env: "KEY"},
	} {
		if got, err := src.Secret(&k); err != nil || string(got) != hidden+want {
			t.Errorf("%+v: got %q, %v", k, got, err)
		}
	}
	if got, err := src.Secret(&auth.KeySpec{File: "link"}); err != nil || string(got) != hidden+"a" {
		t.Errorf("through a symlink: %q, %v", got, err)
	}
}

func TestSecret_Invalid(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{"EMPTY": "", "LONG": hidden + strings.Repeat("x", 65<<10)}
	src := auth.Sources{Dir: dir, Getenv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, mode := range map[string]os.FileMode{"o-read": 0o604, "o-write": 0o602, "o-exec": 0o601, "g-write": 0o620, "all": 0o644} {
		writeKey(t, at(name), hidden, mode)
	}
	writeKey(t, at("empty"), "", 0o600)
	writeKey(t, at("newline"), "\n", 0o600)
	writeKey(t, at("long"), hidden+strings.Repeat("x", 64<<10), 0o600)
	if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Open at both ends and with a key in it, the pipe reads as a file would.
	pipe, err := os.OpenFile(at("pipe"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pipe.Close() })
	if _, err := pipe.WriteString(hidden); err != nil {
		t.Fatal(err)
	}
	specs := []auth.KeySpec{
		{}, {File: "all", Env: "EMPTY"}, {Env: "UNSET"}, {Env: "EMPTY"}, {Env: "LONG"}, {Credential: "x"}, {Credential: "../x"}, {Credential: ".."}, {File: "."}, {File: "/dev/null"},
	}
	for _, name := range []string{"o-read", "o-write", "o-exec", "g-write", "all", "empty", "newline", "long", "pipe", "gone"} {
		specs = append(specs, auth.KeySpec{File: name})
	}
	for _, k := range specs {
		got, err := src.Secret(&k)
		if err == nil || got != nil || k.File == "pipe" && !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%+v was taken, or %v", k, err)
		} else if strings.Contains(err.Error(), hidden) {
			t.Errorf("%+v: the error holds the secret: %v", k, err)
		}
	}
	env["CREDENTIALS_DIRECTORY"] = "relative"
	if _, err := src.Secret(&auth.KeySpec{Credential: "x"}); err == nil {
		t.Error("a relative folder of credentials was taken")
	}
	if _, err := (auth.Sources{}).Secret(&auth.KeySpec{Env: "HOME"}); err == nil {
		t.Error("read an environment that was not passed")
	}
}

// TestSecret_ReusedWarning has one text as the key of each pair of
// credentials.
func TestSecret_ReusedWarning(t *testing.T) {
	add := map[string]func(b *bench){
		"github": func(b *bench) { b.addHMAC("x-github", "github", secretA) },
		"slack":  func(b *bench) { b.addHMAC("x-slack", "slack", secretA) },
		"token":  func(b *bench) { b.addToken("x-token", "", secretA) },
		"jwt":    func(b *bench) { b.addJWT("x-jwt", nil, b.writeKey("k", secretA)) },
		"signature": func(b *bench) {
			b.caller("x-sig").Signature = &auth.SignatureSpec{Authority: []string{"a"}, Keys: []auth.KeySpec{b.writeKey("k", secretA)}}
		},
	}
	for one := range add {
		for two := range add {
			b := newBench(t)
			add[one](b)
			add[two](b)
			if got := strings.Contains(b.problems(), "is also the secret of the caller"); got != (one != two) {
				t.Errorf("%s and %s: warned %v", one, two, got)
			}
		}
	}
	b := newBench(t)
	b.addHMAC("github", "github", secretA)
	b.addToken("github", "", secretA)
	b.wantProblem("warning callers.github.token.keys", `the caller "github" (hmac with X-Hub-Signature-256)`)
}

func TestSecret_EditorArtifacts(t *testing.T) {
	for text, want := range map[string]string{
		"\ufeff" + secretA: "byte order mark", secretA + "\r": "carriage return", " " + secretA: "white space", secretA + "\n": "white space",
	} {
		b := newBench(t)
		b.addHMAC("a", "github", text)
		b.wantProblem("warning callers.a.hmac.keys.0.file", want)
	}
}

func TestSecret_NotInMessages(t *testing.T) {
	b := newBench(t)
	b.addHMAC("a", "gitlab", "whsec_"+hidden+"!")
	b.addHMAC("b", "discord", hidden)
	b.addHMAC("c", "github", hidden)
	b.addToken("d", "", hidden+"\x01"+hidden+hidden)
	b.addJWT("e", nil, b.writeKey("1", hidden), b.writeKey("2", "-----BEGIN "+hidden), b.writeKey("3", " "+hidden+strings.Repeat("x", 32)))
	b.addKeySet("f", `{"keys":[{"kty":"oct","k":"`+hidden+`"}]}`)
	b.addKeySet("g", hidden)
	if all := b.problems(); strings.Contains(all, hidden) || strings.Count(all, "error") < 6 {
		t.Errorf("problems:\n%s", all)
	}
}
