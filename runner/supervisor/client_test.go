package supervisor_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
	"sallyport/runner/supervisor"
)

// signal sends a signal to the supervisor. After SIGSTOP it waits until the supervisor has stopped.
func (p *post) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(p.PID(), sig); err != nil {
		t.Fatal(err)
	}
	if sig == syscall.SIGSTOP {
		processtest.Eventually(t, "all threads stand still", func() bool { return testenv.HasStopped(p.PID()) })
	}
}

// startInBackground sends an order and returns the channel of its answer.
func (p *post) startInBackground(c *supervisor.Client, o runner.Order) <-chan error {
	answer := make(chan error, 1)
	go func() { answer <- c.Start(o) }()
	return answer
}

// answered waits for an answer.
func answered(t testing.TB, answer <-chan error) error {
	t.Helper()
	select {
	case err := <-answer:
		return err
	case <-time.After(time.Minute):
		t.Fatal("it is not answered")
		return nil
	}
}

func unanswered(t testing.TB, answer <-chan error) {
	t.Helper()
	select {
	case err := <-answer:
		t.Fatalf("it is answered, but its outcome is unknown: %v", err)
	default:
	}
}

// TestSilence_RequestsKept checks that requests to a stopped supervisor do not block, and are carried out when it
// continues.
func TestSilence_RequestsKept(t *testing.T) {
	t.Parallel()
	w := witness(filepath.Join(t.TempDir(), "witness"))
	specs := w.command(t)
	specs["long"] = hook.Spec{Command: []string{"/bin/sleep", "600"}}
	p := newPost(t, specs)
	run := p.begin(t, p.order("long", nil))
	ends, err := p.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGSTOP)
	defer p.signal(t, syscall.SIGCONT)
	o := p.order("job", hook.Values{"key": "1"})
	answer := p.startInBackground(p.Client, o)
	if err := p.Stop(run, runner.Cancelled, -1); err == nil {
		t.Error("a supervisor answered")
	}
	if _, err := p.List(); err == nil {
		t.Error("a supervisor answered")
	}
	unanswered(t, answer)
	p.signal(t, syscall.SIGCONT)
	if err := answered(t, answer); err != nil {
		t.Error(err)
	}
	if e := <-ends; e.Reason != runner.Cancelled {
		t.Errorf("got %+v", e)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, o.Run), 0)
	if began, _ := w.read(t); began[o.Run] != 1 {
		t.Errorf("it began %d times", began[o.Run])
	}
}

// TestOrder_Unanswered checks that the next server finds out about an order that got no answer.
func TestOrder_Unanswered(t *testing.T) {
	w := witness(filepath.Join(t.TempDir(), "witness"))
	p := newPost(t, w.command(t))
	p.signal(t, syscall.SIGSTOP)
	defer p.signal(t, syscall.SIGCONT)
	o := p.order("job", hook.Values{"key": "1"})
	old := p.Client
	answer := p.startInBackground(old, o)
	processtest.Eventually(t, "it is on its way", func() bool { return old.Pending() > 0 })
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if err := answered(t, answer); !errors.Is(err, runner.ErrLeft) {
		t.Errorf("got %v", err)
	}
	p.signal(t, syscall.SIGCONT)
	p.Client = nil
	p.connect(t)
	known, err := p.Known(o.Run)
	if err != nil {
		t.Fatal(err)
	}
	if !known { // the supervisor did not read the whole order, and never will
		p.begin(t, o)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, o.Run), 0)
	if began, _ := w.read(t); began[o.Run] != 1 {
		t.Errorf("it began %d times", began[o.Run])
	}
}

// TestOrder_AskedUntilKnown checks that an order with an unknown outcome is asked for until a supervisor answers.
func TestOrder_AskedUntilKnown(t *testing.T) {
	w := witness(filepath.Join(t.TempDir(), "witness"))
	p := newPost(t, w.command(t))
	exe := filepath.Join(t.TempDir(), "program")
	if err := os.Symlink(p.options.Exe, exe); err != nil {
		t.Fatal(err)
	}
	p.options.Exe = exe
	p.connect(t)
	p.signal(t, syscall.SIGSTOP)
	o := p.order("job", hook.Values{"key": "1"})
	answer := p.startInBackground(p.Client, o)
	processtest.Eventually(t, "it is on its way", func() bool { return p.Pending() > 0 })
	if err := os.Remove(exe); err != nil { // no supervisor can replace this one
		t.Fatal(err)
	}
	p.killSupervisor(t)
	// Until then, a request may have arrived.
	processtest.Eventually(t, "it is known that the connection broke", p.Broken)
	// A request that was never sent fails at once, and has not been carried out.
	other := p.order("job", hook.Values{"key": "2"})
	if err := p.Start(other); !errors.Is(err, runner.ErrNotNow) {
		t.Errorf("got %v", err)
	}
	unanswered(t, answer)
	if err := os.Symlink(os.Args[0], exe); err != nil {
		t.Fatal(err)
	}
	if err := answered(t, answer); err != nil {
		t.Error(err)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, o.Run), 0)
	if began, _ := w.read(t); began[o.Run] != 1 || began[other.Run] != 0 {
		t.Errorf("began: %v", began)
	}
}

