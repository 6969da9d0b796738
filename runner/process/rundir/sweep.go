package rundir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Remove deletes the folder of a run in dir. One whose tree still holds the lock
// is left, for Sweep; that, or a run that is not there, is no error. One in which
// something is mounted is left for Sweep, too, and is an error that names that.
func Remove(dir, run string) error {
	if err := CheckID(run); err != nil {
		return fmt.Errorf("removing: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing run %s: %w", run, err)
	}
	defer func() { _ = root.Close() }()
	return removeUnlocked(root, run)
}

func removeUnlocked(root *os.Root, run string) error {
	held, err := lockHeld(filepath.Join(root.Name(), run))
	if err == nil && !held {
		err = removeAll(root, run)
	}
	if err != nil {
		return fmt.Errorf("removing run %s: %w", run, err)
	}
	return nil
}

// lockHeld tells whether anything of a run's tree is alive.
func lockHeld(folder string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(folder, lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("trying the lock of a run: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	err = unix.Flock(int(f.Fd()), tryLock)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// SweepAfter is for how long the folder of a run must be unknown before it is removed. A database
// that was replaced by an older or an empty one knows none of them, and can be put back until then.
const SweepAfter = 24 * time.Hour

// unknownFile marks the folder of a run that was not known, since its modification time.
const unknownFile = "unknown"

// Sweep removes the folders of runs in dir that have not been known for the time after: a crash
// between forgetting a run and removing its folder leaves one. It takes small steps with
// pauses, goes on after a folder that cannot be removed, and returns when it has
// seen all there were, or ctx is done.
func Sweep(ctx context.Context, dir string, after time.Duration, known func(run string) (bool, error)) (removed int, err error) {
	const step, pause = 100, 50 * time.Millisecond
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, fmt.Errorf("sweeping: %w", err)
	}
	defer func() { _ = root.Close() }()
	d, err := root.Open(".")
	if err != nil {
		return 0, fmt.Errorf("sweeping: %w", err)
	}
	defer func() { _ = d.Close() }() // only read
	var failed failures
	for ctx.Err() == nil {
		names, err := d.Readdirnames(step)
		if errors.Is(err, io.EOF) {
			return removed, failed.joinErrors()
		}
		if err != nil {
			return removed, errors.Join(fmt.Errorf("sweeping: %w", err), failed.joinErrors())
		}
		for _, run := range names {
			if CheckID(run) != nil { // none of ours
				continue
			}
			// Every run is recorded before it gets a folder, and this one has one.
			is, err := known(run)
			if err != nil {
				return removed, errors.Join(fmt.Errorf("sweeping: %w", err), failed.joinErrors())
			}
			if is {
				_ = root.Remove(filepath.Join(run, unknownFile)) // there is hardly ever one
				continue
			}
			if isUnknownSince(root, run, after) && failed.isSuccess(removeUnlocked(root, run)) && hasNoFolder(root, run) {
				removed++
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	return removed, errors.Join(ctx.Err(), failed.joinErrors())
}

func hasNoFolder(root *os.Root, run string) bool {
	_, err := root.Lstat(run)
	return errors.Is(err, fs.ErrNotExist)
}

// failures are those of many removals, of which a few are told in full.
type failures struct {
	told []error
	more int
}

// isSuccess tells whether err is no failure, and keeps it if it is one.
func (f *failures) isSuccess(err error) bool {
	const most = 10
	switch {
	case err == nil:
		return true
	case len(f.told) < most:
		f.told = append(f.told, err)
	default:
		f.more++
	}
	return false
}

func (f *failures) joinErrors() error {
	all := f.told
	if f.more > 0 {
		all = append(all, fmt.Errorf("and %d more", f.more))
	}
	return errors.Join(all...)
}

// Trim removes the oldest outputs in dir until what is left takes at most quota
// bytes of the disk. Outputs of commands that still run are not touched. It
// returns how many bytes it freed.
func Trim(dir string, quota int64) (freed int64, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, fmt.Errorf("reading the folder of runs: %w", err)
	}
	defer func() { _ = root.Close() }()
	entries, err := os.ReadDir(dir) // by name, which for UUIDv7 is by age
	if err != nil {
		return 0, fmt.Errorf("reading the folder of runs: %w", err)
	}
	sizes := make([]int64, len(entries))
	total := int64(0)
	for i, e := range entries {
		sizes[i] = outputUsage(root, e.Name())
		total += sizes[i]
	}
	for i, e := range entries {
		if total <= quota {
			return freed, nil
		}
		if sizes[i] == 0 {
			continue
		}
		if held, err := lockHeld(filepath.Join(dir, e.Name())); err != nil || held {
			continue // one that cannot be judged is not ours to remove
		}
		if err := removeOutput(root, e.Name()); err != nil {
			return freed, err
		}
		total -= sizes[i]
		freed += sizes[i]
	}
	return freed, nil
}

// outputUsage returns what the output of a run takes of the disk; 0 when there is none, or
// it was just removed.
func outputUsage(root *os.Root, run string) (bytes int64) {
	if CheckID(run) != nil {
		return 0
	}
	for _, name := range []string{OutputFile, TailFile} {
		info, err := root.Lstat(filepath.Join(run, name))
		if err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += st.Blocks * 512 // POSIX leaves the unit open; all our systems have 512
		}
	}
	return bytes
}

func removeOutput(root *os.Root, run string) error {
	for _, name := range []string{TailFile, OutputFile} {
		if err := root.Remove(filepath.Join(run, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing an output: %w", err)
		}
	}
	return nil
}

// isUnknownSince tells whether the folder of an unknown run was marked so long ago, and marks it if it
// was not.
func isUnknownSince(root *os.Root, run string, after time.Duration) bool {
	if after == 0 {
		return true
	}
	mark := filepath.Join(run, unknownFile)
	info, err := root.Lstat(mark)
	if errors.Is(err, fs.ErrNotExist) {
		_ = root.WriteFile(mark, nil, 0o600) // without it, the folder stays
	}
	return err == nil && time.Since(info.ModTime()) >= after
}
