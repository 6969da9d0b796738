// Package testenv is for tests that need an environment that not every machine has.
package testenv

import (
	"fmt"
	"os"
	"testing"
)

// Skip skips a test, and writes that to the file that "make test" prints, because go test does not print the output of
// a package that passes.
func Skip(t testing.TB, what string) {
	t.Helper()
	text := "NOT CHECKED: " + what
	if name := os.Getenv("NOT_CHECKED"); name != "" { //nolint:forbidigo // of the tests, which have no main
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600) //nolint:gosec // G703: a user names it
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintln(f, "***", text, "***"); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Skip(text)
}
