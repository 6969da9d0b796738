package process_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
)

// TestWorkingFolder_Links checks that the working folder of a run is removed, and nothing that its links lead to.
func TestWorkingFolder_Links(t *testing.T) {
	elsewhere := t.TempDir()
	if err := os.WriteFile(filepath.Join(elsewhere, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t,
		`mkdir -p a/b; echo > a/b/c; ln -s "$1" out; ln -s "$1/file" a/b/file; ln -s .. up`, elsewhere)})
	run := b.Begin(t, processtest.NewOrder())
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	b.AwaitRemoval(t, run)
	if _, err := os.Stat(filepath.Join(elsewhere, "file")); err != nil {
		t.Errorf("what a link points to: %v", err)
	}
	if b.ReadOutput(t, run) != "" || b.ReadStatus(t, run).Ended.IsZero() {
		t.Error("more than the working folder went")
	}
}

// TestWorkingFolder_EscapedProcess checks that a working folder stays while an escaped process may use it.
func TestWorkingFolder_EscapedProcess(t *testing.T) {
	command, release := processtest.GatedScript(t, "")
	b := processtest.NewBench(t, hook.Spec{Command: command})
	run := b.Begin(t, processtest.NewOrder())
	gone := b.KeepLock(t, run)
	release()
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	if work, mark := b.Remains(t, run); !work || !mark {
		t.Errorf("there is a folder: %v, a mark: %v", work, mark)
	}
	gone()
	b.AwaitRemoval(t, run)
}

// TestLock_HeldByOtherStart holds the lock at the moment at which the mark of a run would be removed, as
// the child of another start does.
func TestLock_HeldByOtherStart(t *testing.T) {
	command, release := processtest.GatedScript(t, "exit 8")
	b := processtest.NewBench(t, hook.Spec{Command: command})
	run := b.Begin(t, processtest.NewOrder())
	b.AwaitText(t, run, "ready")
	unblock := b.BlockStatus(t, run)
	release()
	processtest.CheckExit(t, b.AwaitEnd(t, run), 8)
	f, err := os.Open(filepath.Join(b.Dir, "active", run))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	unblock()
	processtest.Eventually(t, "the end is on disk", func() bool { return !b.ReadStatus(t, run).Ended.IsZero() })
	if _, mark := b.Remains(t, run); !mark {
		t.Error("it was forgotten while its lock was held")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b.AwaitRemoval(t, run)
}
