package store

import (
	"errors"
	"fmt"
	"os"

	"sallyport/internal/pathsafe"
)

// holdFolder creates the state folder if it is missing, refuses it if other users can change it, and locks it against
// a second server.
func holdFolder(dir string) (*pathsafe.Lock, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("making the state folder: %w", err)
	}
	if err := checkFolder(dir); err != nil {
		return nil, err
	}
	lock, err := pathsafe.LockFolder(dir)
	if errors.Is(err, pathsafe.ErrLocked) {
		err = ErrHeld
	}
	if err != nil {
		return nil, fmt.Errorf("locking the state folder %s: %w", dir, err)
	}
	return lock, nil
}

// checkFolder refuses a folder that another user of the machine can read, write or replace: its content decides which
// deliveries are replays and which commands run.
func checkFolder(dir string) error {
	switch why, err := pathsafe.CheckPrivate(dir); {
	case err != nil:
		return fmt.Errorf("finding the state folder: %w", err)
	case why != "":
		return fmt.Errorf("state folder %s: %w: %s", dir, ErrUnsafe, why)
	}
	return nil
}
