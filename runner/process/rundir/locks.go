package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/pathsafe"
)

// activeDir has another name of the lock of each run that may be in progress. A supervisor finds there the runs that
// its predecessor left, without a read of every run's folder. It also shows the flight of each lock, even if the
// folder of the run was removed.
const activeDir = "active"

// Locks are the locks of the runs that may be in progress: the folder active/. Its methods may be called from many
// goroutines at the same time.
type Locks struct {
	root    *os.Root
	log     *slog.Logger
	ignored bool
}

// Ignore makes every lock count as free. It is for a test that shows what the locks are for.
func (l *Locks) Ignore() { l.ignored = true }

// AreIgnored reports whether Ignore was called.
func (l *Locks) AreIgnored() bool { return l.ignored }

// tryLock is a shared lock, so that two processes that only test the lock do not block each other.
const tryLock = unix.LOCK_SH | unix.LOCK_NB

// IsHeld reports whether any process holds the lock of a run that may be in progress. An error counts as locked.
func (l *Locks) IsHeld(run string) bool {
	if l.ignored {
		return false
	}
	f, err := pathsafe.OpenRegular(l.root, filepath.Join(activeDir, run))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer func() { _ = f.Close() }() // this releases the lock
	return unix.Flock(int(f.Fd()), tryLock) != nil
}

// AwaitFree returns when no process holds the lock of a run.
func (l *Locks) AwaitFree(run string) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for l.IsHeld(run) {
		<-tick.C
	}
}

// MayBeActive returns the ids of the runs that may be in progress.
func (l *Locks) MayBeActive() (runs []string, err error) {
	dir, err := l.root.Open(activeDir)
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if CheckID(name) != nil {
			l.log.Warn("ignoring an unknown file", "name", filepath.Join(activeDir, name))
			continue
		}
		runs = append(runs, name)
	}
	return runs, errors.Join(err, dir.Close())
}

// ReadFlight returns the flight of a run that may be in progress.
func (l *Locks) ReadFlight(run string) (string, error) {
	text, err := pathsafe.ReadRegular(l.root, filepath.Join(activeDir, run))
	return string(text), err
}

// MarkActive links the lock of a run into the active folder again.
func (l *Locks) MarkActive(run string) error {
	err := l.root.Link(filepath.Join(run, lockFile), filepath.Join(activeDir, run))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("marking run %s: %w", run, err)
	}
	return nil
}

// UnmarkActive records that a run is over and its working folder is gone.
func (l *Locks) UnmarkActive(run string) error {
	if err := l.root.Remove(filepath.Join(activeDir, run)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
