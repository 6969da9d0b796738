// Package diag collects the problems of a configuration, so that an operator sees all of them at once and each with its
// place in the file. It also collects the files that were read, so that they can be watched.
//
// A check gets a [List] and adds to it with [List.Errorf] or [List.Warnf]. [List.At] is the list of a place below. All
// lists of one configuration share their content, so the order of checks does not matter, and no check ends another. A
// check must not use what it has found to be wrong. A list is for one goroutine.
package diag

import (
	"fmt"
	"io/fs"
	"slices"
	"unicode"
)

// Problem is one problem at one place.
type Problem struct {
	Path    []string // keys from the top of the file; a list index is its decimal number
	Text    string
	Warning bool // is logged, but the server starts
	// Skip is how many characters other than white space of the text at the path come before the problem. White space is
	// not counted, because a file may write it in several forms.
	Skip int
}

// List is where the checks add problems. Its zero value is empty and ready.
type List struct {
	*found

	path []string
	skip int
}

// found is the content that all lists of one configuration share.
type found struct {
	problems []Problem
	files    map[string]fs.FileInfo
}

func (l *List) allocate() {
	if l.found == nil {
		l.found = &found{files: map[string]fs.FileInfo{}}
	}
}

// At returns a list that adds to the same problems, with the keys appended to its path.
func (l *List) At(keys ...string) *List {
	l.allocate()
	return &List{found: l.found, path: append(slices.Clone(l.path), keys...)}
}

// Index is At for an entry of a list.
func (l *List) Index(i int) *List { return l.At(fmt.Sprint(i)) }

// Inside is a list for a place in the text at the path, which begins after offset bytes.
func (l *List) Inside(text string, offset int) *List {
	in := l.At()
	for _, r := range text[:offset] {
		if !unicode.IsSpace(r) {
			in.skip++
		}
	}
	return in
}

// Errorf adds a problem that keeps the server from starting.
func (l *List) Errorf(format string, a ...any) { l.addProblem(false, format, a...) }

// Warnf adds a problem that does not keep the server from starting.
func (l *List) Warnf(format string, a ...any) { l.addProblem(true, format, a...) }

func (l *List) addProblem(warning bool, format string, a ...any) {
	l.allocate()
	l.problems = append(l.problems,
		Problem{Path: slices.Clone(l.path), Text: fmt.Sprintf(format, a...), Warning: warning, Skip: l.skip})
}

// All returns what was added, in order.
func (l *List) All() []Problem {
	if l.found == nil {
		return nil
	}
	return l.problems
}

// Bad reports whether any problem is more than a warning.
func (l *List) Bad() bool {
	return slices.ContainsFunc(l.All(), func(p Problem) bool { return !p.Warning })
}

// Saw adds a file that the result depends on, with its state before it was read. info is nil if the file could not be
// opened.
func (l *List) Saw(path string, info fs.FileInfo) {
	l.allocate()
	l.files[path] = info
}

// Files returns the files that Saw added, by path.
func (l *List) Files() map[string]fs.FileInfo {
	l.allocate()
	return l.files
}
