package process_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/runner"
)

// left tells what there is of a run: its working folder, and the mark that it
// may be under way.
func (b *subject) left(t testing.TB, run string) (work, mark bool) {
	t.Helper()
	there := func(name ...string) bool {
		_, err := os.Lstat(filepath.Join(append([]string{b.dir}, name...)...))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return err == nil
	}
	return there(run, "work"), there("active", run)
}

func (b *subject) tidied(t testing.TB, run string) {
	t.Helper()
	eventually(t, "nothing is left of it", func() bool { work, mark := b.left(t, run); return !work && !mark })
}

// escape takes the lock of a run along, as a process does that gets away.
func (b *subject) escape(t testing.TB, run string) (gone func()) {
	t.Helper()
	eventually(t, "the status knows the process", func() bool { return b.status(t, run).PID != 0 })
	p, err := unix.PidfdOpen(b.status(t, run).PID, 0)
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

func TestWhatACommandLeavesInItsFolderGoesAndNothingBehindItsLinks(t *testing.T) {
	elsewhere := t.TempDir()
	if err := os.WriteFile(filepath.Join(elsewhere, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, runner.HookSpec{Command: shell(t,
		`mkdir -p a/b; echo > a/b/c; ln -s "$1" out; ln -s "$1/file" a/b/file; ln -s .. up`, elsewhere)})
	run := b.start(t, order())
	exited(t, b.end(t, run), 0)
	b.tidied(t, run)
	if _, err := os.Stat(filepath.Join(elsewhere, "file")); err != nil {
		t.Errorf("what a link points to: %v", err)
	}
	if b.output(t, run) != "" || b.status(t, run).Ended.IsZero() {
		t.Error("more than the working folder went")
	}
}

func TestTheFolderThatSomethingMayStillWorkInStaysUntilThatIsGone(t *testing.T) {
	command, release := gated(t, "")
	b := newBench(t, runner.HookSpec{Command: command})
	run := b.start(t, order())
	gone := b.escape(t, run)
	release()
	exited(t, b.end(t, run), 0)
	if work, mark := b.left(t, run); !work || !mark {
		t.Errorf("there is a folder: %v, a mark: %v", work, mark)
	}
	gone()
	b.tidied(t, run)
}

func TestWhatAKilledSupervisorLeftIsRemovedByTheNext(t *testing.T) {
	command, release := gated(t, "echo > file")
	p := newPost(t, job(command))
	run := p.begin(t, p.order("job", nil))
	gone := p.escape(t, run)
	release()
	exited(t, p.subject.end(t, run), 0)
	p.killSupervisor(t)
	gone()
	if work, mark := p.left(t, run); !work || !mark {
		t.Errorf("there is a folder: %v, a mark: %v", work, mark)
	}
	p.connect(t)
	p.tidied(t, run)

	gate := filepath.Join(t.TempDir(), "gate") // and of a run that it left under way
	p.hooks = p.write(t, job(shell(t, `echo > file; until [ -e "$1" ]; do sleep 0.01; done`, gate)))
	run = p.begin(t, p.order("job", nil))
	p.killSupervisor(t)
	p.connect(t)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	interrupted(t, p.subject.end(t, run))
	p.tidied(t, run)
}

// TestALockThatIsTriedJustThenIsAwaited takes the lock for the moment in which a
// run is forgotten, as the child of another start does.
func TestALockThatIsTriedJustThenIsAwaited(t *testing.T) {
	command, release := gated(t, "exit 8")
	b := newBench(t, runner.HookSpec{Command: command})
	run := b.start(t, order())
	b.says(t, run, "ready")
	unblock := b.blockStatus(t, run)
	release()
	exited(t, b.end(t, run), 8)
	f, err := os.Open(filepath.Join(b.dir, "active", run))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	unblock()
	eventually(t, "the end is on disk", func() bool { return !b.status(t, run).Ended.IsZero() })
	if _, mark := b.left(t, run); !mark {
		t.Error("it was forgotten while its lock was held")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b.tidied(t, run)
}

// TestARunThatHasAFolderWasStartedWhateverIsLostOfIt: a crash of the machine may
// lose the mark that it was under way, and it must not be started again.
func TestARunThatHasAFolderWasStartedWhateverIsLostOfIt(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	o := p.order("job", nil)
	exited(t, p.subject.end(t, p.begin(t, o)), 0)
	p.tidied(t, o.Run)
	s := p.status(t, o.Run)
	s.End = runner.End{}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, o.Run, "status"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if known, err := p.Known(o.Run); !known || err != nil {
		t.Errorf("known: %v, %v", known, err)
	}
	interrupted(t, p.subject.end(t, o.Run))
}

// TestARunWhoseStatusALossOfPowerGarbledIsOver: were it an error, the server would
// never start again, since it asks at the start for each run that it has on record.
func TestARunWhoseStatusALossOfPowerGarbledIsOver(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	for _, garbled := range []string{"", `{"run":"01`, "\x00\x00\x00\x00"} {
		o := p.order("job", nil)
		exited(t, p.subject.end(t, p.begin(t, o)), 0)
		p.tidied(t, o.Run)
		if err := os.WriteFile(filepath.Join(p.dir, o.Run, "status"), []byte(garbled), 0o600); err != nil {
			t.Fatal(err)
		}
		if known, err := p.Known(o.Run); !known || err != nil {
			t.Errorf("%q: known: %v, %v", garbled, known, err)
		}
		interrupted(t, p.subject.end(t, o.Run))
		if err := p.Stop(o.Run, runner.Cancelled, 0); err != nil {
			t.Errorf("%q: stopped: %v", garbled, err)
		}
	}
}
