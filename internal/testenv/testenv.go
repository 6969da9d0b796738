// Package testenv is for tests: for those that need an environment that not every machine has ([Skip]), and for those
// that wait for what other goroutines do ([WaitUntil], [FindGoroutines]).
package testenv

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
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

// WaitUntil repeats ask until it returns true. After a minute, the test fails.
func WaitUntil(t testing.TB, what string, ask func() bool) {
	t.Helper()
	for deadline := time.After(time.Minute); !ask(); {
		select {
		case <-deadline:
			t.Fatal("did not happen: ", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// FindGoroutines returns the stacks of the goroutines that contain one of the texts.
func FindGoroutines(texts ...string) (found []string) {
	all := make([]byte, 4<<20)
	for stack := range strings.SplitSeq(string(all[:runtime.Stack(all, true)]), "\n\n") {
		for _, text := range texts {
			if strings.Contains(stack, text) {
				found = append(found, stack)
				break
			}
		}
	}
	return found
}
