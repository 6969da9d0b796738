package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/internal/testenv"
	"sallyport/runner"
)

// powerJob is the command of the hooks of TestPowerCut: job.sh DIR. Its witness file is on a disk that keeps its power.
const powerJob = `#!/bin/sh
echo "begin $SALLYPORT_RUN $$" >>"$1/witness"
until [ -e "$1/go" ]; do sleep 0.02; done
exit 7
`

const powerHooks = `
hooks:
  direct:
    callers: [load]
    command: [DIR/job.sh, DIR]
  queue:
    callers: [load]
    command: [DIR/job.sh, DIR]
    busy: {queue: 4}
`

// powerCuts are the times between the begin of a command and the loss of power. POWER_CUTS overrides them.
const powerCuts = "50ms 300ms 1s"

// TestPowerCut copies the disk of the state folder while a command runs, ends all processes, and serves the copy as
// after a reboot: it lacks what was not synced. No command may run twice, and a recorded end must still be recorded.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	const inside = "SALLYPORT_TEST_POWER"
	if kind := os.Getenv(inside); kind != "" {
		cutPower(t, kind)
		return
	}
	if os.Geteuid() != 0 {
		testenv.Skip(t, "a loss of power: this user may not mount a disk")
	}
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			testenv.Need(t, "mkfs."+kind)
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPowerCut$", "-test.v", "-test.count=1")
			cmd.Env = append(os.Environ(), inside+"="+kind, "POWER_CUTS="+cmp.Or(os.Getenv("POWER_CUTS"), powerCuts))
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
			out, err := cmd.CombinedOutput()
			switch {
			case cmd.Process == nil:
				testenv.Skip(t, "a loss of power: this user may not create a namespace: "+err.Error())
			case bytes.Contains(out, []byte(noDisk)):
				testenv.Skip(t, "a loss of power on "+kind+": it cannot be mounted here: "+string(out))
			case err != nil || !bytes.Contains(out, []byte("--- PASS: TestPowerCut ")):
				t.Fatalf("%v\n%s", err, out)
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "cut after") {
					t.Log(strings.TrimSpace(line))
				}
			}
		})
	}
}

// machine is an installation whose state folder is on a disk image, and which can lose its power.
type machine struct {
	*installation
	image string
	boots int
	sent  int
}

func cutPower(t *testing.T, kind string) {
	t.Helper()
	m := &machine{installation: install(t, "sallyport", powerHooks)}
	m.image = filepath.Join(m.dir, "disk")
	m.write("job.sh", powerJob, 0o755)
	m.write("witness", "", 0o600)
	mustSucceed(t, os.Mkdir(filepath.Join(m.dir, "state"), 0o700))
	mustSucceed(t, syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	t.Cleanup(func() { _ = syscall.Unmount(m.dir+"/state", syscall.MNT_DETACH) })
	mustSucceed(t, os.WriteFile(m.image, nil, 0o600))
	mustSucceed(t, os.Truncate(m.image, 320<<20)) // the minimum size of xfs
	m.runCommand("mkfs."+kind, "-q", m.image)
	for _, hook := range []string{"direct", "queue"} {
		m.boot()
		m.cutWhileUp(hook, strings.Fields(os.Getenv("POWER_CUTS")))
	}
	m.boot()
	m.cutAfterEnd()
}

func (m *machine) runCommand(name string, args ...string) {
	m.t.Helper()
	if out, err := exec.CommandContext(context.Background(), name, args...).CombinedOutput(); err != nil {
		m.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// boot mounts the disk, changes the boot id, and starts the server.
func (m *machine) boot() {
	m.t.Helper()
	if out, err := exec.CommandContext(context.Background(), "mount", "-o", "loop", m.image, m.dir+"/state").CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", noDisk, err, out)
	}
	mustSucceed(m.t, os.Chmod(m.dir+"/state", 0o700))
	m.boots++
	m.write("boot_id", fmt.Sprintf("00000000-0000-0000-0000-%012d\n", m.boots), 0o600)
	if m.boots == 1 {
		mustSucceed(m.t, syscall.Mount(m.dir+"/boot_id", "/proc/sys/kernel/random/boot_id", "", syscall.MS_BIND, ""))
	}
	m.start(true)
}

// powerOff ends all processes, as a loss of power does, and unmounts the disk.
func (m *machine) powerOff() {
	m.t.Helper()
	m.killServer()
	if pid := m.supervisor(); pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	m.waitUntil("the commands to be gone", func() bool {
		return m.killCommands("") == 0 && m.supervisor() == 0
	})
	m.waitUntil("the disk to be free", func() bool { return syscall.Unmount(m.dir+"/state", 0) == nil })
}

// killCommands kills the commands of a run, or of all runs, and returns how many there were.
func (m *machine) killCommands(id string) (n int) {
	m.t.Helper()
	for line := range strings.Lines(string(m.read("witness"))) {
		_, pid, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "begin "), " ")
		if group, err := strconv.Atoi(pid); err == nil && strings.Contains(line, id) && syscall.Kill(-group, syscall.SIGKILL) == nil {
			n++
		}
	}
	return n
}

