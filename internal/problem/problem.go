// Package problem collects what is wrong with a configuration, so that an
// operator sees all of it at once and each with its place in the file.
package problem

import (
	"fmt"
	"slices"
)

// Problem is one thing wrong at one place.
type Problem struct {
	Path    []string // keys from the top of the file; a list index is its decimal number
	Text    string
	Warning bool // worth saying, but the server starts
}

// List is where the checks write. Its zero value is empty and ready.
type List struct {
	all  *[]Problem
	path []string
}

// At returns a list that writes to the same place, further down the file.
func (l *List) At(keys ...string) *List {
	if l.all == nil {
		l.all = new([]Problem)
	}
	return &List{all: l.all, path: append(slices.Clone(l.path), keys...)}
}

// Index is At for an entry of a list.
func (l *List) Index(i int) *List { return l.At(fmt.Sprint(i)) }

// Errorf adds a problem that keeps the server from starting.
func (l *List) Errorf(format string, a ...any) { l.add(false, format, a...) }

// Warnf adds a problem that is only told.
func (l *List) Warnf(format string, a ...any) { l.add(true, format, a...) }

func (l *List) add(warning bool, format string, a ...any) {
	if l.all == nil {
		l.all = new([]Problem)
	}
	*l.all = append(*l.all, Problem{Path: slices.Clone(l.path), Text: fmt.Sprintf(format, a...), Warning: warning})
}

// All returns what was added, in order.
func (l *List) All() []Problem {
	if l.all == nil {
		return nil
	}
	return *l.all
}

// Bad tells whether any problem is more than a warning.
func (l *List) Bad() bool {
	return slices.ContainsFunc(l.All(), func(p Problem) bool { return !p.Warning })
}
