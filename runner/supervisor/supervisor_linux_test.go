package supervisor_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
)

// TestFlight_HeldByLock checks that a flight is busy as long as any process holds the lock of its run.
func TestFlight_HeldByLock(t *testing.T) {
	// The process closes the descriptor by which a search would find it, but holds the lock as another descriptor.
	escape := `exec 9<&3 3<&-; exec env -i /usr/bin/setsid /bin/sh -c 'echo $$; exec /bin/sleep 600'`
	command := processtest.Script(t, `case $SALLYPORT_CALLER in tester) (`+escape+` &) ;; esac; sleep 0.3`)
	p := newPost(t, job(command), "no-cgroups")
	run := p.begin(t, p.order("job", nil))
	var pid int
	processtest.Eventually(t, "the process has escaped", func() bool {
		pid, _ = strconv.Atoi(strings.TrimSpace(p.ReadOutput(t, run)))
		return pid > 0
	})
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	p.killSupervisor(t) // otherwise the supervisor finds it as its subreaper
	processtest.Eventually(t, "the flight is refused", func() bool { return errors.Is(p.Start(p.order("job", nil)), runner.ErrFlight) })
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	processtest.CheckInterrupted(t, p.Subject.AwaitEnd(t, run))
	p.begin(t, p.order("job", nil))
}

// TestOrphans_StopAndTimeout checks that orphans keep the reason of their end, although their exit codes
// are lost. If a cancelled run ended as Interrupted, it would be run again.
func TestOrphans_StopAndTimeout(t *testing.T) {
	for _, seam := range []string{"", "no-cgroups"} {
		for want, timeout := range map[runner.State]time.Duration{runner.Cancelled: processtest.Patience, runner.TimedOut: 1500 * time.Millisecond} {
			t.Run(string(want)+" "+seam, func(t *testing.T) {
				script := processtest.Script(t, processtest.Family+"wait; while :; do sleep 1; done", "")
				p := newPost(t, map[string]hook.Spec{"job": {Command: script, Timeout: timeout, Grace: 100 * time.Millisecond}}, seam)
				run := p.begin(t, p.order("job", nil))
				all := processtest.AwaitPIDs(t, &p.Subject, run, 5)
				p.killSupervisor(t)
				if want == runner.Cancelled {
					if err := p.Stop(run, runner.Cancelled, -1); err != nil {
						t.Fatal(err)
					}
				}
				if e := p.Subject.AwaitEnd(t, run); e.Reason != want || e.ExitCode != nil || e.Signal != "" {
					t.Errorf("got %+v, want %s and no exit code", e, want)
				}
				processtest.CheckGone(t, all)
			})
		}
	}
}

// TestStop_WholeTree checks that a stop through the supervisor ends all processes of a run.
func TestStop_WholeTree(t *testing.T) {
	for _, seam := range []string{"", "no-cgroups"} {
		t.Run("seam="+seam, func(t *testing.T) {
			// The last process dropped all that it inherited; a subreaper still finds it.
			script := processtest.Script(t, processtest.Family+`(env -i /usr/bin/setsid /bin/sh -c 'trap "" TERM; echo $$; while :; do /bin/sleep 1; done' 3>&- &)
sleep 0.5; while :; do sleep 1; done`, "")
			p := newPost(t, job(script), seam)
			run := p.begin(t, p.order("job", nil))
			all := processtest.AwaitPIDs(t, &p.Subject, run, 6)
			if err := p.Stop(run, runner.Cancelled, 100*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if e := p.Subject.AwaitEnd(t, run); e.Reason != runner.Cancelled || e.Signal != "SIGKILL" && e.Signal != "SIGTERM" {
				t.Errorf("got %+v", e)
			}
			processtest.CheckGone(t, all)
			processtest.Eventually(t, "no zombie is left", func() bool {
				children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.PID(), p.PID()))
				return len(children) == 0
			})
		})
	}
}

// TestReplace_KeepsChildren checks that commands stay the children of a supervisor that replaces itself.
func TestReplace_KeepsChildren(t *testing.T) {
	command, release := processtest.GatedScript(t, `echo more; exit 5`)
	stubborn := processtest.Script(t, `trap "" TERM; echo ready; while :; do sleep 1; done`)
	counted := processtest.Script(t, `echo ready >&2; seq 1000000 1199999; exec sleep 600`)
	p := newPost(t, map[string]hook.Spec{
		"job": {Command: command}, "late": {Command: stubborn, Timeout: 3 * time.Second, Grace: 50 * time.Millisecond},
		"slow": {Command: stubborn, Grace: 3 * time.Second}, "quick": {Command: processtest.Script(t, `echo $$; exit 9`)},
		"talks": {Command: counted, Output: hook.OutputSpec{Head: 100_000, Tail: 100_000}},
	})
	runs := map[string]string{}
	ends := map[string]<-chan runner.End{}
	for _, hook := range []string{"job", "late", "slow", "talks"} {
		runs[hook] = p.begin(t, p.order(hook, nil))
		if hook != "talks" { // more than is kept
			p.AwaitText(t, runs[hook], "ready")
		}
	}
	if err := p.Stop(runs["slow"], runner.Cancelled, -1); err != nil {
		t.Fatal(err)
	}
	before := p.PID()
	other := filepath.Join(t.TempDir(), "other")
	if err := os.Link(p.options.Exe, other); err != nil {
		copyFile(t, p.options.Exe, other)
	}
	p.options.Exe, p.options.Version = other, other
	p.connect(t)
	if p.PID() != before {
		t.Fatalf("the process is another one: %d, not %d", p.PID(), before)
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", before)); err != nil || exe != other {
		t.Fatalf("the program is still %s, %v", exe, err)
	}
	for hook, run := range runs {
		var err error
		if ends[hook], err = p.Follow(run); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Start(p.order("job", nil)); !errors.Is(err, runner.ErrFlight) {
		t.Errorf("a second run of the flight: %v", err)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("quick", nil))), 9)
	release()
	processtest.CheckExit(t, <-ends["job"], 5)
	if got := p.ReadOutput(t, runs["job"]); !strings.HasSuffix(got, "\nmore\n") {
		t.Errorf("output %q", got)
	}
	if e := <-ends["late"]; e.Reason != runner.TimedOut || e.Signal != "SIGKILL" {
		t.Errorf("the timeout was forgotten: %+v", e)
	}
	if e := <-ends["slow"]; e.Reason != runner.Cancelled || e.Signal != "SIGKILL" {
		t.Errorf("the kill was forgotten: %+v", e)
	}
}

