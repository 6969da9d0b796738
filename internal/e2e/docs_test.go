package e2e_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/mod/modfile"

	"sallyport/auth/webhook"
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	mustSucceed(t, err)
	return string(text)
}

// cutBetween returns the text between two others, which occur once.
func cutBetween(t *testing.T, text, from, to string) string {
	t.Helper()
	_, text, found := strings.Cut(text, from)
	text, _, closed := strings.Cut(text, to)
	if !found || !closed {
		t.Fatalf("nothing between %q and %q", from, to)
	}
	return text
}

// findMatches returns the distinct matches of the group of a pattern, sorted.
func findMatches(pattern, text string) (all []string) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// mergeCodes returns the union of lists of exit codes without 128, which is only a base for signal numbers.
func mergeCodes(lists ...[]string) []string {
	all := slices.DeleteFunc(slices.Concat(lists...), func(s string) bool { return s == "128" })
	slices.Sort(all)
	return slices.Compact(all)
}

// TestDocs_ExitCodes: the documented exit codes are those of the program.
func TestDocs_ExitCodes(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "internal/client/errors.go", nil, 0)
	mustSucceed(t, err)
	var code []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Exit") {
			code = append(code, spec.Values[0].(*ast.BasicLit).Value)
		}
		return true
	})
	code = mergeCodes(code)

	section := cutBetween(t, readDoc(t, "README.md"), "\n## Exit codes\n", "\n## ")
	_, wait, _ := strings.Cut(section, "`call --wait`")
	if got := mergeCodes(findMatches(`(?m)^\| (\d+) \|`, section), findMatches(`(\d+)`, wait)); !slices.Equal(got, code) {
		t.Errorf("the README has %v, and there are %v", got, code)
	}

	out, err := program(t, t.TempDir(), "--help").Output()
	mustSucceed(t, err)
	help := strings.Join(strings.Fields(string(out)), " ") // the help is wrapped for the terminal
	help = cutBetween(t, help, "Exit codes: ", " Flags:")
	before, wait, _ := strings.Cut(help, `"call --wait"`)
	if got := mergeCodes(findMatches(`(?:^|; )(\d+) `, before), findMatches(`(\d+)`, wait)); !slices.Equal(got, code) {
		t.Errorf("the help has %v, and there are %v", got, code)
	}
}

// TestDocs_SignaturePresets: the documented presets of signatures are those of the program.
func TestDocs_SignaturePresets(t *testing.T) {
	t.Parallel()
	want := webhook.Presets()
	readme := cutBetween(t, readDoc(t, "README.md"), "Presets of signature schemes: ", ".")
	if got := findMatches(`([a-z-]+)`, readme); !slices.Equal(got, want) {
		t.Errorf("the README has %v, and there are %v", got, want)
	}
	manual := cutBetween(t, readDoc(t, "docs/configuration.md"), "nothing else but `keys` is written:", ". Of these")
	manual = regexp.MustCompile(`\([^)]*\)`).ReplaceAllString(manual, "") // versions and earlier names
	if got := findMatches("`([^`]+)`", manual); !slices.Equal(got, want) {
		t.Errorf("the manual has %v, and there are %v", got, want)
	}
}

// listDocs returns all pages.
func listDocs(t *testing.T) (docs []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		some, err := filepath.Glob(pattern)
		mustSucceed(t, err)
		docs = append(docs, some...)
	}
	if !slices.Contains(docs, "README.md") || !slices.Contains(docs, "docs/glossary.md") {
		t.Fatalf("only %q were found", docs)
	}
	return docs
}

// TestDocs_Dependencies: docs/dependencies.md has a row for each module that go.mod requires directly.
func TestDocs_Dependencies(t *testing.T) {
	t.Parallel()
	file, err := modfile.Parse("go.mod", []byte(readDoc(t, "go.mod")), nil)
	mustSucceed(t, err)
	var modules []string
	for _, required := range file.Require {
		if !required.Indirect {
			modules = append(modules, strings.TrimPrefix(required.Mod.Path, "github.com/"))
		}
	}
	slices.Sort(modules)
	rows := findMatches(`(?m)^\| ([^ |]+/[^ |]+) \|`, readDoc(t, "docs/dependencies.md"))
	if !slices.Equal(rows, modules) {
		t.Errorf("docs/dependencies.md has %q, and go.mod requires %q", rows, modules)
	}
}

// TestDocs_PackageComments: the comment of each package of the program leads to the names to begin with.
func TestDocs_PackageComments(t *testing.T) {
	t.Parallel()
	comments := map[string]string{}
	check := func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "testdata" || entry.Name() == "e2e" || entry.Name() == ".git"):
			return fs.SkipDir
		case filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") || name == "main.go":
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err == nil {
			comments[filepath.Dir(name)] += file.Doc.Text()
		}
		return err
	}
	mustSucceed(t, filepath.WalkDir(".", check))
	for folder, comment := range comments {
		if !strings.HasPrefix(comment, "Package ") || len(findMatches(`(\[[A-Z][A-Za-z.]*\])`, comment)) == 0 {
			t.Errorf("the comment of package %s has no link to a name: %q", folder, comment)
		}
	}
	if len(comments) < 20 {
		t.Errorf("only %d packages were found", len(comments))
	}
}

// TestDocs_LineLength: no line of a page is longer than 120 columns.
func TestDocs_LineLength(t *testing.T) {
	t.Parallel()
	for _, doc := range listDocs(t) {
		n := 0
		for line := range strings.Lines(readDoc(t, doc)) {
			n++
			if columns := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); columns > 120 {
				t.Errorf("%s:%d has %d columns", doc, n, columns)
			}
		}
	}
}

// TestDocs_Links: each link of a document leads to an existing file and heading.
func TestDocs_Links(t *testing.T) {
	t.Parallel()
	for _, doc := range listDocs(t) {
		for _, to := range findMatches(`\]\(([^)]+)\)`, readDoc(t, doc)) {
			if strings.Contains(to, "://") {
				continue
			}
			name, anchor, _ := strings.Cut(to, "#")
			file := filepath.Join(filepath.Dir(doc), name)
			if name == "" {
				file = doc
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: %v", doc, err)
			} else if anchor != "" && !slices.Contains(listAnchors(t, file), anchor) {
				t.Errorf("%s: there is no heading for #%s in %s", doc, anchor, file)
			}
		}
	}
}

// listAnchors are those of a document's headings, as GitHub makes them.
func listAnchors(t *testing.T, file string) (all []string) {
	t.Helper()
	code := false
	for line := range strings.Lines(readDoc(t, file)) {
		switch {
		case strings.HasPrefix(line, "```"):
			code = !code
		case strings.HasPrefix(line, "#") && !code:
			title := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
			all = append(all, strings.ReplaceAll(regexp.MustCompile(`[^\w -]`).ReplaceAllString(title, ""), " ", "-"))
		}
	}
	return all
}
