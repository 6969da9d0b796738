package e2e_test

import (
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/internal/config"
	"sallyport/runner/hook"
)

// limit is a row of docs/limits.md.
type limit struct{ bound, value, by string }

var limitRow = regexp.MustCompile("^\\| ([^|]+) \\| ([^|]+) \\| (?:fixed: )?`([^`]+)` \\| ([^|]+) \\| ([^|]+) \\|$")

// limitRows returns the rows of docs/limits.md by name: those of configuration keys, and those of constants.
func limitRows(t *testing.T) (keys, constants map[string]limit) {
	t.Helper()
	keys, constants = map[string]limit{}, map[string]limit{}
	for line := range strings.Lines(readDoc(t, "docs/limits.md")) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| bound |") || strings.HasPrefix(line, "|---") {
			continue
		}
		m := limitRow.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("not bound, value, set by, reached by and then: %s", line)
			continue
		}
		into := keys
		if strings.Contains(line, "| fixed: ") {
			into = constants
		}
		if _, twice := into[m[3]]; twice {
			t.Errorf("%s has two rows", m[3])
		}
		into[m[3]] = limit{m[1], m[2], m[3]}
	}
	return keys, constants
}

// TestLimits_Keys compares the keys in docs/limits.md with the configuration keys that set a limit, and their values
// with the defaults in docs/configuration.md.
func TestLimits_Keys(t *testing.T) {
	t.Parallel()
	keys, _ := limitRows(t)
	var code []string
	boundKeys(reflect.TypeFor[config.File](), "", &code)
	slices.Sort(code)
	for _, key := range code {
		if _, ok := keys[key]; !ok {
			t.Errorf("docs/limits.md has no row for the key %s", key)
		}
	}
	defaults := documentedDefaults(t)
	for key, row := range keys {
		if !slices.Contains(code, key) {
			t.Errorf("docs/limits.md has %s, which is not a key that bounds something", key)
		}
		if row.value != defaults[key] {
			t.Errorf("docs/limits.md has %s for %s, and docs/configuration.md has %s", row.value, key, defaults[key])
		}
	}
}

// boundKeys collects the keys of sizes, durations, numbers and limits.
func boundKeys(at reflect.Type, path string, into *[]string) {
	for at.Kind() == reflect.Pointer {
		at = at.Elem()
	}
	switch {
	case at == reflect.TypeFor[time.Time](), at == reflect.TypeFor[hook.ParamSpec]():
	case slices.Contains([]reflect.Type{
		reflect.TypeFor[config.Limit](), reflect.TypeFor[hook.Size](), reflect.TypeFor[time.Duration](), reflect.TypeFor[int](),
	}, at):
		*into = append(*into, path)
	case at.Kind() == reflect.Map:
		boundKeys(at.Elem(), path+".NAME", into)
	case at == reflect.TypeFor[[]int](): // a list bounds nothing
	case at.Kind() == reflect.Slice:
		boundKeys(at.Elem(), path+"[]", into)
	case at.Kind() == reflect.Struct:
		for _, f := range reflect.VisibleFields(at) {
			if key := f.Tag.Get("yaml"); key != ",inline" && key != "-" {
				boundKeys(f.Type, strings.TrimPrefix(path+"."+key, "."), into)
			}
		}
	}
}

// documentedDefaults returns the defaults in docs/configuration.md by full key.
func documentedDefaults(t *testing.T) map[string]string {
	t.Helper()
	row := regexp.MustCompile("^\\| `([^`]+)` \\| [^|]+ \\| ([^|]+) \\| [^|]+ \\|$")
	defaults := map[string]string{}
	var paths []string
	for line := range strings.Lines(readDoc(t, "docs/configuration.md")) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			paths = findMatches("`([^`]+)`", line)
		}
		if m := row.FindStringSubmatch(line); m != nil {
			for _, path := range paths {
				defaults[strings.TrimPrefix(path+"."+m[1], "sallyport.yaml.")] = m[2]
			}
		}
	}
	return defaults
}

