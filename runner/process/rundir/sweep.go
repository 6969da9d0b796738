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

// Remove deletes the folder of a run in dir. If a process of the run still holds the lock, the folder stays for
// Sweep, and Remove returns no error. It returns no error either if the run has no folder. If something is mounted in
// the folder, the folder stays for Sweep, too, and the error names the mounts.
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

// lockHeld reports whether a process of the run is alive.
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

// SweepAfter is how long the folder of a run must be unknown before it is removed. A database that was replaced by an
// older or an empty one does not know these runs, and can be restored until then.
const SweepAfter = 24 * time.Hour

// unknownFile marks the folder of a run that is not known. Its modification time shows since when.
const unknownFile = "unknown"

// Sweep removes the folders of runs in dir that have not been known for the duration after. A crash after a run was
// forgotten and before its folder was removed leaves such a folder. Sweep works in small steps with pauses, goes on
// after a folder that cannot be removed, and returns when it has seen all folders, or ctx is done.
func Sweep(
	ctx context.Context, dir string, after time.Duration, known func(run string) (bool, error),
) (removed int, err error) {
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
			if CheckID(run) != nil { // not the folder of a run
				continue
			}
			// A run is recorded before it gets a folder, so a run with a folder that is not known was forgotten.
			is, err := known(run)
			if err != nil {
				return removed, errors.Join(fmt.Errorf("sweeping: %w", err), failed.joinErrors())
			}
			if is {
				_ = root.Remove(filepath.Join(run, unknownFile)) // usually it does not exist
				continue
			}
			if isUnknownSince(root, run, after) && failed.isSuccess(removeUnlocked(root, run)) &&
				hasNoFolder(root, run) {
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

// failures are the errors of many removals. The first few are kept in full, the others are counted.
type failures struct {
	told []error
	more int
}

// isSuccess reports whether err is nil, and records it otherwise.
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

// Trim removes the oldest outputs in dir until the rest takes at most quota bytes of the disk. It does not touch the
// outputs of commands that still run. It returns how many bytes it freed.
func Trim(dir string, quota int64) (freed int64, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, fmt.Errorf("reading the folder of runs: %w", err)
	}
	defer func() { _ = root.Close() }()
	entries, err := os.ReadDir(dir) // sorted by name, which for UUIDv7 is by age
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
			continue // an output stays if its lock cannot be tested
		}
		if err := removeOutput(root, e.Name()); err != nil {
			return freed, err
		}
		total -= sizes[i]
		freed += sizes[i]
	}
	return freed, nil
}

// outputUsage returns how many bytes of the disk the output of a run takes; 0 if it does not exist, or was just
// removed.
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

// isUnknownSince reports whether the folder of an unknown run was marked at least the duration after ago. If it has
// no mark, it gets one.
func isUnknownSince(root *os.Root, run string, after time.Duration) bool {
	if after == 0 {
		return true
	}
	mark := filepath.Join(run, unknownFile)
	info, err := root.Lstat(mark)
	if errors.Is(err, fs.ErrNotExist) {
		_ = root.WriteFile(mark, nil, 0o600) // if this fails, the folder stays
	}
	return err == nil && time.Since(info.ModTime()) >= after
}
