package processtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Remains reports what is left of a run: its working folder, and the mark that it may be in progress.
func (b *Subject) Remains(t testing.TB, run string) (work, mark bool) {
	t.Helper()
	there := func(name ...string) bool {
		_, err := os.Lstat(filepath.Join(append([]string{b.Dir}, name...)...))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return err == nil
	}
	return there(run, "work"), there("active", run)
}

// AwaitRemoval waits until a run has no working folder and no mark.
func (b *Subject) AwaitRemoval(t testing.TB, run string) {
	t.Helper()
	Eventually(t, "nothing is left of it", func() bool { work, mark := b.Remains(t, run); return !work && !mark })
}

// KeepLock opens the lock of a run in this process, as a process that escapes does. The function that it returns
// closes the lock.
func (b *Subject) KeepLock(t testing.TB, run string) (gone func()) {
	t.Helper()
	Eventually(t, "the status knows the process", func() bool { return b.ReadStatus(t, run).PID != 0 })
	p, err := unix.PidfdOpen(b.ReadStatus(t, run).PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(p) }()
	lock, err := unix.PidfdGetfd(p, 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(lock), "lock")
	t.Cleanup(func() { _ = f.Close() })
	return func() { _ = f.Close() }
}

// IsLocked reports whether a process holds the lock of a run.
func (b *Subject) IsLocked(t testing.TB, run string) bool {
	t.Helper()
	f, err := os.OpenInRoot(b.Dir, filepath.Join(run, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == syscall.EWOULDBLOCK
}
