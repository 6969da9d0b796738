package hook

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"sallyport/internal/terminal"
)

// template is a text with holes: literal, hole, literal, …, literal. There is one literal more than holes, so the
// text before the first hole is literals[0].
type template struct {
	literals []string
	holes    []string
}

// parseTemplate parses "a{b}c". "{{" and "}}" stand for the braces themselves. Any other brace that does not form a
// hole is an error and not a literal, because a misspelt hole must not reach a command as text.
func parseTemplate(s string) (template, error) {
	var t template
	var lit strings.Builder
	for len(s) > 0 {
		switch {
		case strings.HasPrefix(s, "{{"), strings.HasPrefix(s, "}}"):
			lit.WriteByte(s[0])
			s = s[2:]
		case s[0] == '{':
			name, rest, closed := strings.Cut(s[1:], "}")
			if !closed || !isParamName(name) {
				return template{}, fmt.Errorf("%q does not start a hole: write {name}, or {{ for a brace", s)
			}
			t.literals = append(t.literals, lit.String())
			t.holes = append(t.holes, name)
			lit.Reset()
			s = rest
		case s[0] == '}':
			return template{}, errors.New("a single } closes nothing: write }} for a brace")
		default:
			lit.WriteByte(s[0])
			s = s[1:]
		}
	}
	t.literals = append(t.literals, lit.String())
	return t, nil
}

// fillHoles returns the text with the values in its holes. Every hole has a value: Compile refuses a hole without a
// parameter, and Bind gives every parameter a value.
func (t template) fillHoles(v Values) string {
	var b strings.Builder
	for i, hole := range t.holes {
		b.WriteString(t.literals[i])
		b.WriteString(v[hole])
	}
	b.WriteString(t.literals[len(t.holes)])
	return b.String()
}

// fillDistinct is like fillHoles, but two different sets of values never give the same text. With more than one hole,
// the characters between the holes are escaped in the values, and so is the escape character. Adjacent holes are
// separated by a comma.
func (t template) fillDistinct(v Values) string {
	if len(t.holes) < 2 {
		return t.fillHoles(v)
	}
	parts := slices.Clone(t.literals)
	for i := 1; i < len(t.holes); i++ {
		if parts[i] == "" {
			parts[i] = ","
		}
	}
	special := "%" + strings.Join(parts[1:len(t.holes)], "")
	escaped := make(Values, len(t.holes))
	for _, hole := range t.holes {
		escaped[hole] = escapeSpecial(v[hole], special)
	}
	return template{parts, t.holes}.fillHoles(escaped)
}

// escapeSpecial percent-encodes the special characters of a value, as in a URL.
func escapeSpecial(value, special string) string {
	var b strings.Builder
	for _, r := range value {
		if !strings.ContainsRune(special, r) {
			b.WriteRune(r)
			continue
		}
		for _, c := range []byte(string(r)) {
			_, _ = fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// maxTitle is the most bytes of a title, in addition to the ellipsis of one that is cut.
const maxTitle = 200

// Title returns what people call a run with the values v: one line of printable characters, or an empty text if the
// hook has no title.
func (h *Hook) Title(v Values) string {
	text := h.title.fillHoles(v)
	text = terminal.Line(text[:min(len(text), maxTitle+utf8.UTFMax)])
	for i, r := range text {
		if i+utf8.RuneLen(r) > maxTitle {
			return text[:i] + "…"
		}
	}
	return text
}

// beginsWithHole reports whether a value decides how the filled text begins.
func (t template) beginsWithHole() bool { return len(t.holes) > 0 && t.literals[0] == "" }

var paramName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

func isParamName(s string) bool { return paramName.MatchString(s) }
