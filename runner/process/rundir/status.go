package rundir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/boot"
	"sallyport/internal/pathsafe"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// Status is the content of the status file of a run. The file is always replaced as a whole, never written in place.
// Ended is zero while the run is in progress. Status has many fields because each is a member of that file.
type Status struct {
	Run     string        `json:"run"`
	Folder  string        `json:"folder,omitempty"` // device and inode of the folder of runs; a copy has others
	Hook    string        `json:"hook"`
	Caller  string        `json:"caller,omitempty"`
	Flight  string        `json:"flight,omitempty"`
	Values  hook.Values   `json:"values,omitempty"` // of the parameters
	PID     int           `json:"pid,omitempty"`    // of the main process
	Birth   string        `json:"birth,omitempty"`  // PID and Birth together identify the main process
	Cgroup  string        `json:"cgroup,omitempty"` // absolute path, where the run has one
	Created time.Time     `json:"created,omitzero"`
	Started time.Time     `json:"started,omitzero"`
	Up      time.Duration `json:"up,omitempty"` // boot.Uptime when it started; 0 where that is not known
	Why     runner.State  `json:"reason,omitempty"`
	Dropped Dropped       `json:"dropped,omitzero"`
	Bounds  Bounds        `json:"bounds,omitzero"`
	KillAt  time.Time     `json:"kill_at,omitzero"` // when TERM was sent: the end of the grace

	// Written only when a supervisor replaces itself in place.
	Found map[int]string `json:"found,omitempty"` // pids and births of the tree, as far as they were found
	Pipe  int            `json:"pipe,omitempty"`  // descriptor of the FIFO

	// Only an earlier version wrote this: it kept the output in an order that is not read any more.
	Ring json.RawMessage `json:"ring,omitempty"`

	runner.End
}

// Bounds are the bounds of the hook when the run started. The configuration file may have changed when another
// supervisor enforces them.
type Bounds struct {
	Timeout time.Duration `json:"timeout"` // nanoseconds, as is Grace
	Grace   time.Duration `json:"grace"`
	Head    int64         `json:"head"`
	Tail    int64         `json:"tail"`
}

// Dropped is the middle of an output that is not kept: the bytes from From to To, without To.
type Dropped struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Bytes returns how many bytes were dropped.
func (d Dropped) Bytes() int64 { return d.To - d.From }

// Result returns the end of the run, with its reason.
func (s *Status) Result() runner.End {
	e := s.End
	e.Reason = s.Why
	return e
}

// TimeLeft returns how long the command may still run. It measures by the uptime if possible, because the wall clock
// may have been set since another supervisor started the command.
func (s *Status) TimeLeft() time.Duration {
	if up := boot.Uptime(); s.Up > 0 && up >= s.Up {
		return s.Bounds.Timeout - (up - s.Up)
	}
	return time.Until(s.Started.Add(s.Bounds.Timeout))
}

// WriteStatus replaces the status of a run. Only the end of a run is synced: after a loss of power no command runs any
// more, even if the status says otherwise, and a sync during a run could wait for all the data that the command writes.
func (r *Runs) WriteStatus(s *Status, d pathsafe.Durability) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding a status: %w", err)
	}
	if err := pathsafe.ReplaceFile(r.Root, filepath.Join(s.Run, statusFile), append(text, '\n'), 0o600, d); err != nil {
		return fmt.Errorf("writing a status: %w", err)
	}
	return nil
}

// WriteEnd is [Runs.WriteStatus] for the end of a run. It also works if the command made its folder read-only.
func (r *Runs) WriteEnd(s *Status, d pathsafe.Durability) error {
	err := r.WriteStatus(s, d)
	if errors.Is(err, fs.ErrPermission) && r.Root.Chmod(s.Run, 0o700) == nil {
		err = r.WriteStatus(s, d)
	}
	return err
}

// IsCopied reports whether a status was copied from another folder of runs, which may be in use. Then the processes
// that it names belong to that folder.
func (r *Runs) IsCopied(s *Status) bool { return s.Folder != "" && s.Folder != r.id }

// ErrCorrupt says that the status of a run cannot be read. The status is not synced while the run is in progress, so
// a loss of power may leave it empty.
var ErrCorrupt = errors.New("corrupt status file")

// ReadStatus reads the status of a run. Errors wrap [runner.ErrUnknown] if the run has none, and ErrCorrupt if it
// cannot be read.
func (r *Runs) ReadStatus(run string) (*Status, error) { return ReadStatus(r.Root, run) }

// ReadStatus reads the status of a run from the folder of runs. Errors are those of [Runs.ReadStatus].
func ReadStatus(root *os.Root, run string) (*Status, error) {
	text, err := pathsafe.ReadRegular(root, filepath.Join(run, statusFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("run %s: %w", run, runner.ErrUnknown)
	}
	if isShortage(err) {
		return nil, fmt.Errorf("reading a status: %w", err)
	}
	if err != nil { // the command may have changed the folder
		return nil, fmt.Errorf("reading the status of run %s: %w: %w", run, ErrCorrupt, err)
	}
	s := new(Status)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("reading the status of run %s: %w: %w", run, ErrCorrupt, err)
	}
	return s, nil
}

// isShortage reports whether a file could not be opened because this process or the machine was short of a resource.
// A later attempt may succeed.
func isShortage(err error) bool {
	shortages := []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR}
	return slices.ContainsFunc(shortages, func(e error) bool { return errors.Is(err, e) })
}
