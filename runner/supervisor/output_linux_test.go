package supervisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
	"sallyport/runner/process/processtest"
)

// writer is a script that writes lines, waits for its gate file and writes its exit code to a file. Its output is
// larger than a FIFO.
const writer = `seq %d %d; code=$?; until [ -e "$1/gate" ]; do sleep 0.01; done; echo $code > "$1/code"`

// newWriter returns a post with a hook "job" that is a writer.
func newWriter(t *testing.T, lines int, keep hook.OutputSpec) (p *post, dir string) {
	t.Helper()
	dir = t.TempDir()
	return newPost(t, map[string]hook.Spec{"job": {
		Command: processtest.Script(t, fmt.Sprintf(writer, processtest.FirstLine, processtest.FirstLine+lines-1), dir), Output: keep,
	}}), dir
}

// wrote checks that a writer was not disturbed and that its output has the wanted number of bytes.
func (p *post) wrote(t *testing.T, run, dir string, want int64) {
	t.Helper()
	if code, err := os.ReadFile(filepath.Join(dir, "code")); err != nil || string(code) != "0\n" {
		t.Errorf("the writer ended with %q, %v", code, err)
	}
	if kept := p.ReadAlong(t, run, 10_000); kept != want {
		t.Errorf("%d bytes are there, want %d", kept, want)
	}
	if left, err := filepath.Glob(filepath.Join(p.Dir, run, "fifo")); len(left) > 0 || err != nil {
		t.Errorf("%v is left, %v", left, err)
	}
}

// stopSupervisor stops the supervisor, and returns when all its threads have stopped.
func (p *post) stopSupervisor(t *testing.T) (pid int) {
	t.Helper()
	pid = p.PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	processtest.Eventually(t, "the supervisor has stopped", func() bool { return testenv.HasStopped(pid) })
	return pid
}

func open(t *testing.T, gate string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(gate, "gate"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOutput_KilledSupervisor kills one supervisor after the other. The command continues to write and gets no
// SIGPIPE, and no byte of its output is lost or duplicated.
func TestOutput_KilledSupervisor(t *testing.T) {
	const lines, size = 8_000_000, 8_000_000 * processtest.LineBytes
	for name, keep := range map[string]hook.OutputSpec{
		"head": {Head: 1 << 30, Tail: 1}, "tail": {Head: 1, Tail: 1 << 30}, "both": {Head: 100_000, Tail: 3_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := newWriter(t, lines, keep)
			run := p.begin(t, p.order("job", nil))
			ends, err := p.Follow(run)
			if err != nil {
				t.Fatal(err)
			}
			for range 8 {
				before := p.PID()
				p.killSupervisor(t)
				processtest.Eventually(t, "there is another supervisor", func() bool {
					_, err := p.List()
					return err == nil && p.PID() != before
				})
			}
			open(t, dir)
			e := <-ends
			processtest.CheckInterrupted(t, e)
			kept := min(size, int64(keep.Head+keep.Tail))
			if e.Output != (runner.Output{Bytes: size, Dropped: size - kept}) {
				t.Errorf("output %+v", e.Output)
			}
			p.wrote(t, run, dir, kept)
		})
	}
}

// TestOutput_KilledBeforeTaking kills a supervisor when the tail has bytes that may be in the FIFO too.
func TestOutput_KilledBeforeTaking(t *testing.T) {
	const first, lines = 20_000, 25_000
	for name, taken := range map[string]bool{"not taken": false, "taken": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := newPost(t, map[string]hook.Spec{"job": {
				Command: processtest.Script(t, fmt.Sprintf(`seq %d %d; until [ -e "$1/go" ]; do sleep 0.01; done; `+writer,
					processtest.FirstLine, processtest.FirstLine+first-1, processtest.FirstLine+first, processtest.FirstLine+lines-1), dir),
				Output: hook.OutputSpec{Head: 1000, Tail: 1 << 20},
			}})
			run := p.begin(t, p.order("job", nil))
			ends, err := p.Follow(run)
			if err != nil {
				t.Fatal(err)
			}
			p.AwaitText(t, run, fmt.Sprintf("%d\n", processtest.FirstLine+first-1))
			p.stopSupervisor(t)
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			open(t, dir)
			processtest.Eventually(t, "the command has ended", func() bool { _, err := os.Stat(filepath.Join(dir, "code")); return err == nil })
			var more []byte
			for n := processtest.FirstLine + first; !taken && n < processtest.FirstLine+lines-1000; n++ {
				more = fmt.Appendln(more, n)
			}
			if err := processtest.ForgeTail(filepath.Join(p.Dir, run, "tail"), more, max(len(more), 20_000)); err != nil {
				t.Fatal(err)
			}
			p.killSupervisor(t)
			processtest.CheckInterrupted(t, <-ends)
			p.wrote(t, run, dir, lines*processtest.LineBytes)
		})
	}
}

