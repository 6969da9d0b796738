package app_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// leaves is the room of each folder of internal that the picture does not show.
const leaves = "leaves"

// rooms is the picture of docs/architecture.md.
type rooms struct {
	folders map[string]string   // room of a folder
	arrows  map[string][]string // of a room to others
}

// drawnRooms reads the picture.
func drawnRooms(t *testing.T) rooms {
	t.Helper()
	page, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```mermaid\nflowchart TD\n")
	picture, _, end := strings.Cut(rest, "```")
	if !ok || !end {
		t.Fatal("docs/architecture.md has no picture")
	}
	r := rooms{map[string]string{}, map[string][]string{}}
	node := regexp.MustCompile(`^(\w+)\[([\w./ ]+)\]$`)
	for line := range strings.Lines(picture) {
		line = strings.TrimSpace(line)
		from, to, arrow := strings.Cut(line, " --> ")
		switch parts := node.FindStringSubmatch(line); {
		case line == "":
		case parts != nil:
			r.folders[parts[2]] = parts[1]
		case arrow:
			for one := range strings.SplitSeq(from, " & ") {
				r.arrows[one] = append(r.arrows[one], strings.Split(to, " & ")...)
			}
		default:
			t.Errorf("the line %q of the picture is not a room or an arrow", line)
		}
	}
	return r
}

// room returns the room of a package, by its path below the module.
func (r rooms) room(pkg string) string {
	if pkg == "" {
		return r.folders["main.go"]
	}
	for folder := pkg; folder != "."; folder = filepath.Dir(folder) {
		if room, ok := r.folders[folder]; ok {
			return room
		}
	}
	if strings.HasPrefix(pkg, "internal/") {
		return leaves
	}
	return ""
}

// reaches reports whether arrows lead from one room to another.
func (r rooms) reaches(from, to string) bool {
	seen := map[string]bool{}
	for next := slices.Clone(r.arrows[from]); len(next) > 0; next = next[1:] {
		if next[0] == to {
			return true
		}
		if !seen[next[0]] {
			seen[next[0]] = true
			next = append(next, r.arrows[next[0]]...)
		}
	}
	return false
}

// crossings returns the imports that contradict the picture: imports of a room that is not below.
func (r rooms) crossings(imports map[string][]string) (found []string) {
	for _, from := range slices.Sorted(maps.Keys(imports)) {
		for _, to := range imports[from] {
			a, b := r.room(from), r.room(to)
			if a == "" || b == "" || a != b && !r.reaches(a, b) {
				found = append(found, fmt.Sprintf("%s imports %s: no arrow leads from %q to %q", from, to, a, b))
			}
		}
	}
	return found
}

// productionImports returns which packages of the module import which, on any system, apart from tests.
func productionImports(t *testing.T) map[string][]string {
	t.Helper()
	const root, module = "../..", "sallyport"
	imports := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != root &&
			(strings.HasPrefix(e.Name(), ".") || e.Name() == "testdata" || e.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		from, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		from = strings.TrimPrefix(from, ".")
		for _, one := range f.Imports {
			to, err := strconv.Unquote(one.Path.Value)
			if err != nil {
				return err
			}
			if to, ok := strings.CutPrefix(to, module+"/"); ok && !slices.Contains(imports[from], to) {
				imports[from] = append(imports[from], to)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return imports
}

// TestRooms_ImportsFollowThePicture holds the imports of all packages to the arrows of docs/architecture.md, and each
// arrow to an import, so that the picture has neither too little nor too much.
func TestRooms_ImportsFollowThePicture(t *testing.T) {
	t.Parallel()
	r, imports := drawnRooms(t), productionImports(t)
	for _, found := range r.crossings(imports) {
		t.Error(found)
	}
	for from, all := range r.arrows {
		if r.reaches(from, from) {
			t.Errorf("arrows lead from %s back to it", from)
		}
		for _, to := range all {
			used := false
			for pkg, targets := range imports {
				used = used || r.room(pkg) == from &&
					slices.ContainsFunc(targets, func(target string) bool { return r.room(target) == to })
			}
			if !used {
				t.Errorf("the arrow from %s to %s stands for no import", from, to)
			}
		}
	}
}

// TestRooms_CrossingIsFound makes packages import a room above them or in another wing, one at a time.
func TestRooms_CrossingIsFound(t *testing.T) {
	t.Parallel()
	r := drawnRooms(t)
	for from, targets := range map[string][]string{
		"internal/boot":     {"runner", "auth", "certs", "internal/config", "internal/audit"},
		"internal/new":      {"runner/store", "internal/cli"}, // a leaf, as long as it has no room
		"certs":             {"auth", "runner", "internal/config"},
		"auth/webhook":      {"runner", "handlers", "internal/audit", "internal/config"},
		"runner":            {"auth", "certs", "handlers", "internal/audit", "internal/config"},
		"runner/process":    {"internal/server", "internal/app"},
		"internal/audit":    {"auth", "internal/config", "handlers"},
		"internal/config":   {"handlers", "internal/server", "internal/cli", "internal/app"},
		"handlers":          {"internal/server", "internal/cli", "internal/client", "internal/app", "internal/metrics"},
		"internal/server":   {"handlers", "internal/cli", "internal/app"},
		"internal/client":   {"internal/cli", "internal/config", "handlers"},
		"internal/cli":      {"internal/app", "internal/server", "handlers"},
		"internal/app":      {""}, // the program itself
		"newroom":           {"internal/boot"},
		"runner/newpackage": {"newroom"},
	} {
		for _, to := range targets {
			if found := r.crossings(map[string][]string{from: {to}}); len(found) != 1 {
				t.Errorf("%s imports %q, and that is not found", from, to)
			}
		}
	}
	allowed := map[string][]string{
		"":               {"internal/app"},
		"runner/process": {"runner", "internal/boot", "internal/new"},
		"handlers":       {"auth/webhook", "runner/process"},
	}
	if found := r.crossings(allowed); found != nil {
		t.Error(found)
	}
}
