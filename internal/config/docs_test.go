package config_test

import (
	"encoding"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/internal/config"
)

func readManual(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// collectKeys collects the keys of each structure of the file, by its path.
func collectKeys(t *testing.T, at reflect.Type, path string, into map[string][]string) {
	t.Helper()
	switch at.Kind() {
	case reflect.Pointer:
		collectKeys(t, at.Elem(), path, into)
	case reflect.Map:
		if at.Elem().Kind() != reflect.String && at.Elem().Kind() != reflect.Interface {
			collectKeys(t, at.Elem(), strings.TrimPrefix(path+".NAME", "."), into)
		}
	case reflect.Slice:
		collectKeys(t, at.Elem(), path+"[]", into)
	case reflect.Struct:
		if reflect.PointerTo(at).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) { // one scalar
			return
		}
		for _, f := range reflect.VisibleFields(at) {
			key, tagged := f.Tag.Lookup("yaml")
			switch {
			case !tagged:
				t.Errorf("%s.%s has no key", at, f.Name)
			case key != ",inline" && key != "-":
				into[path] = append(into[path], key)
				collectKeys(t, f.Type, strings.TrimPrefix(path+"."+key, "."), into)
			}
		}
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64, reflect.Interface:
	default:
		t.Errorf("%s is a %s, which the decoder cannot read", path, at)
	}
}

var (
	quoted = regexp.MustCompile("`([^`]+)`")
	row    = regexp.MustCompile("^\\| `([^`]+)` \\| [^|]+ \\| [^|]+ \\| [^|]+ \\|$")
)

// collectTables collects the keys of each table of the manual, by the paths that its
// heading names.
func collectTables(t *testing.T, text string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	var paths []string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "#"):
			paths = nil
			for _, m := range quoted.FindAllStringSubmatch(line, -1) {
				paths = append(paths, strings.TrimPrefix(m[1], "sallyport.yaml"))
			}
		case strings.HasPrefix(line, "| `"):
			m := row.FindStringSubmatch(line)
			if m == nil {
				t.Errorf("not key, meaning, default and example: %s", line)
				continue
			}
			for _, p := range paths {
				found[p] = append(found[p], m[1])
			}
		}
	}
	return found
}

func TestManual_EveryKey(t *testing.T) {
	t.Parallel()
	code := map[string][]string{}
	collectKeys(t, reflect.TypeFor[config.File](), "", code)
	docs := collectTables(t, readManual(t))
	for path := range maps.Keys(code) {
		slices.Sort(code[path])
		slices.Sort(docs[path])
		if !slices.Equal(code[path], docs[path]) {
			t.Errorf("%q: the file has %v, the manual has %v", path, code[path], docs[path])
		}
	}
	for path := range docs {
		if code[path] == nil {
			t.Errorf("the manual has %q, which the file has not", path)
		}
	}
}

func TestManual_ExampleLoads(t *testing.T) {
	t.Parallel()
	_, text, found := strings.Cut(readManual(t), "```yaml\n")
	text, _, closed := strings.Cut(text, "```")
	if !found || !closed {
		t.Fatal("no example")
	}
	if c, diagnostics := load(t, makeFiles(t), strings.ReplaceAll(text, "/usr/local/bin/build-report", "/bin/echo")); c == nil || len(diagnostics) > 0 {
		t.Error(diagnostics)
	}
}
