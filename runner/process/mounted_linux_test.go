package process_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/internal/testenv"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
	"sallyport/runner/process/rundir"
)

// TestRemove_Mount checks that a removal does not go through a mount: the files there are in
// another place too.
func TestRemove_Mount(t *testing.T) {
	const what = "what is mounted in the folder of a run"
	if os.Geteuid() != 0 {
		// In a new user namespace, the owner of /bin/sh is not a known user.
		testenv.Skip(t, what+", because only root may mount something")
	}
	if !processtest.RunElsewhere(t, what, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}) {
		return
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(processtest.NoMount, err)
	}
	for _, moved := range []bool{false, true} {
		for _, point := range []string{"work", "work/deep/a \\040\t#\u00a0b"} {
			t.Run(fmt.Sprintf("moved %v, %q", moved, point), func(t *testing.T) { mountedIn(t, point, moved) })
		}
	}
}

func mountedIn(t *testing.T, point string, moved bool) {
	t.Helper()
	precious := processtest.MakeFile(t, t.TempDir())
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	command, release := processtest.GatedScript(t, "")
	b := processtest.NewLoggingBench(t, hook.Spec{Command: command}, log)
	b.CleanUpAgainAfter(time.Millisecond)
	o := processtest.NewOrder()
	if err := b.Start(o); err != nil {
		t.Fatal(err)
	}
	b.AwaitText(t, o.Run, "ready")
	if moved { // a move of the state folder moves the mounts in it, too
		to := filepath.Join(t.TempDir(), "runs")
		if err := os.Rename(b.Dir, to); err != nil {
			t.Fatal(err)
		}
		b.Dir = to
	}
	at := filepath.Join(b.Dir, o.Run, point)
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(filepath.Dir(precious), at, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(processtest.NoMount, err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	release()
	processtest.CheckExit(t, b.AwaitEnd(t, o.Run), 0)
	var warning []byte
	processtest.Eventually(t, "it is tried", func() bool {
		text, _ := os.ReadFile(log.Name())
		_, warning, _ = bytes.Cut(text, []byte("level=WARN"))
		return bytes.Contains(warning, []byte("removing a run's working folder")) && bytes.HasSuffix(warning, []byte("\n"))
	})
	if named := fmt.Sprintf("something is mounted there, and stays until it is unmounted: %s", filepath.Join(b.Dir, o.Run, "work")); !bytes.Contains(warning, []byte(named)) || bytes.Contains(warning, []byte("WARN")) {
		t.Errorf("the log: %s", warning)
	}
	stays := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), at) {
			t.Errorf("%v, and %s is mounted", err, at)
		}
		if _, err := os.Stat(precious); err != nil {
			t.Error(err)
		}
		if work, mark := b.Remains(t, o.Run); !work || !mark || b.ReadStatus(t, o.Run).Run != o.Run {
			t.Errorf("there is a folder: %v, a mark: %v", work, mark)
		}
	}
	nobody := func(string) (bool, error) { return false, nil }
	stays(rundir.Remove(b.Dir, o.Run))
	_, err = rundir.Sweep(t.Context(), b.Dir, 0, nobody)
	stays(err)

	if err := syscall.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	b.AwaitRemoval(t, o.Run)
	if removed, err := rundir.Sweep(t.Context(), b.Dir, 0, nobody); removed != 1 || err != nil {
		t.Errorf("removed %d, %v", removed, err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}
