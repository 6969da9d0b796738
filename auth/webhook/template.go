package webhook

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"sallyport/auth/field"
	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
)

// entry is one item of a signature header: a hole between literals.
type entry struct{ before, hole, after string }

// template is what is signed, in pieces.
type template []piece

// piece is a literal, or a hole: body, ts or id.
type piece struct {
	text string
	hole bool
}

// compileValue splits the layout of the signature header into its entries.
func (s draft) compileValue(p *diag.List) {
	s.spec.Value = cmp.Or(s.spec.Value, "{sig}")
	items := []string{s.spec.Value}
	if s.spec.List != "" {
		if len(s.spec.List) != 1 || field.IsToken(s.spec.List) {
			p.At("list").Errorf("is not one separator, such as a comma or a space")
			return
		}
		items = strings.Split(s.spec.Value, s.spec.List)
	}
	holes := map[string]int{}
	for _, item := range items {
		before, rest, ok := strings.Cut(item, "{")
		hole, after, closed := strings.Cut(rest, "}")
		if !ok || !closed || strings.ContainsAny(before+after, "{}") || hole != "sig" && hole != "ts" {
			p.At("value").Errorf("each entry needs one of {sig} and {ts}; several entries need list")
			return
		}
		holes[hole]++
		s.entries = append(s.entries, entry{before, hole, after})
	}
	if holes["sig"] != 1 || holes["ts"] > 1 {
		p.At("value").Errorf("needs {sig} once, and {ts} at most once")
	}
	if holes["ts"] == 1 && s.spec.TS == nil {
		s.spec.TS = &TimeSpec{}
	}
}

// compileTemplate splits what the signature covers into literals and holes.
func compileTemplate(text string, p *diag.List) (t template) {
	count := map[string]int{}
	for rest := text; rest != ""; {
		literal, more, found := strings.Cut(rest, "{")
		if literal != "" {
			t = append(t, piece{text: literal})
		}
		if !found {
			break
		}
		hole, after, closed := strings.Cut(more, "}")
		if !closed || hole != "body" && hole != "ts" && hole != "id" {
			p.Errorf("has a hole that is not {body}, {ts} or {id}")
			return t
		}
		if text := explainAmbiguity(t, count["body"] > 0, hole, after); text != "" {
			p.Errorf("%s, so bytes could move between them under the same signature", text)
		}
		count[hole]++
		t = append(t, piece{text: hole, hole: true})
		rest = after
	}
	if count["body"] != 1 || count["ts"] > 1 || count["id"] > 1 {
		p.Errorf("needs {body} once, and {ts} and {id} at most once")
	}
	return t
}

// explainAmbiguity says why the end of a hole would not be clear, or nothing. An id ends at the next
// literal, a time has a fixed length, and the body is the rest.
func explainAmbiguity(before template, body bool, hole, after string) string {
	if hole == "id" && (after == "" || after[0] == '{') {
		return "has {id} with no literal after it"
	}
	if hole == "id" && body {
		return "has {id} after {body}"
	}
	n := len(before)
	if n == 0 || !before[n-1].hole || before[n-1].text == "id" || before[n-1].text+hole == "tsbody" {
		return ""
	}
	return fmt.Sprintf("has nothing between {%s} and {%s}", before[n-1].text, hole)
}

func (t template) coversHole(hole string) bool {
	return slices.Contains(t, piece{text: hole, hole: true})
}

// writeMessage writes what is signed to a hash or a buffer, which do not fail. The error is that of a form without the
// JSON that the sender signs.
func (s *Scheme) writeMessage(w io.Writer, sig *Signature, body []byte) (err error) {
	for _, x := range s.signed {
		text := x.text
		switch {
		case x.hole && x.text == "body":
			err = s.writeBody(w, body)
			continue
		case x.hole && x.text == "ts":
			text = sig.Timestamp
		case x.hole:
			text = sig.ID
		}
		_, _ = io.WriteString(w, text)
	}
	return err
}

// writeBody writes the part of a body that is signed.
func (s *Scheme) writeBody(w io.Writer, body []byte) error {
	if s.spec.JSON {
		err := strictjson.WriteUnwrapped(w, body)
		if err == nil {
			return nil
		}
		_, _ = w.Write(body) // a malformed form takes no less time than a wrong signature
		return err
	}
	_, _ = w.Write(body)
	return nil
}

// cutHole returns what an item of the header has in place of the entry's hole.
func (e entry) cutHole(item string, inList bool) (string, bool) {
	if inList {
		item = strings.Trim(item, " \t") // RFC 9110 5.6.1
	}
	text, ok := strings.CutPrefix(item, e.before)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(text, e.after)
}

// isUnambiguousID reports whether an id ends where the literal after it first occurs in what is signed.
// Otherwise "a.1" and "1" would have the signature of "a" and "1.1", and, with the literal "::", "a:"
// and "1" that of "a" and ":1".
func (t template) isUnambiguousID(id string) bool {
	if !field.IsPrintable(id) {
		return false
	}
	for i, x := range t {
		if x.hole && x.text == "id" && strings.Index(id+t[i+1].text, t[i+1].text) != len(id) {
			return false
		}
	}
	return true
}