// copyDisk copies what was written to the disk so far.
func (m *machine) copyDisk(to string) {
	m.t.Helper()
	m.runCommand("cp", "--sparse=always", m.image, to)
}

// sendDelivery sends a new delivery.
func (m *machine) sendDelivery(hook string) (id string) {
	m.t.Helper()
	m.sent++
	return m.deliver(hook, fmt.Sprintf(`{"n": %d}`, m.sent)).run().ID
}

// beginRun sends a delivery to a hook, and returns the run that is to have begun when the power fails.
func (m *machine) beginRun(hook string) (id string) {
	m.t.Helper()
	id = m.sendDelivery(hook)
	if hook == "queue" { // the run before it ends, and this one starts
		first := id
		id = m.sendDelivery(hook)
		m.waitUntil("the first to begin", func() bool { return m.countBegun(first) == 1 })
		m.killCommands(first)
	}
	m.waitUntil("the run to begin", func() bool { return m.countBegun(id) == 1 })
	return id
}

// cutWhileUp cuts the power several times after the command of a run began, and starts the machine again each time.
func (m *machine) cutWhileUp(hook string, cuts []string) {
	m.t.Helper()
	id, at := m.beginRun(hook), time.Now()
	var copies []string
	for _, cut := range cuts {
		after, err := time.ParseDuration(cut)
		mustSucceed(m.t, err)
		<-time.After(time.Until(at.Add(after)))
		copies = append(copies, fmt.Sprintf("%s/copy-%s-%s", m.dir, hook, cut))
		m.copyDisk(copies[len(copies)-1])
	}
	m.powerOff()
	for i, name := range copies {
		mustSucceed(m.t, os.Rename(name, m.image))
		m.boot()
		run := m.awaitEnd(id)
		m.t.Logf("%s: cut after %s: %s, began %d times", hook, cuts[i], run.State, m.countBegun(id))
		if run.State != runner.Interrupted || m.countBegun(id) != 1 {
			m.t.Errorf("%s: power cut after %s: run %s is %s, and began %d times", hook, cuts[i], id, run.State, m.countBegun(id))
		}
		m.powerOff()
	}
}

func (m *machine) awaitEnd(id string) (run runner.Run) {
	m.t.Helper()
	m.waitUntil("the end of run "+id, func() bool {
		run = m.sendRequest(m.t.Context(), http.MethodGet, "/runs/"+id, "").run()
		return run.State.Ended() || m.countBegun(id) > 1
	})
	return run
}

// cutAfterEnd cuts the power when the supervisor has recorded an end that no server has read.
func (m *machine) cutAfterEnd() {
	m.t.Helper()
	id := m.beginRun("direct")
	m.killServer()
	m.write("go", "", 0o600)
	m.waitUntil("the end to be recorded", func() bool { // before the server records the end of the run
		_, err := os.Lstat(m.dir + "/state/runs/active/" + id)
		return os.IsNotExist(err)
	})
	m.copyDisk(m.dir + "/copy")
	m.powerOff()
	mustSucceed(m.t, os.Rename(m.dir+"/copy", m.image))
	m.boot()
	run := m.awaitEnd(id)
	m.t.Logf("cut after the end: %s", run.State)
	if run.State != runner.Failed || run.ExitCode == nil || *run.ExitCode != 7 || m.countBegun(id) != 1 {
		m.t.Errorf("power cut after the end: run %+v, began %d times", run, m.countBegun(id))
	}
	m.powerOff()
}
