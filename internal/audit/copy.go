package audit

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"sallyport/internal/pathsafe"
)

// Copy copies the audit log of a state folder to another state folder, whether or not a server
// writes it, and its key if the state folder has it. The copy can be verified and continued: its
// checkpoint is older than its last line, as after a crash.
func Copy(state, to string) error {
	// The decisions first: they record how far the refusals go at least.
	if err := copyChain(chainFolder(state), chainFolder(to)); err != nil {
		return err
	}
	err := copyChain(refusalsFolder(state), refusalsFolder(to))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // an older version had no such chain
		return err
	}
	return copyFile(state, to, keyFile)
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
		if err := copyFile(dir, target, name); err != nil {
			return err
		}
	}
	segments, files, err := openSegments(dir)
	defer closeFiles(files)
	if err != nil {
		return err
	}
	for i, s := range segments {
		if err := pathsafe.CreateFile(filepath.Join(target, filepath.Base(s.name)), files[i]); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file to another folder, if it exists.
func copyFile(dir, target, name string) error {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return pathsafe.CreateFile(filepath.Join(target, name), bytes.NewReader(text))
}
