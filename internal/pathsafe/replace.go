package pathsafe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Durability says what is left of a replaced file after a loss of power.
type Durability int

// The durabilities. Each costs the disk more than the one before.
const (
	Unsynced Durability = iota // the old file or the new one, or an empty one
	Whole                      // the old file or the new one
	Synced                     // the new file
)

// ReplaceFile replaces the file name in root, or makes it. Readers see the old content or the new, never a part,
// and the new one never with a wider mode than the one given.
func ReplaceFile(root *os.Root, name string, content []byte, mode fs.FileMode, d Durability) error {
	temporary := name + ".new"
	// A crash may have left it, or another user may have put a FIFO there, which would block.
	if err := root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && mode.Perm() != 0o600 {
		err = f.Chmod(mode)
	}
	if err == nil && d >= Whole {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(temporary, name)
	}
	if err != nil {
		return errors.Join(err, root.Remove(temporary))
	}
	if d < Synced {
		return nil
	}
	folder, err := root.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return syncAndClose(folder)
}

// ReplaceFileAt is ReplaceFile, Synced, for a path.
func ReplaceFileAt(path string, content []byte, mode fs.FileMode) error {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(ReplaceFile(root, filepath.Base(path), content, mode, Synced), root.Close())
}

// CreateFile makes a file, which must not exist, for its owner alone, and returns once its content is on the
// disk. It leaves no part of a file behind.
func CreateFile(path string, content io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// SyncFolder makes names that were added to a folder or removed from it survive a loss of power.
func SyncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return syncAndClose(folder)
}

func syncAndClose(folder *os.File) error {
	err := folder.Sync()
	if errors.Is(err, syscall.EINVAL) { // a filesystem that syncs no folders (fsync(2))
		err = nil
	}
	if err = errors.Join(err, folder.Close()); err != nil {
		return fmt.Errorf("syncing a folder: %w", err)
	}
	return nil
}
