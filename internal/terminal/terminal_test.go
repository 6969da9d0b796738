package terminal_test

import (
	"bytes"
	"os"
	"testing"

	"sallyport/internal/terminal"
)

func TestEscape_PrintsTextAlone(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain text\n\tand é € 😀\n":  "plain text\n\tand é € 😀\n",
		"a\x1b[2Jb":                  `a\x1b[2Jb`,
		"\x1b]0;title\a":             `\x1b]0;title\a`,
		"c1 \u009b31m":               `c1 \u009b31m`,
		"bidi \u202etxt":             `bidi \u202etxt`,
		"100%\r200%":                 `100%\r200%`,
		"dos\r\nend\r\n":             "dos\r\nend\r\n",
		"bytes \xff\xfe":             `bytes \xff\xfe`,
		"nul \x00 del \x7f back \b.": `nul \x00 del \x7f back \b.`,
	} {
		for _, step := range []int{1, 2, 3, len(text)} {
			var out bytes.Buffer
			w := terminal.Escape(&out)
			for rest := []byte(text); len(rest) > 0; {
				n, err := w.Write(rest[:min(step, len(rest))])
				if err != nil || n != min(step, len(rest)) {
					t.Fatal(n, err)
				}
				rest = rest[n:]
			}
			// A carriage return is judged by what comes with it.
			if got := out.String(); got != want && step == len(text) || bytes.ContainsAny(out.Bytes(), "\x1b\a\b\x00\x7f") {
				t.Errorf("%q in steps of %d: %q, want %q", text, step, got, want)
			}
		}
	}
}

func TestWriter_LeavesFilesAsTheyAre(t *testing.T) {
	t.Parallel()
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := terminal.Writer(f).Write([]byte("\x1b[2J")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(f.Name()); err != nil || string(got) != "\x1b[2J" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestQuote_AndLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]string{
		"plain é":    {"plain é", "plain é"},
		"":           {`""`, ""},
		"a\x1b[2J":   {`"a\x1b[2J"`, "a\ufffd[2J"},
		"two\nlines": {`"two\nlines"`, "two\ufffdlines"},
	} {
		if got := terminal.Quote(text); got != want[0] {
			t.Errorf("Quote(%q) = %s", text, got)
		}
		if got := terminal.Line(text); got != want[1] {
			t.Errorf("Line(%q) = %s", text, got)
		}
	}
}