func TestOutput_ReplacedSupervisor(t *testing.T) {
	const lines = 400_000
	p := newPost(t, map[string]hook.Spec{
		"job": {Command: processtest.Script(t, fmt.Sprintf(`seq %d %d; exit 3`, processtest.FirstLine, processtest.FirstLine+lines-1)), Output: hook.OutputSpec{Head: 100_000, Tail: 200_000}},
	})
	run := p.begin(t, p.order("job", nil))
	before := p.PID()
	dir := t.TempDir()
	for i := range 4 {
		other := filepath.Join(dir, strconv.Itoa(i))
		if err := os.Link(os.Args[0], other); err != nil {
			copyFile(t, os.Args[0], other)
		}
		p.options.Exe, p.options.Version = other, other
		p.connect(t)
	}
	if p.PID() != before {
		t.Errorf("the process is another one: %d, not %d", p.PID(), before)
	}
	kept := p.ReadAlong(t, run, 10_000)
	e := p.Subject.AwaitEnd(t, run)
	processtest.CheckExit(t, e, 3)
	if e.Output.Bytes != lines*processtest.LineBytes || kept == 0 {
		t.Errorf("%d bytes counted, %d read, want %d", e.Output.Bytes, kept, lines*processtest.LineBytes)
	}
	if kept = p.ReadAlong(t, run, 10_000); kept != 300_000 {
		t.Errorf("%d bytes kept", kept)
	}
}

// TestReplace_ProgramOfOthers checks that a supervisor does not replace itself with a program of another user.
func TestReplace_ProgramOfOthers(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	other := filepath.Join(t.TempDir(), "other")
	copyFile(t, p.options.Exe, other)
	if err := os.Chmod(other, 0o722); err != nil {
		t.Fatal(err)
	}
	p.options.Exe, p.options.Version = other, other
	before := p.PID()
	p.connect(t)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", before)); err != nil || exe == other {
		t.Errorf("the supervisor is %s, %v", exe, err)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 0)
}

// TestReplace_Retried checks that a supervisor that could not replace itself is asked again.
func TestReplace_Retried(t *testing.T) {
	for why, again := range map[string]func(*post){"after a while": nil, "at the next connection": func(p *post) { p.Break() }} {
		t.Run(why, func(t *testing.T) {
			command, release := processtest.GatedScript(t, `exit 5`)
			p := newPost(t, job(command))
			other := filepath.Join(t.TempDir(), "other")
			copyFile(t, p.options.Exe, other)
			if err := os.Chmod(other, 0o722); err != nil { // another user could have written the program
				t.Fatal(err)
			}
			var log bytes.Buffer
			p.options.Exe, p.options.Version, p.options.Log = other, other, slog.New(slog.NewTextHandler(&log, nil))
			if again == nil {
				p.options.UpdateAgainAfter(20 * time.Millisecond)
			}
			p.connect(t)
			before, run := p.PID(), p.begin(t, p.order("job", nil))
			ends, err := p.Follow(run)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(other, 0o700); err != nil {
				t.Fatal(err)
			}
			if again != nil {
				again(p)
			}
			processtest.Eventually(t, "it has replaced itself", func() bool {
				_, err := p.List()
				exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", before))
				return err == nil && exe == other && p.PID() == before
			})
			release()
			processtest.CheckExit(t, <-ends, 5)
			if err := p.Close(); err != nil { // nothing is logged from now on
				t.Fatal(err)
			}
			if n := strings.Count(log.String(), "supervisor not upgraded"); n != 1 {
				t.Errorf("logged %d times:\n%s", n, &log)
			}
		})
	}
}

// TestReplace_OtherVersion checks that a supervisor is not asked again when the program
// file has another version than the server by now. Otherwise it would replace itself again and again.
func TestReplace_OtherVersion(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	p.options.Version = "one that no file has"
	p.options.UpdateAgainAfter(time.Millisecond)
	p.connect(t)
	p.Break()
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 0)
	log, err := os.ReadFile(filepath.Join(p.options.State, "supervisor.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "supervisor replaces itself"); n != 1 {
		t.Errorf("it replaced itself %d times", n)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	in, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, in, 0o700); err != nil {
		t.Fatal(err)
	}
}
