// Package processtest has what the tests of commands share: a [Bench] that starts commands with a [process.Local], and
// a [Subject], which starts, awaits and reads runs by any implementation.
package processtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"sallyport/internal/diag"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process"
	"sallyport/runner/process/output"
	"sallyport/runner/process/rundir"
)

// Patience is how long a test waits for an event that must happen. No test asserts this duration.
const Patience = time.Minute

// Subject is the implementation under test, and the folder where it keeps its runs.
type Subject struct {
	Commands
	Dir string
}

// Commands is an implementation that starts commands and reads their outputs.
type Commands interface {
	runner.Processes
	Output(run string) (*output.Reader, error)
}

// Bench is a Subject that runs commands as children of the test process.
type Bench struct {
	Subject
	*process.Local
	Hook *hook.Hook
}

// NewBench compiles the hook "job" and makes a Local that knows it.
func NewBench(t testing.TB, spec hook.Spec) *Bench {
	t.Helper()
	return NewLoggingBench(t, spec, t.Output())
}

// NewLoggingBench is [NewBench] with a log that goes to the given writer.
func NewLoggingBench(t testing.TB, spec hook.Spec, log io.Writer) *Bench {
	t.Helper()
	spec.Callers = []hook.Grant{{Caller: "tester"}}
	if spec.Grace == 0 {
		spec.Grace = Patience
	}
	if spec.Timeout == 0 {
		spec.Timeout = Patience
	}
	var p diag.List
	hooks := hook.Compile(map[string]*hook.Spec{"job": &spec}, []string{"tester"}, &p)
	if p.Bad() {
		t.Fatalf("the hook of the test does not compile: %v", p.All())
	}
	b := &Bench{Subject: Subject{Dir: filepath.Join(t.TempDir(), "runs")}, Hook: hooks["job"]}
	find := func(name string) (*hook.Hook, bool) { return b.Hook, name == "job" }
	var err error
	if b.Local, err = process.NewLocal(b.Dir, find, slog.New(slog.NewTextHandler(log, nil))); err != nil {
		t.Fatal(err)
	}
	b.Commands = b.Local
	return b
}

// Script returns a command that runs a shell script with the arguments.
func Script(t testing.TB, script string, args ...string) []string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(name, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	return append([]string{"/bin/sh", name}, args...)
}

// NewOrder returns an order for a new run of the hook "job".
func NewOrder() runner.Order {
	return runner.Order{Run: uuid.Must(uuid.NewV7()).String(), Hook: "job", Caller: "tester", Created: time.Now()}
}

// Begin starts a run, and stops it when the test ends.
func (b *Subject) Begin(t testing.TB, o runner.Order) string {
	t.Helper()
	if err := b.Start(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(o.Run, runner.Cancelled, 0); err != nil {
			t.Error(err)
		}
		b.AwaitEnd(t, o.Run)
	})
	return o.Run
}

// AwaitEnd waits for the end of a run.
func (b *Subject) AwaitEnd(t testing.TB, run string) runner.End {
	t.Helper()
	ends, err := b.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case e, ok := <-ends:
		if !ok {
			t.Fatal("the channel was closed without an end")
		}
		if _, more := <-ends; more {
			t.Fatal("a second end came")
		}
		return e
	case <-time.After(Patience):
		t.Fatal("the run does not end")
	}
	return runner.End{}
}

// RunToEnd starts a run and waits for its end.
func (b *Subject) RunToEnd(t testing.TB, o runner.Order) runner.End {
	t.Helper()
	return b.AwaitEnd(t, b.Begin(t, o))
}

// ReadOutput returns the output of a run. It fails the test if any byte is missing.
func (b *Subject) ReadOutput(t testing.TB, run string) string {
	t.Helper()
	o, err := b.Output(run)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	var all bytes.Buffer
	p := make([]byte, 4<<10)
	for off := int64(0); ; {
		at, n, err := o.Next(p, off)
		if errors.Is(err, io.EOF) {
			return all.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if at != off {
			t.Fatalf("bytes %d to %d are missing", off, at)
		}
		all.Write(p[:n])
		off = at + int64(n)
	}
}

// ReadStatus reads the status of a run from its folder, as another process would.
func (b *Subject) ReadStatus(t testing.TB, run string) (s rundir.Status) {
	t.Helper()
	f, err := os.OpenInRoot(b.Dir, filepath.Join(run, "status"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatalf("half a status: %q", text)
	}
	return s
}

// BlockStatus prevents that the status of a run is replaced.
func (b *Subject) BlockStatus(t testing.TB, run string) (unblock func()) {
	t.Helper()
	blocker := filepath.Join(b.Dir, run, "status.new")
	Eventually(t, "the way is blocked", func() bool {
		return os.MkdirAll(filepath.Join(blocker, "full"), 0o700) == nil
	})
	return func() {
		if err := os.RemoveAll(blocker); err != nil {
			t.Fatal(err)
		}
	}
}

// Eventually waits until another process has made the condition true.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Patience); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting: %s", what)
		}
	}
}

// AwaitText waits until the output of a run has the text.
func (b *Subject) AwaitText(t testing.TB, run, text string) {
	t.Helper()
	Eventually(t, "the command says "+text, func() bool { return strings.Contains(b.ReadOutput(t, run), text) })
}

// CheckExit checks that a run ended by itself with the exit code.
func CheckExit(t testing.TB, e runner.End, code int) {
	t.Helper()
	if e.ExitCode == nil || *e.ExitCode != code || e.Signal != "" || e.Reason != "" || e.Error != "" ||
		e.Ended.IsZero() {
		t.Errorf("got %+v, want exit code %d and nothing else", e, code)
	}
}

// GatedScript returns a command that writes "ready" and its pid, waits until release is called, and then runs the
// script then.
func GatedScript(t testing.TB, then string) (command []string, release func()) {
	t.Helper()
	gate := filepath.Join(t.TempDir(), "gate")
	return Script(t, `echo ready $$; until [ -e "$1" ]; do sleep 0.01; done; `+then, gate), func() {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Error(err)
		}
	}
}

// CheckInterrupted checks that a run was interrupted, so that its exit code is unknown.
func CheckInterrupted(t testing.TB, e runner.End) {
	t.Helper()
	if e.Reason != runner.Interrupted || e.ExitCode != nil || e.Signal != "" || e.Ended.IsZero() {
		t.Errorf("got %+v, want reason interrupted and nothing else", e)
	}
}
