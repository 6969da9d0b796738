package store_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// TestAdmit_SyncFails makes the sync of a commit fail. Such an operation may be found recorded after a crash, so its
// error does not prove that it was not recorded. The disk is an image on another disk, which has no space for what is
// synced. The test needs separate mounts, so it runs itself again in a namespace.
func TestAdmit_SyncFails(t *testing.T) {
	const inside = "SALLYPORT_TEST_SYNC"
	if os.Getenv(inside) != "" {
		admitUnsynced(t)
		return
	}
	testenv.Need(t, "mkfs.ext4")
	if os.Geteuid() != 0 {
		testenv.Skip(t, "a sync that fails, because this user may mount no disk")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAdmit_SyncFails$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case cmd.Process == nil:
		testenv.Skip(t, "a sync that fails, because this user may make no namespace: "+err.Error())
	case bytes.Contains(out, []byte(noDisk)):
		testenv.Skip(t, "a sync that fails, because no disk can be mounted here: "+string(out))
	case err != nil || !bytes.Contains(out, []byte("--- PASS: TestAdmit_SyncFails ")):
		t.Fatalf("%v\n%s", err, out)
	}
}

const noDisk = "no disk for this test"

func admitUnsynced(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	outer, inner := filepath.Join(dir, "outer"), filepath.Join(dir, "inner")
	mount := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %v\n%s", noDisk, args, err, out)
		}
	}
	for _, folder := range []string{outer, inner} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(outer, "image")
	mount("mount", "--make-rprivate", "/")
	mount("mount", "-t", "tmpfs", "-o", "size=48m", "none", outer)
	t.Cleanup(func() { _ = syscall.Unmount(outer, syscall.MNT_DETACH) })
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 256<<20)); err != nil {
		t.Fatal(err)
	}
	mount("mkfs.ext4", "-q", image)
	mount("mount", "-o", "loop", image, inner)
	t.Cleanup(func() { _ = syscall.Unmount(inner, syscall.MNT_DETACH) })

	s := openIn(t, filepath.Join(inner, "state"))
	admitRun(t, s, newRun(t, "build", "before"), hook.Policy{})
	filler, err := os.Create(filepath.Join(outer, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := filler.Write(make([]byte, 64<<20)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the outer disk is not full: %v", err)
	}
	run := newRun(t, "build", "after")
	_, err = s.Admit(t.Context(), run, runner.Claim{}, hook.Policy{}, runner.Feed{Stdin: make([]byte, 8<<20)})
	if !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	// A server that comes after a crash finds in the log what this one wrote, synced or not.
	after := filepath.Join(t.TempDir(), "state")
	if err := copyDatabase(filepath.Join(inner, "state"), after); err != nil {
		t.Fatal(err)
	}
	_, found := openIn(t, after).Get(t.Context(), run.ID)
	t.Logf("admitted: %v; found after a crash: %v", err, found)
	if !errors.Is(err, runner.ErrUncertain) && !errors.Is(found, runner.ErrUnknown) {
		t.Errorf("the answer was a definite no: %v; and the run is there: %v", err, found)
	}
}

// copyDatabase makes a folder with the database as a crash of the program leaves it.
func copyDatabase(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"state.db", "state.db-wal"} {
		text, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
