package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sallyport/runner"
)

// The names in a run's folder.
const (
	outputFile = "output" // what the command wrote
	statusFile = "status" // Status as JSON
	lockFile   = "lock"   // flock'd as long as any of the command's tree keeps the descriptor
	workDir    = "work"   // the working directory, unless the hook has another
)

// Status is what a run's folder says of the run. It is replaced whole, never
// written in place. Ended is zero while the run is under way.
type Status struct {
	Run     string       `json:"run"`
	Hook    string       `json:"hook"`
	Caller  string       `json:"caller,omitempty"`
	PID     int          `json:"pid,omitempty"`    // of the main process
	Cgroup  string       `json:"cgroup,omitempty"` // absolute path, where the run has one
	Created time.Time    `json:"created,omitzero"`
	Started time.Time    `json:"started,omitzero"`
	Why     runner.State `json:"reason,omitempty"`
	Dropped Dropped      `json:"dropped,omitzero"`
	Ring    *Ring        `json:"ring,omitempty"`
	runner.End
}

func (s *Status) end() runner.End {
	e := s.End
	e.Reason = s.Why
	return e
}

// writeStatus replaces the status of a run. Only its end is worth waiting for
// the disk: after a loss of power no command runs any more, whatever was
// recorded, and a sync during a run could wait for all that the command writes.
func (l *Local) writeStatus(s *Status, sync bool) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding a status: %w", err)
	}
	name := filepath.Join(s.Run, statusFile)
	f, err := l.root.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("writing a status: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil && sync {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing a status: %w", err)
	}
	if err := l.root.Rename(name+".new", name); err != nil {
		return fmt.Errorf("writing a status: %w", err)
	}
	return nil
}

func (l *Local) readStatus(run string) (*Status, error) {
	text, err := l.root.ReadFile(filepath.Join(run, statusFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("run %s: %w", run, ErrUnknown)
	}
	if err != nil {
		return nil, fmt.Errorf("reading a status: %w", err)
	}
	s := new(Status)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("reading the status of run %s: %w", run, err)
	}
	return s, nil
}
