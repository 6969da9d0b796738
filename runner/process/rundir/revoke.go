package rundir

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sallyport/runner"
)

// Revoke makes the folder of a run with its end in it. A run is started by a rename of its folder to the same path,
// which fails then. So either the start or the revocation succeeds, never both. A supervisor that starts at the same
// time may remove the folder before it has its place; then Revoke makes it again.
func Revoke(root *os.Root, run string, why runner.State) (revoked bool, err error) {
	if err := CheckID(run); err != nil {
		return false, fmt.Errorf("revoking: %w", err)
	}
	id, err := folderID(root)
	if err != nil {
		return false, fmt.Errorf("revoking run %s: %w", run, err)
	}
	text, err := json.Marshal(Status{Run: run, Folder: id, Why: why, End: runner.End{Ended: time.Now()}})
	if err != nil {
		return false, fmt.Errorf("encoding a status: %w", err)
	}
	const attempts = 5 // a supervisor removes folders once, when it starts
	for range attempts {
		err = placeRevoked(root, run, append(text, '\n'))
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrExist):
		return false, nil
	}
	return false, fmt.Errorf("revoking run %s: %w", run, err)
}

// placeRevoked makes a folder with a status, and gives it its place as the folder of a run.
func placeRevoked(root *os.Root, run string, status []byte) error {
	name := filepath.Join(readyDir, rand.Text())
	err := root.Mkdir(name, 0o700)
	if err == nil {
		err = root.WriteFile(filepath.Join(name, statusFile), status, 0o600)
	}
	if err == nil {
		err = root.Rename(name, run)
	}
	if err != nil {
		_ = root.RemoveAll(name) // if this fails, the next supervisor removes it
	}
	return err
}

// IsRevoked reports whether the run was revoked, so that its command never started.
func (s *Status) IsRevoked() bool { return s.Started.IsZero() && s.Why != "" }
