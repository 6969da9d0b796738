package process

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
// is left, for Sweep; that, or a run that is not there, is no error.
func Remove(dir, run string) error {
	if err := checkID(run); err != nil {
		return fmt.Errorf("removing: %w", err)
	}
	if held, err := lockHeld(filepath.Join(dir, run)); err != nil || held {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, run)); err != nil {
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

// Sweep removes the folders of runs in dir that are not known: a crash between
// forgetting a run and removing its folder leaves one. It takes small steps with
// pauses, and returns when it has seen all there were, or ctx is done.
func Sweep(ctx context.Context, dir string, known func(run string) (bool, error)) (removed int, err error) {
	const step, pause = 100, 50 * time.Millisecond
	d, err := os.Open(dir)
	if err != nil {
		return 0, fmt.Errorf("sweeping: %w", err)
	}
	defer func() { _ = d.Close() }() // only read
	for ctx.Err() == nil {
		names, err := d.Readdirnames(step)
		if errors.Is(err, io.EOF) {
			return removed, nil
		}
		if err != nil {
			return removed, fmt.Errorf("sweeping: %w", err)
		}
		for _, run := range names {
			gone, err := sweepOne(dir, run, known)
			if err != nil {
				return removed, fmt.Errorf("sweeping: %w", err)
			}
			if gone {
				removed++
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	return removed, ctx.Err()
}

// sweepOne asks whether a run is known only once its folder is there: every run
// is recorded before it gets one.
func sweepOne(dir, run string, known func(run string) (bool, error)) (gone bool, err error) {
	if checkID(run) != nil { // none of ours
		return false, nil
	}
	if is, err := known(run); err != nil || is {
		return false, err
	}
	if err := Remove(dir, run); err != nil {
		return false, err
	}
	_, err = os.Lstat(filepath.Join(dir, run))
	return errors.Is(err, fs.ErrNotExist), nil
}

// Trim removes the oldest outputs in dir until what is left takes at most quota
// bytes of the disk. Outputs of commands that still run are not touched. It
// returns how many bytes it freed.
func Trim(dir string, quota int64) (freed int64, err error) {
	entries, err := os.ReadDir(dir) // by name, which for UUIDv7 is by age
	if err != nil {
		return 0, fmt.Errorf("reading the folder of runs: %w", err)
	}
	sizes := make([]int64, len(entries))
	total := int64(0)
	for i, e := range entries {
		info, err := os.Stat(filepath.Join(dir, e.Name(), outputFile))
		if err != nil {
			continue // no output, or just removed
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sizes[i] = st.Blocks * 512 // POSIX leaves the unit open; all our systems have 512
			total += sizes[i]
		}
	}
	for i, e := range entries {
		if total <= quota {
			return freed, nil
		}
		folder := filepath.Join(dir, e.Name())
		if sizes[i] == 0 {
			continue
		}
		if held, err := lockHeld(folder); err != nil || held {
			continue // one that cannot be judged is not ours to remove
		}
		if err := os.Remove(filepath.Join(folder, outputFile)); err != nil {
			return freed, fmt.Errorf("removing an output: %w", err)
		}
		total -= sizes[i]
		freed += sizes[i]
	}
	return freed, nil
}
