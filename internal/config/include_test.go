package config_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/internal/config"
	"sallyport/runner/hook"
)

// including is a main file with one hook and an include.
const including = `listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
include: [%s]
callers:
  github: {hmac: {scheme: github, keys: [{file: secrets/github}]}}
hooks:
  start: {callers: [github], command: [/bin/true]}
`

const included = "hooks:\n  %s: {callers: [github], command: [/bin/true]}\n"

// TestInclude_Merged reads callers and hooks from several files, by the server and by the supervisor alike.
func TestInclude_Merged(t *testing.T) {
	t.Parallel()
	dir := makeFiles(t)
	writeFile(t, filepath.Join(dir, "hooks.d", "b.yaml"), fmt.Sprintf(included, "b"), 0o600)
	writeFile(t, filepath.Join(dir, "hooks.d", "a.yaml"), fmt.Sprintf(included, "a"), 0o600)
	writeFile(t, filepath.Join(dir, "hooks.d", ".a.yaml.swp.yaml"), "being edited", 0o600)
	writeFile(t, filepath.Join(dir, "hooks.d", "README"), "no configuration", 0o600)
	writeFile(t, filepath.Join(dir, "more.yaml"), "callers:\n"+
		"  gitea: {hmac: {scheme: gitea, keys: [{file: secrets/github2}]}}\n"+
		"hooks:\n  c: {callers: [gitea, github], command: [/bin/true]}\n", 0o600)
	c, found := load(t, dir, fmt.Sprintf(including, `more.yaml, "hooks.d/*.yaml", hooks.d/a.yaml`))
	if len(found) > 0 {
		t.Fatal(formatDiagnostics(dir, found))
	}
	if got := slices.Sorted(maps.Keys(c.Hooks)); !slices.Equal(got, []string{"a", "b", "c", "start"}) {
		t.Errorf("hooks: %v", got)
	}
	hooks, _, _ := config.LoadHooks(filepath.Join(dir, "sallyport.yaml"))
	if hook.Digest(hooks) != hook.Digest(c.Hooks) {
		t.Error("the supervisor reads other hooks than the server")
	}
	var out, list strings.Builder
	for _, name := range []string{"sallyport.yaml", "more.yaml", "hooks.d/a.yaml", "hooks.d/b.yaml"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		mustSucceed(t, err)
		_, _ = fmt.Fprintf(&list, "%x  %s\n", sha256.Sum256(data), name)
	}
	if want := fmt.Sprintf("%x", sha256.Sum256([]byte(list.String()))); c.Digest != want {
		t.Errorf("the digest is %s, and that of the list is %s", c.Digest, want)
	}
	c.Describe(&out)
	for _, name := range []string{"more.yaml", "hooks.d/a.yaml", "hooks.d/b.yaml"} {
		if strings.Count(out.String(), filepath.Join(dir, name)+"\n") != 1 {
			t.Errorf("%s is not named once in\n%s", name, &out)
		}
	}
}

// TestInclude_Faults has each fault of an include with its place.
func TestInclude_Faults(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		include string
		files   map[string]string
		want    []string
	}{
		"two files": {"hooks.d/*.yaml", map[string]string{
			"hooks.d/a.yaml": fmt.Sprintf(included, "start"),
			"hooks.d/b.yaml": "callers:\n  github: {token: {keys: [{file: secrets/token}]}}\n" + fmt.Sprintf(included, "b"),
			"hooks.d/c.yaml": fmt.Sprintf(included, "b"),
		}, []string{
			"hooks.d/a.yaml:2:3: hooks.start: is already in sallyport.yaml:8:3",
			"hooks.d/b.yaml:2:3: callers.github: is already in sallyport.yaml:6:3",
			"hooks.d/c.yaml:2:3: hooks.b: is already in hooks.d/b.yaml:4:3",
		}},
		"own places": {"a.yaml", map[string]string{
			"a.yaml": "hooks:\n  a: {callers: [github], command: [/bin/true], comand: 1}\n  b: {callers: [gitub], command: [/bin/true]}\n",
		}, []string{
			"a.yaml:2:48: hooks.a.comand: unknown key; the keys here are ",
			`a.yaml:3:17: hooks.b.callers[0]: unknown caller "gitub"`,
		}},
		"nested":            {"a.yaml", map[string]string{"a.yaml": "include: [b.yaml]\n"}, []string{"a.yaml:1:1: include: unknown key; the keys here are callers, hooks"}},
		"syntax":            {"a.yaml", map[string]string{"a.yaml": "hooks: [\n"}, []string{"a.yaml:1:"}},
		"nothing":           {"a.yaml", map[string]string{"a.yaml": ""}, []string{"a.yaml:1:1: there is nothing in this file"}},
		"missing":           {"a.yaml", nil, []string{"a.yaml: reading configuration: open a.yaml: no such file or directory"}},
		"none matches":      {`"d/*.yaml"`, nil, []string{`sallyport.yaml:4:11: warning: include[0]: "d/*.yaml" matches no file`}},
		"folder":            {`"d/*.yaml"`, map[string]string{"d/a.yaml/x": ""}, []string{"d/a.yaml: reading configuration: "}},
		"wildcard folder":   {`"*/a.yaml"`, nil, []string{`sallyport.yaml:4:11: include[0]: "*/a.yaml" has a wildcard in a folder`}},
		"malformed pattern": {`"a[.yaml"`, nil, []string{`sallyport.yaml:4:11: include[0]: "a[.yaml" is not a pattern`}},
		"itself":            {`"*.yaml"`, nil, []string{`sallyport.yaml:4:11: include[0]: "*.yaml" includes the configuration file itself`}},
		"empty":             {"", nil, []string{"sallyport.yaml:4:1: include: lists no file"}},
		"too large": {`"*.yml"`, map[string]string{
			"a.yml": "#" + strings.Repeat(" ", 9<<20) + "\n" + fmt.Sprintf(included, "a"),
			"b.yml": "#" + strings.Repeat(" ", 9<<20) + "\n" + fmt.Sprintf(included, "b"),
		}, []string{"b.yml: the configuration file and the files that it includes, up to this one, are over 16 MiB together"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := makeFiles(t)
			for name, text := range x.files {
				writeFile(t, filepath.Join(dir, name), text, 0o600)
			}
			c, found := load(t, dir, fmt.Sprintf(including, x.include))
			if (c == nil) != hasErrors(found) {
				t.Errorf("the configuration is %v", c)
			}
			got := formatDiagnostics(dir, found)
			if !slices.EqualFunc(got, x.want, strings.HasPrefix) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(x.want, "\n"))
			}
			if hooks, _, _ := config.LoadHooks(filepath.Join(dir, "sallyport.yaml")); hooks != nil && c == nil && name != "own places" {
				t.Error("the supervisor accepts what the server refuses")
			}
		})
	}
}

