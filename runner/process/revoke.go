package process

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

// Revoke is that of runner.Processes. It needs no answer of the supervisor, which may be stopped and hold the order.
func (c *Client) Revoke(run string, why runner.State) (revoked bool, err error) {
	root, err := os.OpenRoot(filepath.Join(c.o.State, runsDir))
	if err != nil {
		return false, fmt.Errorf("revoking run %s: %w", run, err)
	}
	defer func() { _ = root.Close() }() // nothing is written through it any more
	return revoke(root, run, why)
}

// Revoke is that of runner.Processes.
func (l *Local) Revoke(run string, why runner.State) (revoked bool, err error) {
	return revoke(l.root, run, why)
}

// revoke gives a run its folder, with its end in it. A run is started by moving its folder to the same place, which
// fails then, so exactly one of the two happens.
func revoke(root *os.Root, run string, why runner.State) (revoked bool, err error) {
	if err := checkID(run); err != nil {
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
	name := filepath.Join(readyDir, rand.Text())
	err = root.Mkdir(name, 0o700)
	if err == nil {
		err = root.WriteFile(filepath.Join(name, statusFile), append(text, '\n'), 0o600)
	}
	if err == nil {
		err = root.Rename(name, run)
	}
	if err == nil {
		return true, nil
	}
	_ = root.RemoveAll(name) // else the next supervisor does
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return false, fmt.Errorf("revoking run %s: %w", run, err)
}

// isRevoked reports whether the run of a status was revoked, so that its command never started.
func (s *Status) isRevoked() bool { return s.Started.IsZero() && s.Why != "" }
