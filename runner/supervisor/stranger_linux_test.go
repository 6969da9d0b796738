package supervisor_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/process/processtest"
)

// said reports whether the supervisor's log has a text.
func (p *post) said(t *testing.T, text string) bool {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(p.options.State, "supervisor.log"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(log, []byte(text))
}

// impostor returns a post with a command that waits for a file and then connects to the supervisor, as a server does.
func impostor(t *testing.T) (p *post, let func()) {
	t.Helper()
	p = newPost(t, job([]string{"/bin/true"}))
	gate := filepath.Join(t.TempDir(), "go")
	script := `while [ ! -e "$1" ]; do sleep 0.01; done; exec "$2" serve "$3" "$4" </dev/null`
	p.hooks = p.write(t, job(processtest.Script(t, script, gate, os.Args[0], p.options.State, p.options.Config)))
	if _, err := p.Reload(""); err != nil {
		t.Fatal(err)
	}
	return p, func() {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStranger_Command checks that a command cannot connect to the supervisor as a server.
func TestStranger_Command(t *testing.T) {
	t.Parallel()
	p, let := impostor(t)
	run := p.begin(t, p.order("job", nil))
	let()
	processtest.Eventually(t, "the supervisor refuses its own command", func() bool { return p.said(t, "was started by a command") })
	if err := p.Stop(run, runner.Cancelled, 0); err != nil { // a displaced server would get an error
		t.Error(err)
	}
	p.Subject.AwaitEnd(t, run)
}

// TestStranger_EarlierSupervisor checks that a command of an earlier supervisor is refused. It does not
// descend from this supervisor, but its cgroup shows that it is a command.
func TestStranger_EarlierSupervisor(t *testing.T) {
	t.Parallel()
	p, let := impostor(t)
	run := p.begin(t, p.order("job", nil))
	processtest.Eventually(t, "the status knows the process", func() bool { return p.ReadStatus(t, run).PID != 0 })
	if p.ReadStatus(t, run).Cgroup == "" {
		testenv.Skip(t, "that a command of an earlier supervisor is refused, because runs get no cgroup here")
	}
	before := p.PID()
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	processtest.Eventually(t, "another supervisor is there", func() bool { _, err := p.List(); return err == nil && p.PID() != before })
	let()
	processtest.Eventually(t, "the supervisor refuses it", func() bool { return p.said(t, "is in the cgroup of run "+run) })
	if err := p.Stop(run, runner.Cancelled, 0); err != nil {
		t.Error(err)
	}
	p.Subject.AwaitEnd(t, run)
}

// TestSilence_Continued checks that a server continues a supervisor that was stopped.
func TestSilence_Continued(t *testing.T) {
	t.Parallel()
	p := newPost(t, job([]string{"/bin/true"}))
	log := new(testenv.Log)
	p.options.Log = slog.New(slog.NewTextHandler(log, nil))
	p.options.WatchEach(10*time.Millisecond, 50*time.Millisecond)
	p.connect(t)
	if err := syscall.Kill(p.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	processtest.Eventually(t, "it is continued", func() bool { return p.said(t, "the supervisor was continued") })
	processtest.Eventually(t, "the server says so", func() bool { return log.Count("sent it SIGCONT") > 0 && log.Count("the supervisor answers again") > 0 })
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 0)
}

// TestSilence_ContinuedByNext checks that a server continues a stopped supervisor.
// Otherwise the server could not start.
func TestSilence_ContinuedByNext(t *testing.T) {
	t.Parallel()
	p := newPost(t, job([]string{"/bin/true"}))
	p.signal(t, syscall.SIGSTOP)
	p.connect(t)
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 0)
}