// TestLimits_Constants compares docs/limits.md with the constants that it names. Each constant whose name begins with
// max, most or longest needs a row.
func TestLimits_Constants(t *testing.T) {
	t.Parallel()
	_, rows := limitRows(t)
	unlisted := map[string]string{
		"internal/audit.maxBatch":        "lines of one write, of those that wait",
		"internal/audit.mostUnsigned":    "for sallyport audit verify alone",
		"internal/audit.longestUnsigned": "the same",
		"runner/supervisor.maxStdin":     "as hooks.NAME.body.max",
		"runner/supervisor.maxGreeting":  "between server and supervisor",
		"runner/store.maxBatch":          "runs of one transaction, of those that wait",
		"runner.maxTimer":                "a timer only, which is set again",
	}
	code := map[string]constant.Value{}
	set := token.NewFileSet()
	imports := onlyTime{importer.ForCompiler(set, "source", nil)} // once: it reads the sources of package time
	for _, dir := range []string{
		"auth", "auth/field", "auth/httpsig", "auth/jwt", "auth/jwt/keyset", "auth/webhook", "certs", "handlers", "internal/audit", "internal/config", "internal/deliveries", "internal/keyuse", "internal/logging", "internal/readiness", "internal/server",
		"internal/strictjson", "runner", "runner/hook", "runner/hook/expression", "runner/process", "runner/process/output", "runner/process/proctree", "runner/process/rundir", "runner/store", "runner/supervisor",
	} {
		packageConstants(t, set, imports, dir, code)
	}
	isBound := regexp.MustCompile(`\.([Mm]ax|most|longest)([A-Z].*)?$`)
	for _, name := range slices.Sorted(maps.Keys(code)) {
		if _, ok := rows[name]; !ok && isBound.MatchString(name) && unlisted[name] == "" {
			t.Errorf("docs/limits.md has no row for the constant %s = %s", name, code[name])
		}
	}
	for name, row := range rows {
		value, ok := code[name]
		if !ok {
			t.Errorf("docs/limits.md has %s, and there is no such constant", name)
			continue
		}
		if want := boundValue(t, row.value); !constant.Compare(value, token.EQL, constant.MakeInt64(want)) {
			t.Errorf("docs/limits.md has %s for %s, which is %s", row.value, name, value)
		}
	}
}

// boundValue parses `64`, `16KiB` or `5s`.
func boundValue(t *testing.T, text string) int64 {
	t.Helper()
	text = strings.Trim(text, "`")
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n
	}
	if d, err := time.ParseDuration(text); err == nil {
		return int64(d)
	}
	var size hook.Size
	if err := size.UnmarshalText([]byte(text)); err != nil {
		t.Errorf("%q is not a number, a size or a duration", text)
	}
	return int64(size)
}

// packageConstants adds the integer constants of a package, as the type checker evaluates them. Of the imports, only
// package time matters.
func packageConstants(t *testing.T, set *token.FileSet, imports types.Importer, dir string, into map[string]constant.Value) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	mustSucceed(t, err)
	var parsed []*ast.File
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || regexp.MustCompile(`_(bsd|other|darwin)\.go$`).MatchString(file) {
			continue
		}
		f, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
		mustSucceed(t, err)
		parsed = append(parsed, f)
	}
	conf := types.Config{Error: func(error) {}, Importer: imports, IgnoreFuncBodies: true}
	pkg, _ := conf.Check(dir, set, parsed, nil) // incomplete, but it has the constants
	for _, name := range pkg.Scope().Names() {
		if c, ok := pkg.Scope().Lookup(name).(*types.Const); ok && c.Val().Kind() == constant.Int {
			into[dir+"."+name] = c.Val()
		}
	}
}

type onlyTime struct{ types.Importer }

func (i onlyTime) Import(path string) (*types.Package, error) {
	if path != "time" {
		return types.NewPackage(path, filepath.Base(path)), nil
	}
	return i.Importer.Import(path)
}
