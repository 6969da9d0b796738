package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// holdFolder makes sure that the state folder exists and is ours alone, and
// returns the lock that keeps a second server out for as long as it is open.
func holdFolder(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("making the state folder: %w", err)
	}
	if err := checkFolder(dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the state folder: %w", err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case err == nil:
		return lock, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		err = ErrHeld
	}
	return nil, errors.Join(fmt.Errorf("locking the state folder %s: %w", dir, err), lock.Close())
}

// checkFolder refuses a folder that another user of the machine may read,
// write or put another folder in the place of: what it holds decides what was
// replayed and what runs.
func checkFolder(dir string) error {
	path, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("finding the state folder: %w", err)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("finding the state folder: %w", err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return fmt.Errorf("finding the state folder: %w", err)
	}
	owner, known := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("state folder %s: %w: it is no folder", dir, ErrUnsafe)
	case !known || int(owner.Uid) != os.Geteuid():
		return fmt.Errorf("state folder %s: %w: it belongs to another user", dir, ErrUnsafe)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("state folder %s: %w: its mode is %04o, make it 0700", dir, ErrUnsafe, info.Mode().Perm())
	}
	// Whoever may write the folder above may rename ours and put another in
	// its place, and whoever may write where a symlink stands may turn it; a
	// sticky folder (/tmp) keeps others from both.
	for _, above := range []string{filepath.Dir(path), filepath.Dir(real)} {
		info, err := os.Stat(above)
		if err != nil {
			return fmt.Errorf("finding what holds the state folder: %w", err)
		}
		if info.Mode()&0o002 != 0 && info.Mode()&os.ModeSticky == 0 {
			return fmt.Errorf("state folder %s: %w: anybody may write %s, which holds it", dir, ErrUnsafe, above)
		}
	}
	return nil
}