// TestSuperseded_OutcomeUnknown checks that a superseded server does not report that a command was not started.
func TestSuperseded_OutcomeUnknown(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	old := p.Client
	p.Client = nil
	p.connect(t)
	if err := old.Start(p.order("job", nil)); !errors.Is(err, runner.ErrLeft) {
		t.Errorf("got %v", err)
	}
	if _, err := old.Follow(processtest.NewOrder().Run); !errors.Is(err, runner.ErrLeft) {
		t.Errorf("got %v", err)
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
}

// TestOrder_EndingSupervisor checks that a supervisor that is about to end accepts no orders.
func TestOrder_EndingSupervisor(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	p := newPost(t, map[string]hook.Spec{
		"job":  {Command: []string{"/bin/true"}},
		"slow": {Command: processtest.Script(t, `trap "" TERM; echo ready $$; until [ -e "$1" ]; do sleep 0.01; done`, gate)},
	})
	run := p.begin(t, p.order("slow", nil))
	p.AwaitText(t, run, "ready")
	p.signal(t, syscall.SIGTERM)
	var refused runner.Order
	processtest.Eventually(t, "it takes no orders", func() bool {
		refused = p.order("job", nil)
		return errors.Is(p.Start(refused), runner.ErrNotNow)
	})
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	processtest.Eventually(t, "the next one does", func() bool { return p.Start(refused) == nil })
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, refused.Run), 0)
}

// TestDisplaced_WithoutRequest checks that a displaced server learns that without a request.
func TestDisplaced_WithoutRequest(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	old := p.Client
	p.Client = nil
	p.connect(t)
	select {
	case <-old.Displaced():
	case <-time.After(processtest.Patience):
		t.Error("it does not learn it")
	}
	select {
	case <-p.Displaced():
		t.Error("it was not displaced")
	default:
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
}

// TestCalls_GiveUp checks that calls that give up on a silent supervisor leave nothing behind, however many there
// are.
func TestCalls_GiveUp(t *testing.T) {
	t.Parallel()
	p := newPost(t, job([]string{"/bin/true"}))
	p.signal(t, syscall.SIGSTOP)
	defer p.signal(t, syscall.SIGCONT)
	const calls = 20
	var all sync.WaitGroup
	for range calls {
		all.Go(func() {
			if _, err := p.List(); err == nil {
				t.Error("a supervisor answered")
			}
		})
	}
	all.Wait()
	if n := p.Pending(); n > 1 { // one request may be that of awaitAnswer
		t.Errorf("%d calls are left", n)
	}
	if p.PID() == 0 {
		t.Error("the process is not known")
	}
}

// TestSupervisor_StaysReachable removes the files by which servers reach the supervisor, as a clean-up of the disk
// may do.
func TestSupervisor_StaysReachable(t *testing.T) {
	command, release := processtest.GatedScript(t, "exit 3")
	p := newPost(t, job(command))
	run := p.begin(t, p.order("job", nil))
	p.AwaitText(t, run, "ready")
	pid := p.PID()
	for _, name := range []string{"supervisor.sock", "supervisor.secret", "supervisor.lock"} {
		if err := os.Remove(filepath.Join(p.options.State, name)); err != nil {
			t.Fatal(err)
		}
	}
	processtest.Eventually(t, "they are made again", func() bool {
		for _, name := range []string{"supervisor.sock", "supervisor.secret", "supervisor.lock"} {
			if _, err := os.Lstat(filepath.Join(p.options.State, name)); err != nil {
				return false
			}
		}
		return true
	})
	p.connect(t)
	if p.PID() != pid {
		t.Error("it is another supervisor")
	}
	release()
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 3)
}

// TestCopiedFolder_LeavesCommands checks that a supervisor of a copy of the state folder does not touch the commands of the
// original.
func TestCopiedFolder_LeavesCommands(t *testing.T) {
	for _, seam := range []string{"", "no-cgroups"} {
		t.Run("seam="+seam, func(t *testing.T) {
			command, release := processtest.GatedScript(t, "exit 3")
			p := newPost(t, job(command), seam)
			run := p.begin(t, p.order("job", nil))
			p.AwaitText(t, run, "ready")
			processtest.Eventually(t, "its process is recorded", func() bool { return p.ReadStatus(t, run).Birth != "" })
			o := p.options
			o.State = filepath.Join(t.TempDir(), "copy")
			if out, err := exec.CommandContext(t.Context(), "cp", "-a", p.options.State, o.State).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			c, err := supervisor.Connect(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			ends, err := c.Follow(run)
			if err != nil {
				t.Fatal(err)
			}
			processtest.CheckInterrupted(t, <-ends)
			processtest.Eventually(t, "the copy's supervisor ends", func() bool { return c.Quit() == nil })
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			release()
			processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 3)
		})
	}
}
