package e2e_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot returns the time of the clock that the stress test uses. Commands can read it, too, and a step of the wall
// clock does not change it.
func sinceBoot() moment {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // it cannot fail
	return moment(t.Nano())
}

// plus returns a later moment.
func (m moment) plus(d time.Duration) moment { return m + moment(d) }

// buildWithClock builds the program with a wall clock that can be stepped while it runs, see testdata/clock. The whole
// program uses it, and its monotonic clock goes on, as when the clock of a machine is set.
func buildWithClock(t *testing.T, file, version string) {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	mustSucceed(t, err)
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(std, "time.go"))
	mustSucceed(t, err)
	const reading = "\tsec, nsec, mono := runtimeNow()\n"
	_, now, found := strings.Cut(string(text), "\nfunc Now() Time {\n")
	if !found || !strings.HasPrefix(now, reading) {
		t.Fatalf("time.Now of this Go does not begin with %q", reading)
	}
	stepped := bytes.Replace(text, []byte("\nfunc Now() Time {\n"+reading), []byte("\nfunc Now() Time {\n"+reading+"\tsec += secondsOff()\n"), 1)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "time.go"), stepped)
	step, err := filepath.Abs("internal/e2e/testdata/clock/step.go.txt")
	mustSucceed(t, err)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(std, "time.go"): filepath.Join(dir, "time.go"), filepath.Join(std, "step.go"): step,
	}})
	mustSucceed(t, err)
	write(t, filepath.Join(dir, "overlay.json"), overlay)
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-overlay", filepath.Join(dir, "overlay.json"),
		"-ldflags", "-X main.version="+version, "-o", file, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
}

// stepClock sets how far the wall clock of a program of buildWithClock is off.
func stepClock(t testing.TB, program string, off time.Duration) {
	t.Helper()
	// Written in place, because the program has mapped the file.
	f, err := os.OpenFile(program+".clock", os.O_CREATE|os.O_WRONLY, 0o600)
	mustSucceed(t, err)
	_, err = f.Write(binary.NativeEndian.AppendUint64(nil, uint64(int64(off/time.Second))))
	mustSucceed(t, err)
	mustSucceed(t, f.Close())
}

// power is what the test needs to cut the power: a disk, and a boot id that can be changed. Only this process and its
// children see them, in a mount namespace.
type power struct {
	t    *testing.T
	dir  string // mount point of the disk
	file string // image of the disk
}

const bootID = "/proc/sys/kernel/random/boot_id"

// newPower mounts a disk with a filesystem of this kind on dir.
func newPower(t *testing.T, kind, dir, boot string) *power {
	t.Helper()
	p := &power{t: t, dir: dir, file: filepath.Join(t.TempDir(), "disk")}
	mustSucceed(t, os.WriteFile(p.file, nil, 0o600))
	mustSucceed(t, os.Truncate(p.file, 320<<20)) // the minimum size of xfs
	p.command("mkfs."+kind, "-q", p.file)
	mustSucceed(t, os.Mkdir(dir, 0o700))
	p.mount()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	mustSucceed(t, unix.Mount(boot, bootID, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(bootID, unix.MNT_DETACH) })
	return p
}

func (p *power) command(name string, args ...string) {
	p.t.Helper()
	if out, err := exec.CommandContext(p.t.Context(), name, args...).CombinedOutput(); err != nil {
		p.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (p *power) mount() {
	p.t.Helper()
	p.command("mount", "-o", "loop", p.file, p.dir)
	mustSucceed(p.t, os.Chmod(p.dir, 0o700))
}

// cutPower makes the disk keep only what was synced until now.
func (p *power) cutPower() {
	p.t.Helper()
	const (
		shutDown   = 0x8004587d // EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
		noLogFlush = 2
	)
	d, err := os.Open(p.dir)
	mustSucceed(p.t, err)
	defer func() { _ = d.Close() }()
	mustSucceed(p.t, unix.IoctlSetPointerInt(int(d.Fd()), shutDown, noLogFlush))
}

// restore mounts the disk again, as the next start of the machine does. No process may use the disk during that time.
func (p *power) restore() error {
	if err := unix.Unmount(p.dir, 0); err != nil {
		return fmt.Errorf("unmounting the disk: %w", err)
	}
	p.mount()
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	return os.WriteFile(bootID, id, 0o600)
}

// powerKinds returns the available filesystems that can be shut down.
func powerKinds() (kinds []string) {
	for _, kind := range []string{"ext4", "xfs"} {
		known, _ := os.ReadFile("/proc/filesystems") // without the file, none is known
		if _, err := exec.LookPath("mkfs." + kind); err == nil && bytes.Contains(known, []byte("\t"+kind+"\n")) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// findMarked returns the processes with an entry in their environment.
func findMarked(entry string) (pids []int) {
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is valid
	for _, p := range processes {
		environ, _ := os.ReadFile(filepath.Join(p, "environ")) // the process may have ended
		if pid, err := strconv.Atoi(filepath.Base(p)); err == nil && bytes.Contains(environ, []byte(entry+"\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// signalAll signals processes, some of which may have ended.
func signalAll(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig)
	}
}
