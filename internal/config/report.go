package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"sallyport/internal/diag"
	"sallyport/internal/terminal"
)

// Diagnostic is one error or one warning about the file.
type Diagnostic struct {
	File         string
	Line, Column int    // from 1; zero if it is about the whole file
	Path         string // of keys, as in hooks.start.callers[0]; may be empty
	Text         string
	Warning      bool // the server starts in spite of it
}

// String returns "file:line:column: path: text", which editors can jump to.
func (d Diagnostic) String() string {
	var b strings.Builder
	b.WriteString(d.File)
	if d.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", d.Line, d.Column)
	}
	b.WriteString(": ")
	if d.Warning {
		b.WriteString("warning: ")
	}
	if d.Path != "" {
		b.WriteString(d.Path + ": ")
	}
	b.WriteString(terminal.Line(d.Text))
	return b.String()
}

type place struct {
	line, column int
	file         string // empty: that of the report
}

// report collects diagnostics, and has the place of each path in the file. A path consists of its keys, each with a NUL
// before it. The report of the main file gets what those of the included files have, see addReport.
type report struct {
	file     string
	included []string // files
	found    []Diagnostic
	places   map[string]place
	sources  map[string]string // content of files, by name
	digest   string            // of the file, or of the list of all files
	broken   map[string]bool   // paths of values with the wrong shape
}

func newReport(file string) *report {
	return &report{file: file, places: map[string]place{}, broken: map[string]bool{}, sources: map[string]string{}}
}

// addReport adds the report of an included file. The first place of a path stays.
func (r *report) addReport(other *report) {
	r.found = append(r.found, other.found...)
	maps.Copy(r.broken, other.broken)
	maps.Copy(r.sources, other.sources)
	for path, at := range other.places {
		if _, ok := r.places[path]; !ok {
			at.file = other.file
			r.places[path] = at
		}
	}
}

func joinPath(path, key string) string { return path + "\x00" + key }

func (r *report) addDiagnostic(at place, path, text string) {
	r.found = append(r.found, Diagnostic{
		File: cmp.Or(at.file, r.file), Line: at.line, Column: at.column, Path: formatPath(path), Text: text,
	})
}

// addProblems adds problems as diagnostics. It omits problems of a value with the wrong shape: the shape has been
// reported, and the problem only follows from it.
func (r *report) addProblems(problems []diag.Problem) {
	for _, p := range problems {
		path, at, known := "", place{line: 1, column: 1}, r.broken[""]
		for _, key := range p.Path {
			path = joinPath(path, key)
			if here, ok := r.places[path]; ok {
				at = here
			}
			known = known || r.broken[path]
		}
		if !known {
			if p.Skip > 0 {
				at = at.skipCharacters(r.sources[cmp.Or(at.file, r.file)], p.Skip)
			}
			r.addDiagnostic(at, path, p.Text)
			r.found[len(r.found)-1].Warning = p.Warning
		}
	}
}

func (r *report) hasErrors() bool {
	return slices.ContainsFunc(r.found, func(d Diagnostic) bool { return !d.Warning })
}

// sortedDiagnostics returns the diagnostics in the order of the files, and of each file, without duplicates.
func (r *report) sortedDiagnostics() []Diagnostic {
	slices.SortStableFunc(r.found, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(r.orderOf(a.File), r.orderOf(b.File)), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Text, b.Text))
	})
	return slices.Compact(r.found)
}

// orderOf returns the position of a file: that of the main file is the first.
func (r *report) orderOf(file string) int { return slices.Index(r.included, file) }

// formatPath returns a path in the form for users.
func formatPath(path string) string {
	var b strings.Builder
	for i, key := range strings.Split(path, "\x00") {
		if i == 0 {
			continue // the part before the first NUL is empty
		}
		if _, err := strconv.Atoi(key); err == nil && i > 1 {
			b.WriteString("[" + key + "]")
			continue
		}
		if i > 1 {
			b.WriteByte('.')
		}
		b.WriteString(key)
	}
	return terminal.Line(b.String())
}
