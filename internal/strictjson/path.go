package strictjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Path is a path into a JSON value, as a configuration file writes it: body.push.changes[0].new.name. It begins with
// a name for the value, its root. The steps that follow it are names of members and indexes of elements.
type Path struct {
	root  string
	steps []step
}

// step is the name of a member of an object, or the index of an element of a list.
type step struct {
	name  string
	index int // from the end if it is negative
	list  bool
}

// ParsePath parses a path: names with dots between them; [0], or [-1] from the end, for the elements of a list; and
// ["any text"] for a name with other characters, written like a JSON string. An error says what to write instead.
func ParsePath(text string) (Path, error) {
	if !utf8.ValidString(text) {
		return Path{}, fmt.Errorf("%q is not valid UTF-8", text)
	}
	end := strings.IndexAny(text, ".[")
	if end < 0 {
		end = len(text)
	}
	p := Path{root: text[:end]}
	for rest := text[end:]; rest != ""; {
		if len(p.steps) == maxDepth {
			return Path{}, fmt.Errorf("%.80q has more than %d steps, the depth of the deepest value", text, maxDepth)
		}
		s, length, err := parseStep(rest)
		if err != nil {
			return Path{}, fmt.Errorf("%q %w", text, err)
		}
		p.steps, rest = append(p.steps, s), rest[length:]
	}
	return p, nil
}

// parseStep parses the step at the start of text, and returns its length.
func parseStep(text string) (step, int, error) {
	switch {
	case strings.HasPrefix(text, `["`):
		return parseQuoted(text)
	case text[0] == '[':
		return parseIndex(text)
	case text[0] != '.':
		return step{}, 0, fmt.Errorf("has %q after a bracket: write a dot before a name", text)
	}
	name := text[1:]
	if end := strings.IndexAny(name, ".["); end >= 0 {
		name = name[:end]
	}
	switch {
	case name == "":
		return step{}, 0, fmt.Errorf(`has an empty name: write [""] if the name is empty`)
	case strings.ContainsAny(name, `]"`):
		return step{}, 0, fmt.Errorf("has a bracket or a quote in a name: write [%s]", Quote(name))
	}
	return step{name: name}, 1 + len(name), nil
}

func parseIndex(text string) (step, int, error) {
	digits, _, closed := strings.Cut(text[1:], "]")
	if !closed {
		return step{}, 0, fmt.Errorf("has [ without ]")
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || strconv.FormatInt(n, 10) != digits { // "+1", "01" and "-0" are not in the canonical form
		return step{}, 0, fmt.Errorf("has [%s]: write [0] for the first element, [-1] for the last, or [%s] for a name",
			digits, Quote(strings.Trim(digits, `'"`)))
	}
	return step{index: int(n), list: true}, len(digits) + 2, nil
}

func parseQuoted(text string) (step, int, error) {
	for end := 2; end < len(text); end++ {
		if text[end] == '\\' {
			end++
			continue
		}
		if text[end] != '"' {
			continue
		}
		v, err := Decode([]byte(text[1 : end+1]))
		if err != nil || end+1 == len(text) || text[end+1] != ']' {
			break
		}
		name, _ := v.(string) // JSON in quotes is a string
		return step{name: name}, end + 2, nil
	}
	return step{}, 0, fmt.Errorf(`has a name in quotes that is not written as in JSON, with "] after it`)
}

// NamesPath returns the path of names that contain any characters.
func NamesPath(root string, names ...string) Path {
	p := Path{root: root}
	for _, name := range names {
		p.steps = append(p.steps, step{name: name})
	}
	return p
}

// Root returns the name with which the path begins.
func (p Path) Root() string { return p.root }

// Names returns the names after the root, or false if there is an index.
func (p Path) Names() ([]string, bool) {
	names := make([]string, len(p.steps))
	for i, s := range p.steps {
		if s.list {
			return nil, false
		}
		names[i] = s.name
	}
	return names, true
}

// String returns the path as ParsePath parses it.
func (p Path) String() string {
	var b strings.Builder
	b.WriteString(p.root)
	for _, s := range p.steps {
		switch {
		case s.list:
			b.WriteString("[" + strconv.Itoa(s.index) + "]")
		case s.name == "" || strings.ContainsAny(s.name, `.[]"`) || strings.ContainsFunc(s.name, isUnprintable):
			b.WriteString("[" + Quote(s.name) + "]")
		default:
			b.WriteString("." + s.name)
		}
	}
	return b.String()
}

func isUnprintable(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) }

// Quote returns a text as a JSON string, in which only what must be escaped is escaped.
func Quote(name string) string {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(name) // a string can be encoded
	return strings.TrimSuffix(text.String(), "\n")
}

// Lookup follows the path from v, the value of its root. A missing member or element, null, and a value of another
// type on the way are errors, which name the step. They contain nothing of the value but lengths of lists.
func (p Path) Lookup(v any) (any, error) {
	for i, s := range p.steps {
		next := s.lookup(v)
		if next == nil {
			return nil, p.explainMissing(i, v)
		}
		v = next
	}
	if v == nil {
		return nil, fmt.Errorf("no %s", p)
	}
	return v, nil
}

// IsAbsent reports whether a value that Lookup does not find is absent from v: a member that an object does not have,
// an element that a list does not have, or null. It is not if a step needs an object or a list and finds another type.
func (p Path) IsAbsent(v any) bool {
	for _, s := range p.steps {
		_, isList := v.([]any)
		_, isObject := v.(map[string]any)
		if s.list && !isList || !s.list && !isObject {
			return false
		}
		if v = s.lookup(v); v == nil {
			return true
		}
	}
	return v == nil
}

// lookup returns the member or element of v, or nil.
func (s step) lookup(v any) any {
	if !s.list {
		members, _ := v.(map[string]any)
		return members[s.name]
	}
	list, _ := v.([]any)
	i := s.index
	if i < 0 {
		i += len(list)
	}
	if i < 0 || i >= len(list) {
		return nil
	}
	return list[i]
}

// explainMissing says why v has nothing at step i.
func (p Path) explainMissing(i int, v any) error {
	s, above := p.steps[i], Path{p.root, p.steps[:i]}
	list, isList := v.([]any)
	_, isObject := v.(map[string]any)
	_, err := strconv.ParseUint(s.name, 10, 31)
	switch isIndex := err == nil; {
	case isList && !s.list && isIndex:
		return fmt.Errorf("no %s: %s is a list, so write %s[%s]", p, above, above, s.name)
	case isList && s.list && (s.index >= len(list) || s.index < -len(list)):
		return fmt.Errorf("no %s: %s has the length %d", p, above, len(list))
	case v != nil && s.list != isList || !s.list && v != nil && !isObject:
		return fmt.Errorf("no %s: %s is %s", p, above, describeType(v))
	case v == nil || i == len(p.steps)-1:
		return fmt.Errorf("no %s", p)
	}
	return fmt.Errorf("no %s: there is no %s", p, Path{p.root, p.steps[:i+1]})
}

func describeType(v any) string {
	switch v.(type) {
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	case string:
		return "text"
	case bool:
		return "true or false"
	}
	return "a number"
}
