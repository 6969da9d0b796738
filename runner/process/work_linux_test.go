package process_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
)

func TestWhatACommandLeavesInItsFolderGoesAndNothingBehindItsLinks(t *testing.T) {
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

func TestTheFolderThatSomethingMayStillWorkInStaysUntilThatIsGone(t *testing.T) {
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

func TestWhatAKilledSupervisorLeftIsRemovedByTheNext(t *testing.T) {
	command, release := processtest.GatedScript(t, "echo > file")
	p := newPost(t, job(command))
	run := p.begin(t, p.order("job", nil))
	gone := p.KeepLock(t, run)
	release()
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 0)
	p.killSupervisor(t)
	gone()
	if work, mark := p.Remains(t, run); !work || !mark {
		t.Errorf("there is a folder: %v, a mark: %v", work, mark)
	}
	p.connect(t)
	p.AwaitRemoval(t, run)

	gate := filepath.Join(t.TempDir(), "gate") // and of a run that it left under way
	p.hooks = p.write(t, job(processtest.Script(t, `echo > file; until [ -e "$1" ]; do sleep 0.01; done`, gate)))
	run = p.begin(t, p.order("job", nil))
	p.killSupervisor(t)
	p.connect(t)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	processtest.CheckInterrupted(t, p.Subject.AwaitEnd(t, run))
	p.AwaitRemoval(t, run)
}

// TestALockThatIsTriedJustThenIsAwaited takes the lock for the moment in which a
// run is forgotten, as the child of another start does.
func TestALockThatIsTriedJustThenIsAwaited(t *testing.T) {
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

// TestARunThatHasAFolderWasStartedWhateverIsLostOfIt: a crash of the machine may
// lose the mark that it was under way, and it must not be started again.
func TestARunThatHasAFolderWasStartedWhateverIsLostOfIt(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	o := p.order("job", nil)
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, o)), 0)
	p.AwaitRemoval(t, o.Run)
	s := p.ReadStatus(t, o.Run)
	s.End = runner.End{}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.Dir, o.Run, "status"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if known, err := p.Known(o.Run); !known || err != nil {
		t.Errorf("known: %v, %v", known, err)
	}
	processtest.CheckInterrupted(t, p.Subject.AwaitEnd(t, o.Run))
}

// TestARunWhoseStatusALossOfPowerGarbledIsOver: were it an error, the server would
// never start again, since it asks at the start for each run that it has on record.
func TestARunWhoseStatusALossOfPowerGarbledIsOver(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	for _, garbled := range []string{"", `{"run":"01`, "\x00\x00\x00\x00"} {
		o := p.order("job", nil)
		processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, o)), 0)
		p.AwaitRemoval(t, o.Run)
		if err := os.WriteFile(filepath.Join(p.Dir, o.Run, "status"), []byte(garbled), 0o600); err != nil {
			t.Fatal(err)
		}
		if known, err := p.Known(o.Run); !known || err != nil {
			t.Errorf("%q: known: %v, %v", garbled, known, err)
		}
		processtest.CheckInterrupted(t, p.Subject.AwaitEnd(t, o.Run))
		if err := p.Stop(o.Run, runner.Cancelled, 0); err != nil {
			t.Errorf("%q: stopped: %v", garbled, err)
		}
	}
}
