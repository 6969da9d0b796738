// Package testenv is for tests: for those that need an environment that not every machine has ([Skip]), and for those
// that wait for what other goroutines do ([WaitUntil], [FindGoroutines]).
package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
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

// complete reports whether every test has to run, as under "make test", which installs all that they need.
func complete() bool { return os.Getenv("TESTS") == "all" } //nolint:forbidigo // of the tests, which have no main

// Lacks reports whether this machine lacks what a test needs: a program in PATH, or a file, whose name has a slash. It
// returns an error if every test has to run.
func Lacks(name string) (bool, error) {
	look := exec.LookPath
	if strings.Contains(name, "/") {
		look = func(name string) (string, error) {
			_, err := os.Stat(name)
			return name, err
		}
	}
	_, err := look(name)
	if err != nil && complete() {
		return true, fmt.Errorf("%w: make test installs it", err)
	}
	return err != nil, nil
}

// Need skips a test on a machine that lacks a program in PATH, or a file, whose name has a slash. If every test has to
// run, the test fails instead.
func Need(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		missing, err := Lacks(name)
		if err != nil {
			t.Fatal(err)
		}
		if missing {
			Skip(t, t.Name()+": "+name+" is not installed; make test installs it")
		}
	}
}

// Long skips a test that takes long, unless every test has to run.
func Long(t testing.TB) {
	t.Helper()
	if !complete() {
		Skip(t, t.Name()+": it takes long; TESTS=all runs it, as make test does")
	}
}

// AttackCount returns how often a test repeats what it does: short, or long under "make attack", which sets ATTACK.
func AttackCount(short, long int) int {
	if _, attack := os.LookupEnv("ATTACK"); attack { //nolint:forbidigo // of the tests, which have no main
		return long
	}
	return short
}

// HasStopped reports whether all threads of a process have stopped after SIGSTOP. They stop one by one, so one that
// still runs could accept an order.
func HasStopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return !slices.ContainsFunc(threads, func(name string) bool {
		stat, _ := os.ReadFile(name)
		_, state, _ := bytes.Cut(stat, []byte(") ")) // proc_pid_stat(5)
		return !bytes.HasPrefix(state, []byte("T"))
	})
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

// Log is a log that may be read while it is written. Its zero value is empty.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// String returns what was written until now.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Count returns how often the log has a text.
func (l *Log) Count(text string) int { return strings.Count(l.String(), text) }

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
