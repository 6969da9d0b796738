// Package backup copies what a server keeps in its state folder, while the server runs ([Write]).
//
// A backup is a state folder: copied to its place, a server uses it like any other. That server starts no run a second
// time, because runs that were queued or running are interrupted in the backup, and it ends no commands, because the
// files by which a supervisor finds its commands are left out. Deliveries that were accepted after the backup was made
// are unknown to it.
//
// An incomplete backup is removed.
package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"sallyport/internal/audit"
	"sallyport/internal/pathsafe"
	"sallyport/runner/store"
)

// Write writes a backup of the state folder to a folder that does not exist or is empty. It removes an
// incomplete backup. The database is copied first, so that each run in it has its lines in the audit
// log, and its output is complete.
func Write(ctx context.Context, state, to string, now time.Time) (err error) {
	if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the folder of the backup: %w", err)
	}
	entries, err := os.ReadDir(to)
	if err != nil {
		return fmt.Errorf("reading the folder of the backup: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty: name a new folder", to)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(to))
		}
	}()
	if err := os.Chmod(to, 0o700); err != nil { //nolint:gosec // a folder needs the x bit
		return err
	}
	if err := store.Backup(ctx, state, filepath.Join(to, "state.db"), now); err != nil {
		return err
	}
	if err := audit.Copy(state, to); err != nil {
		return fmt.Errorf("copying the audit log: %w", err)
	}
	from, err := os.OpenRoot(state)
	if err != nil {
		return err
	}
	return errors.Join(copyOutputs(ctx, from, to), copyFolder(ctx, from, to, "acme", passAll), from.Close())
}

// copyOutputs copies the output and the status of runs. It leaves out their locks and working folders,
// and all that is not the folder of a run.
func copyOutputs(ctx context.Context, from *os.Root, to string) error {
	isOutput := func(path string, d fs.DirEntry) bool {
		parts := strings.Split(path, "/")
		switch {
		case len(parts) == 1:
			return true
		case len(parts) == 2:
			_, err := uuid.Parse(parts[1])
			return err == nil && d.IsDir()
		}
		return len(parts) == 3 && !d.IsDir() && slices.Contains([]string{"status", "output", "tail"}, parts[2])
	}
	return copyFolder(ctx, from, to, "runs", isOutput)
}

func passAll(string, fs.DirEntry) bool { return true }

// copyFolder copies the regular files of a folder that pass, if the folder exists. It leaves out files
// that are removed while it copies.
func copyFolder(ctx context.Context, from *os.Root, to, name string, pass func(path string, d fs.DirEntry) bool) error {
	return fs.WalkDir(from.FS(), name, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case d.IsDir() && pass(path, d):
			return os.Mkdir(filepath.Join(to, path), 0o700)
		case d.IsDir():
			return fs.SkipDir
		case d.Type().IsRegular() && pass(path, d):
			return copyFile(from, to, path)
		}
		return nil
	})
}

func copyFile(from *os.Root, to, path string) error {
	source, err := pathsafe.OpenRegular(from, path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, pathsafe.ErrNotRegular) { // it was removed or replaced just now
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }() // only read
	return pathsafe.CreateFile(filepath.Join(to, path), source)
}
