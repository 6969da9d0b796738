package pathsafe

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// ErrLocked reports that another process has the lock.
var ErrLocked = errors.New("another process holds its lock")

// Lock is the lock of a folder, until Close.
type Lock struct{ files []*os.File }

// LockFolder locks a folder. The lock is on the folder itself, which cannot be removed
// while it is not empty, and also on the file named lock in it: earlier versions
// lock only that. Errors wrap ErrLocked if another process has either.
func LockFolder(dir string) (*Lock, error) {
	l := new(Lock)
	err := l.lockFile(dir, os.O_RDONLY|syscall.O_DIRECTORY)
	if err == nil {
		err = l.lockFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lock) lockFile(name string, flags int) error {
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return err
	}
	l.files = append(l.files, f)
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}

// Close unlocks the folder at once. Closing the files is not enough while a
// process that was just forked has them open too.
func (l *Lock) Close() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
	}
	l.files = nil
	return errors.Join(errs...)
}
