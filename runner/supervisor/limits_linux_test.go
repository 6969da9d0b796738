package supervisor_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/internal/testenv"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
	"sallyport/runner/process/proctree"
)

// TestUmask_CommandOnly checks that other users may read what a command makes, but nothing that the supervisor
// makes at the same time.
func TestUmask_CommandOnly(t *testing.T) {
	dir := t.TempDir()
	specs := map[string]hook.Spec{}
	for name, mask := range map[string]hook.Umask{"default": hook.DefaultUmask, "group": 0o027, "none": 0} {
		specs[name] = hook.Spec{Command: processtest.Script(t, `umask; : > "$1"; mkdir "$1.d"`, filepath.Join(dir, name)), Umask: &mask}
	}
	plain := specs["default"]
	plain.Umask = nil
	specs["default"] = plain
	p := newPost(t, specs)
	want := map[string][2]fs.FileMode{"default": {0o644, 0o755}, "group": {0o640, 0o750}, "none": {0o666, 0o777}}
	var runs []string
	for name := range specs {
		runs = append(runs, p.begin(t, p.order(name, nil)))
	}
	for _, run := range runs {
		processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 0)
	}
	for name, modes := range want {
		for i, made := range []string{filepath.Join(dir, name), filepath.Join(dir, name) + ".d"} {
			info, err := os.Stat(made)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != modes[i] {
				t.Errorf("%s is %04o, want %04o", made, info.Mode().Perm(), modes[i])
			}
		}
	}
	err := filepath.WalkDir(p.options.State, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %04o", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLimits_BelowSupervisor checks that a command and its processes have a lower process limit than the
// supervisor, and are killed before it when memory is short.
func TestLimits_BelowSupervisor(t *testing.T) {
	p := newPost(t, job(processtest.Script(t, `grep "Max processes" /proc/self/limits; while read -r s < /proc/self/oom_score_adj; [ "$s" -lt 300 ]; do sleep 0.01; done; echo "killed first"`)))
	run := p.begin(t, p.order("job", nil))
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 0)
	out := p.ReadOutput(t, run)
	if want := fmt.Sprintf("Max processes %d ", proctree.ProcessLimit()); !strings.Contains(strings.Join(strings.Fields(out), " ")+" ", want) {
		t.Errorf("the command has not %q: %s", want, out)
	}
	if own := processtest.LimitOf(t, p.PID()); own != processtest.LimitOf(t, os.Getpid()) || own <= proctree.ProcessLimit() {
		t.Errorf("the supervisor has a limit of %d processes, and commands have %d", own, proctree.ProcessLimit())
	}
	if !strings.Contains(out, "killed first") {
		t.Error(out)
	}
}

// delegated moves this process into a cgroup as systemd makes it with Delegate=yes and DelegateSubgroup=, limits the
// processes of the service to the number, and returns the cgroup of the service.
func delegated(t *testing.T, processes int) string {
	t.Helper()
	const what = "a cgroup for all commands, because "
	if os.Geteuid() != 0 {
		testenv.Skip(t, what+"only root may make one")
	}
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			root = dir
		}
	}
	enabled, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	if err != nil || !slices.Contains(strings.Fields(string(enabled)), "pids") {
		testenv.Skip(t, what+"cgroup v2 counts no processes on this machine")
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, path, _ := strings.Cut(strings.TrimSpace(string(before)), "0::")
	service := filepath.Join(root, "sallyport-test-"+strconv.Itoa(os.Getpid()))
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(service, "server"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		write(filepath.Join(root, path, "cgroup.procs"), strconv.Itoa(os.Getpid()))
		for _, dir := range []string{"server", "sallyport-commands", "."} {
			if err := os.Remove(filepath.Join(service, dir)); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
	})
	if err := unix.Setxattr(service, "user.delegate", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(service, "pids.max"), strconv.Itoa(processes))
	write(filepath.Join(service, "server", "cgroup.procs"), strconv.Itoa(os.Getpid()))
	return service
}

// TestLimits_CommandsOfRoot checks that the limit applies to the commands of root if systemd delegates
// the cgroup of the service to the server.
func TestLimits_CommandsOfRoot(t *testing.T) {
	service := delegated(t, 600)
	p := newPost(t, job(processtest.Script(t, `i=0; while [ $i -lt 1000 ]; do sleep 600 & i=$((i+1)); done`)))
	run := p.begin(t, p.order("job", nil))
	if e := p.Subject.AwaitEnd(t, run); e.ExitCode == nil || *e.ExitCode == 0 || !strings.Contains(p.ReadOutput(t, run), "fork") {
		t.Errorf("1000 processes, of 600: %+v %s", e, p.ReadOutput(t, run))
	}
	most, err := os.ReadFile(filepath.Join(service, "sallyport-commands", "pids.max"))
	if err != nil || strings.TrimSpace(string(most)) != "344" {
		t.Errorf("commands may have %s processes together, and not 344: %v", most, err)
	}
	if want := filepath.Join(service, "sallyport-commands", "sallyport-"+run); p.ReadStatus(t, run).Cgroup != want {
		t.Errorf("the run is in %s, and not in %s", p.ReadStatus(t, run).Cgroup, want)
	}
}
