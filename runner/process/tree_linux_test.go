package process_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
)

// ways returns a Bench with the cgroups that this machine allows, and one without cgroups.
func ways(t *testing.T, spec hook.Spec) map[string]*processtest.Bench {
	t.Helper()
	with, without := processtest.NewBench(t, spec), processtest.NewBench(t, spec)
	without.WithoutCgroups()
	return map[string]*processtest.Bench{"cgroup=" + strconv.FormatBool(with.HasCgroups()): with, "search": without}
}

// TestStop_WholeTree checks that a stop ends all processes of a run, however they tried to escape.
func TestStop_WholeTree(t *testing.T) {
	for name, trap := range map[string]string{"obedient": "exit 1", "stubborn": ""} {
		t.Run(name, func(t *testing.T) {
			spec := hook.Spec{Command: processtest.Script(t, processtest.Family+"wait; while :; do sleep 1; done", trap)}
			for name, b := range ways(t, spec) {
				t.Run(name, func(t *testing.T) {
					run := b.Begin(t, processtest.NewOrder())
					all := processtest.AwaitPIDs(t, &b.Subject, run, 5)
					grace := processtest.Patience
					if trap == "" {
						grace = 100 * time.Millisecond
					}
					if err := b.Stop(run, runner.Cancelled, grace); err != nil {
						t.Fatal(err)
					}
					if e := b.AwaitEnd(t, run); e.Reason != runner.Cancelled {
						t.Errorf("got %+v", e)
					}
					processtest.CheckGone(t, all)
				})
			}
		})
	}
}

// TestLeftBehind_Ended checks that processes that outlive their command are ended and counted.
func TestLeftBehind_Ended(t *testing.T) {
	release := `while [ ! -e go ]; do sleep 0.01; done; exit 4`
	spec := hook.Spec{Command: processtest.Script(t, processtest.Family+release, ""), Grace: 100 * time.Millisecond}
	for name, b := range ways(t, spec) {
		t.Run(name, func(t *testing.T) {
			run := b.Begin(t, processtest.NewOrder())
			all := processtest.AwaitPIDs(t, &b.Subject, run, 5)
			if err := os.WriteFile(filepath.Join(b.Dir, run, "work", "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			e := b.AwaitEnd(t, run)
			processtest.CheckExit(t, e, 4)
			processtest.CheckGone(t, all)
			if e.LeftBehind < len(all) { // the shells of the family have children, too
				t.Errorf("%d processes are counted as left behind, and there were %d", e.LeftBehind, len(all))
			}
			if n := b.ReadStatus(t, run).LeftBehind; n != e.LeftBehind {
				t.Errorf("the status has %d processes left behind, and the end %d", n, e.LeftBehind)
			}
		})
	}
}

// TestLeftBehind_StoppedRun checks that the processes of a stopped run do not count as left behind.
func TestLeftBehind_StoppedRun(t *testing.T) {
	spec := hook.Spec{Command: processtest.Script(t, processtest.Family+"wait", ""), Grace: 100 * time.Millisecond}
	for name, b := range ways(t, spec) {
		t.Run(name, func(t *testing.T) {
			run := b.Begin(t, processtest.NewOrder())
			all := processtest.AwaitPIDs(t, &b.Subject, run, 5)
			if err := b.Stop(run, runner.Cancelled, -1); err != nil {
				t.Fatal(err)
			}
			if e := b.AwaitEnd(t, run); e.LeftBehind != 0 {
				t.Errorf("%d processes are counted as left behind by a run that was stopped", e.LeftBehind)
			}
			processtest.CheckGone(t, all)
		})
	}
}

// TestStop_StoppedProcesses checks that processes that are stopped by SIGSTOP are ended, too.
func TestStop_StoppedProcesses(t *testing.T) {
	spec := hook.Spec{Command: processtest.Script(t, `trap "exit 9" TERM; setsid sh -c 'echo $$; kill -STOP $$' & sleep 0.1; echo $$; kill -STOP $$`)}
	for name, b := range ways(t, spec) {
		t.Run(name, func(t *testing.T) {
			run := b.Begin(t, processtest.NewOrder())
			all := processtest.AwaitPIDs(t, &b.Subject, run, 2)
			if err := b.Stop(run, runner.Cancelled, processtest.Patience); err != nil {
				t.Fatal(err)
			}
			if e := b.AwaitEnd(t, run); e.ExitCode == nil || *e.ExitCode != 9 {
				t.Errorf("got %+v", e)
			}
			processtest.CheckGone(t, all)
		})
	}
}

// TestEnd_GrandchildHoldsOutput checks that a run ends although a grandchild keeps its output open.
func TestEnd_GrandchildHoldsOutput(t *testing.T) {
	spec := hook.Spec{Command: processtest.Script(t, `setsid sh -c 'trap "" TERM; echo $$; while :; do sleep 1; done' & sleep 0.2`), Grace: time.Millisecond}
	for name, b := range ways(t, spec) {
		t.Run(name, func(t *testing.T) { processtest.CheckExit(t, b.RunToEnd(t, processtest.NewOrder()), 0) })
	}
}

// TestCgroup_Removed checks that the cgroup of a run is removed when the run has ended.
func TestCgroup_Removed(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `cat /proc/self/cgroup`)})
	run := b.Begin(t, processtest.NewOrder())
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	name := "sallyport-" + run
	if got := strings.Contains(b.ReadOutput(t, run), name); got != b.HasCgroups() {
		t.Errorf("in its cgroup: %v, want %v:\n%s", got, b.HasCgroups(), b.ReadOutput(t, run))
	}
	cgroup := b.ReadStatus(t, run).Cgroup
	if (cgroup != "") != b.HasCgroups() {
		t.Errorf("the status has %q", cgroup)
	}
	if _, err := os.Stat(cgroup); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", cgroup, err)
	}
}

