package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Copy copies the audit log of a state folder to another state folder, whether or not a server
// writes it, and its key if the state folder has it. The copy can be verified and continued: its
// checkpoint is older than its last line, as after a crash.
func Copy(state, to string) error {
	// The decisions first: they say how far the refusals go at least.
	if err := copyChain(folder(state), folder(to)); err != nil {
		return err
	}
	err := copyChain(refusalsFolder(state), refusalsFolder(to))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // an older version kept none
		return err
	}
	key, err := os.Open(filepath.Join(state, keyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return copyTo(filepath.Join(to, keyFile), key)
}

// copyChain copies the folder of one chain, its checkpoint before its lines.
func copyChain(dir, target string) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	for _, name := range []string{checkpointFile, verifierFile} {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := copyTo(filepath.Join(target, name), f); err != nil {
			return err
		}
	}
	segments, files, err := openSegments(dir)
	defer closeAll(files)
	if err != nil {
		return err
	}
	for i, s := range segments {
		if err := copyTo(filepath.Join(target, filepath.Base(s.name)), files[i]); err != nil {
			return err
		}
	}
	return nil
}

// copyTo copies what is in a file to a new file, durably, and closes it.
func copyTo(name string, from *os.File) error {
	defer func() { _ = from.Close() }() // only read
	to, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Sync(), to.Close()); err != nil {
		return fmt.Errorf("copying the audit log: %w", err)
	}
	return nil
}
