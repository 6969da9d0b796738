// Package terminal makes untrusted text safe to print: a terminal obeys escape sequences, which can hide or forge what
// the user reads. Output to anything but a terminal is not changed.
//
// [Writer] is for a stream, [Line] for one field of a table, and [Quote] for a word within a message.
package terminal

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Line returns s as one line, with a replacement character for each that is not
// printable.
func Line(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// Quote returns s as it is, or quoted and escaped if s is empty or has characters that are not printable.
func Quote(s string) string {
	if quoted := strconv.Quote(s); s == "" || quoted != `"`+s+`"` {
		return quoted
	}
	return s
}

// Is reports whether w is a terminal.
func Is(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Writer returns w, or, if w is a terminal, a writer that escapes all but text and line ends.
func Writer(w io.Writer) io.Writer {
	if Is(w) {
		return Escape(w)
	}
	return w
}

// Escape returns a writer that escapes all but text and line ends, and writes to w.
func Escape(w io.Writer) io.Writer { return &escaper{to: w} }

type escaper struct {
	to   io.Writer
	rest []byte // the beginning of a character
}

// Write escapes b. It reports all of b as written, or an error.
func (e *escaper) Write(b []byte) (int, error) {
	text := append(e.rest, b...)
	var out bytes.Buffer
	for len(text) > 0 && (utf8.FullRune(text) || len(text) >= utf8.UTFMax) {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size == 1:
			_, _ = fmt.Fprintf(&out, `\x%02x`, text[0])
		case r == '\n' || r == '\t' || unicode.IsPrint(r):
			_, _ = out.Write(text[:size])
		case r == '\r' && len(text) > 1 && text[1] == '\n': // a line end of other systems
			_ = out.WriteByte('\r')
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			_, _ = out.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[size:]
	}
	e.rest = bytes.Clone(text)
	if _, err := e.to.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(b), nil
}