// TestDescriptors_Inherited checks that a command inherits stdin, stdout, stderr and the lock of its run, and nothing
// else.
func TestDescriptors_Inherited(t *testing.T) {
	// A descriptor that the server inherited and that is not marked close-on-exec.
	given, err := syscall.Dup(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(given) })
	b := processtest.NewBench(t, hook.Spec{Command: []string{"/bin/ls", "-l", "/proc/self/fd"}})
	run := b.Begin(t, processtest.NewOrder())
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	got := regexp.MustCompile(`(?m)\d+ -> .*$`).FindAllString(b.ReadOutput(t, run), -1)
	folder := filepath.Join(b.Dir, run)
	want := []string{"0 -> /dev/null", "1 -> " + folder + "/fifo", "2 -> " + folder + "/fifo", "3 -> " + folder + "/lock"}
	if len(got) != 5 || strings.Join(got[:4], "\n") != strings.Join(want, "\n") || !strings.HasPrefix(got[4], "4 -> /proc/") {
		t.Errorf("the command holds\n%s", strings.Join(got, "\n"))
	}
}

// TestLock_HeldByTree checks that only the processes of a run hold its lock.
func TestLock_HeldByTree(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `(setsid sh -c 'echo ready; sleep 600' &); sleep 600`)})
	run := b.Begin(t, processtest.NewOrder())
	b.AwaitText(t, run, "ready")
	if !b.IsLocked(t, run) {
		t.Error("the lock of a run in progress is free")
	}
	if err := b.Stop(run, runner.Cancelled, 0); err != nil {
		t.Fatal(err)
	}
	b.AwaitEnd(t, run)
	if b.IsLocked(t, run) {
		t.Error("the lock is held after the end")
	}
}

// TestThreads_NonePerRun checks that runs in progress do not need a thread each.
func TestThreads_NonePerRun(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: []string{"/bin/sleep", "600"}})
	threads := func() (n int) {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := threads()
	for range 100 {
		b.Begin(t, processtest.NewOrder())
	}
	if now := threads(); now-before > 50 {
		t.Errorf("%d threads for 100 runs", now-before)
	}
}
