package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"sallyport/internal/owned"
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
	switch why, err := owned.Private(dir); {
	case err != nil:
		return fmt.Errorf("finding the state folder: %w", err)
	case why != "":
		return fmt.Errorf("state folder %s: %w: %s", dir, ErrUnsafe, why)
	}
	return nil
}
