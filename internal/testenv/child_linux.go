package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// noDisk is in the output of a child that cannot mount a disk.
const noDisk = "no disk for this test"

// RunAsChild is for TestMain of tests that need a process which they can kill, or with a disk that they can fill: the
// test program runs itself again with two arguments, the name of a child and a folder. If this process is such a child,
// RunAsChild runs it, prints its error, and returns true.
func RunAsChild(children map[string]func(ctx context.Context, dir string) error) bool {
	if len(os.Args) != 3 || children[os.Args[1]] == nil {
		return false
	}
	fmt.Println("end", children[os.Args[1]](context.Background(), os.Args[2]))
	return true
}

// ChildCommand returns the command of a child.
func ChildCommand(t testing.TB, name, dir string) *exec.Cmd {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, name, dir) //nolint:gosec // G204: this program itself
	cmd.Stderr = os.Stderr
	return cmd
}

// RunChild runs a child to its end. The test fails if the child fails.
func RunChild(t testing.TB, name, dir string) {
	t.Helper()
	output, err := ChildCommand(t, name, dir).Output()
	checkChild(t, output, err)
}

// RunChildOnDisk runs a child that calls MountDisk, in a namespace. If this user cannot mount a disk, the test is
// skipped, and what names what was not tested.
func RunChildOnDisk(t testing.TB, name, what string) {
	t.Helper()
	cmd := ChildCommand(t, name, t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	output, err := cmd.Output()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || bytes.Contains(output, []byte(noDisk)) {
		Skip(t, fmt.Sprint(what, ", because this user cannot mount a disk: ", err))
	}
	checkChild(t, output, err)
}

func checkChild(t testing.TB, output []byte, err error) {
	t.Helper()
	if err != nil || !bytes.HasSuffix(output, []byte("end <nil>\n")) {
		t.Fatalf("%v\n%s", err, output)
	}
}

// MountDisk mounts an empty disk of a size, such as 4m, at the folder of a child of RunChildOnDisk.
func MountDisk(dir, size string) error {
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		return fmt.Errorf("%s: %w", noDisk, err)
	}
	return nil
}