// TestInclude_TooManyFiles stops at the bound.
func TestInclude_TooManyFiles(t *testing.T) {
	t.Parallel()
	dir := makeFiles(t)
	for i := range 1001 {
		writeFile(t, filepath.Join(dir, "d", fmt.Sprintf("%04d.yaml", i)), fmt.Sprintf(included, fmt.Sprint("h", i)), 0o600)
	}
	_, found := load(t, dir, fmt.Sprintf(including, `"d/*.yaml"`))
	if got := formatDiagnostics(dir, found); len(got) != 1 || !strings.HasPrefix(got[0], "sallyport.yaml:4:1: include: more than 1000 files") {
		t.Errorf("got %q", got)
	}
}

// TestInclude_OthersMayWrite refuses an included file, and a folder of included files, that other users may change.
func TestInclude_OthersMayWrite(t *testing.T) {
	t.Parallel()
	dir := makeFiles(t)
	file := filepath.Join(dir, "hooks.d", "a.yaml")
	for _, x := range []struct {
		file, folder os.FileMode
		want         string
	}{
		{0o620, 0o700, "hooks.d/a.yaml: hooks.d/a.yaml may be changed by its group"},
		{0o600, 0o770, "hooks.d/a.yaml: the folder hooks.d may be written by its group or by others"},
	} {
		writeFile(t, file, fmt.Sprintf(included, "a"), x.file)
		chmod(t, filepath.Dir(file), x.folder)
		c, found := load(t, dir, fmt.Sprintf(including, `"hooks.d/*.yaml"`))
		if got := formatDiagnostics(dir, found); c != nil || len(got) != 1 || !strings.HasPrefix(got[0], x.want) {
			t.Errorf("got %q, want %q", got, x.want)
		}
	}
}

// TestInclude_Watched notices a file that appears, changes and disappears.
func TestInclude_Watched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWatching(t)
		if err := os.Mkdir(filepath.Join(p.dir, "hooks.d"), 0o700); err != nil {
			t.Fatal(err)
		}
		main, err := os.ReadFile(filepath.Join(p.dir, "sallyport.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		paths := func(want ...string) {
			t.Helper()
			p.waitFor(2 * time.Second)
			var got []string
			for _, h := range p.Get().Hooks {
				got = append(got, h.Path)
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("%v, want %v; the log is\n%s", got, want, &p.logs)
			}
		}
		p.write("sallyport.yaml", "include: [\"hooks.d/*.yaml\", \"later.d/*.yaml\"]\n"+string(main))
		paths("/hooks/work")
		one := "hooks:\n  more: {path: %s, callers: [guest], command: [/bin/true]}\n"
		p.write("hooks.d/a.yaml", fmt.Sprintf(one, "/first"))
		paths("/first", "/hooks/work")
		p.write("hooks.d/a.yaml", fmt.Sprintf(one, "/second"))
		paths("/hooks/work", "/second")
		p.write("hooks.d/a.yaml", "hooks: {more: {}}")
		paths("/hooks/work", "/second")
		if err := os.Remove(filepath.Join(p.dir, "hooks.d/a.yaml")); err != nil {
			t.Fatal(err)
		}
		paths("/hooks/work")
		if err := os.Mkdir(filepath.Join(p.dir, "later.d"), 0o700); err != nil {
			t.Fatal(err)
		}
		p.write("later.d/a.yaml", fmt.Sprintf(one, "/third"))
		paths("/hooks/work", "/third")
	})
}