// TestOutput_EndWithoutSupervisor checks that the last output of a command is not lost when the command ends while
// there is no supervisor.
func TestOutput_EndWithoutSupervisor(t *testing.T) {
	const lines = 5_000 // fits into the FIFO
	p, dir := newWriter(t, lines, hook.OutputSpec{})
	begun := filepath.Join(dir, "begun")
	p.hooks = p.write(t, map[string]hook.Spec{"job": {Command: processtest.Script(t,
		fmt.Sprintf(`: > "$1/begun"; until [ -e "$1/gate" ]; do sleep 0.01; done; seq %d %d; echo $? > "$1/code"`, processtest.FirstLine, processtest.FirstLine+lines-1), dir)}})
	run := p.begin(t, p.order("job", nil))
	ends, err := p.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	processtest.Eventually(t, "the command began", func() bool { _, err := os.Stat(begun); return err == nil })
	p.stopSupervisor(t)
	open(t, dir)
	processtest.Eventually(t, "the command has ended", func() bool { _, err := os.Stat(filepath.Join(dir, "code")); return err == nil })
	processtest.Eventually(t, "nothing of it holds its lock", func() bool { return !p.Subject.IsLocked(t, run) })
	p.killSupervisor(t)
	processtest.CheckInterrupted(t, <-ends)
	p.wrote(t, run, dir, lines*processtest.LineBytes)
}

// TestOutput_StoppedSupervisor checks that a command waits for a supervisor that is stopped, and continues with it.
func TestOutput_StoppedSupervisor(t *testing.T) {
	const lines = 1_000_000
	p, dir := newWriter(t, lines, hook.OutputSpec{})
	run := p.begin(t, p.order("job", nil))
	supervisor := p.stopSupervisor(t)
	open(t, dir)
	fifo, err := unix.Open(filepath.Join(p.Dir, run, "fifo"), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fifo) }()
	processtest.Eventually(t, "the FIFO is full", func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fifo), Events: unix.POLLOUT}}, 0)
		return err == nil && n == 0
	})
	if _, err := os.Stat(filepath.Join(dir, "code")); err == nil {
		t.Error("the command wrote more than the FIFO holds")
	}
	if err := syscall.Kill(supervisor, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 0)
	p.wrote(t, run, dir, lines*processtest.LineBytes)
}

// TestOutput_RemovedFile checks that a removed output is not kept any more, that this is logged once, and that
// nothing else fails.
func TestOutput_RemovedFile(t *testing.T) {
	const lines = 1_000_000
	dir := t.TempDir()
	p := newPost(t, map[string]hook.Spec{"job": {Command: processtest.Script(t,
		`echo ready; until [ -e "$1/go" ]; do sleep 0.01; done; `+fmt.Sprintf(writer, processtest.FirstLine, processtest.FirstLine+lines-1), dir)}})
	run := p.begin(t, p.order("job", nil))
	ends, err := p.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	p.AwaitText(t, run, "ready")
	if err := os.Remove(filepath.Join(p.Dir, run, "output")); err != nil {
		t.Fatal(err)
	}
	p.killSupervisor(t)
	processtest.Eventually(t, "there is another supervisor", func() bool { _, err := p.List(); return err == nil })
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	e := <-ends
	processtest.CheckInterrupted(t, e)
	if e.Output != (runner.Output{Bytes: lines * processtest.LineBytes, Dropped: lines * processtest.LineBytes}) {
		t.Errorf("output %+v", e.Output)
	}
	if code, err := os.ReadFile(filepath.Join(dir, "code")); err != nil || string(code) != "0\n" {
		t.Errorf("the writer ended with %q, %v", code, err)
	}
	if _, err := output.Open(p.Dir, run); err == nil || !strings.Contains(err.Error(), output.ErrNotKept.Error()) {
		t.Errorf("its output: %v", err)
	}
	log, err := os.ReadFile(filepath.Join(p.options.State, "supervisor.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "level=ERROR"); n != 1 {
		t.Errorf("%d errors are logged:\n%s", n, log)
	}
}

// TestOutput_FormerVersion checks that a command that writes into the output file itself, as those of an earlier
// version do, continues to write.
func TestOutput_FormerVersion(t *testing.T) {
	const lines = 100_000
	dir := t.TempDir()
	p := newPost(t, map[string]hook.Spec{"job": {Command: processtest.Script(t,
		`exec >> ../output 2>&1; rm ../fifo; `+fmt.Sprintf(writer, processtest.FirstLine, processtest.FirstLine+lines-1), dir)}})
	run := p.begin(t, p.order("job", nil))
	ends, err := p.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	p.killSupervisor(t)
	open(t, dir)
	e := <-ends
	processtest.CheckInterrupted(t, e)
	if e.Output != (runner.Output{Bytes: lines * processtest.LineBytes}) {
		t.Errorf("output %+v", e.Output)
	}
	p.wrote(t, run, dir, lines*processtest.LineBytes)
}
