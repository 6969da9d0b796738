package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/boot"
	"sallyport/internal/pathsafe"
	"sallyport/runner"
)

// The names in a run's folder.
const (
	outputFile = "output" // what the command wrote first; the end is in tailFile
	fifoFile   = "fifo"   // where it writes, until the run has ended
	statusFile = "status" // Status as JSON
	lockFile   = "lock"   // flock'd as long as any of the command's tree keeps the descriptor; its content is the flight
	workDir    = "work"   // the working directory, unless the hook has another
)

// unwrittenFile has the ends that a supervisor could not write into the folders of
// their runs before it went: Status by run, as JSON.
const unwrittenFile = "unwritten"

// activeDir has another name of the lock of each run that may be under way. It
// tells a supervisor what the one before it left, without a look at each run
// that ever was, and whose flight a lock is, whatever became of the run's folder.
const activeDir = "active"

// Status is what a run's folder says of the run. It is replaced whole, never
// written in place. Ended is zero while the run is under way.
type Status struct {
	Run     string        `json:"run"`
	Folder  string        `json:"folder,omitempty"` // device and inode of the folder of runs: in a copy of it, they are others
	Hook    string        `json:"hook"`
	Caller  string        `json:"caller,omitempty"`
	Flight  string        `json:"flight,omitempty"`
	PID     int           `json:"pid,omitempty"`    // of the main process
	Birth   string        `json:"birth,omitempty"`  // with PID, the main process and no later one
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

	// Written by a former version only: the output is in an order that is not read any more.
	Ring json.RawMessage `json:"ring,omitempty"`

	runner.End
}

// Bounds are those of the hook when the run started. The file may say
// something else by the time that another supervisor enforces them.
type Bounds struct {
	Timeout time.Duration `json:"timeout"` // nanoseconds, as is Grace
	Grace   time.Duration `json:"grace"`
	Head    int64         `json:"head"`
	Tail    int64         `json:"tail"`
}

func (s *Status) end() runner.End {
	e := s.End
	e.Reason = s.Why
	return e
}

// writeStatus replaces the status of a run. Only its end is synced: after a loss of power no command runs any
// more, whatever was recorded, and a sync during a run could wait for all that the command writes.
func (l *Local) writeStatus(s *Status, d pathsafe.Durability) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding a status: %w", err)
	}
	if err := pathsafe.ReplaceFile(l.root, filepath.Join(s.Run, statusFile), append(text, '\n'), 0o600, d); err != nil {
		return fmt.Errorf("writing a status: %w", err)
	}
	return nil
}

// writeEnd is writeStatus for the end of a run, also where the command locked its
// folder.
func (l *Local) writeEnd(s *Status, d pathsafe.Durability) error {
	err := l.writeStatus(s, d)
	if errors.Is(err, fs.ErrPermission) && l.root.Chmod(s.Run, 0o700) == nil {
		err = l.writeStatus(s, d)
	}
	return err
}

// isCopied reports whether a status was copied from another folder of runs, which
// may be in use: what it names is not ours then.
func (l *Local) isCopied(s *Status) bool { return s.Folder != "" && s.Folder != l.id }

// folderID is the device and inode of a folder.
func folderID(root *os.Root) (string, error) {
	info, err := root.Stat(".")
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.New("the system tells no inode")
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// errGarbled says that a run has a status that says nothing. As long as it is
// under way that is not synced: a loss of power may leave it empty.
var errGarbled = errors.New("the status cannot be made out")

func (l *Local) readStatus(run string) (*Status, error) { return readStatus(l.root, run) }

// readStatus reads the status of a run from the folder of runs.
func readStatus(root *os.Root, run string) (*Status, error) {
	text, err := pathsafe.ReadRegular(root, filepath.Join(run, statusFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("run %s: %w", run, ErrUnknown)
	}
	if isShortage(err) {
		return nil, fmt.Errorf("reading a status: %w", err)
	}
	if err != nil { // the folder was the command's to change
		return nil, fmt.Errorf("reading the status of run %s: %w: %w", run, errGarbled, err)
	}
	s := new(Status)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("reading the status of run %s: %w: %w", run, errGarbled, err)
	}
	return s, nil
}

// isShortage reports whether a file can be opened once this process, or the
// machine, has enough of something again.
func isShortage(err error) bool {
	return slices.ContainsFunc([]error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR}, func(e error) bool { return errors.Is(err, e) })
}

// tryLock shares, so that those who only look are not in each other's way.
const tryLock = unix.LOCK_SH | unix.LOCK_NB

// held tells whether anybody keeps the lock of a run. What cannot be told
// counts as held.
func (l *Local) held(run string) bool {
	if l.unlocked {
		return false
	}
	f, err := pathsafe.OpenRegular(l.root, filepath.Join(activeDir, run))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer func() { _ = f.Close() }() // which gives the lock back
	return unix.Flock(int(f.Fd()), tryLock) != nil
}

// hasFolder tells whether a run has a folder here.
func (l *Local) hasFolder(run string) bool {
	_, err := l.root.Stat(run)
	return err == nil
}

// timeLeft is how long the command may still run. For a command that another supervisor started it goes by the
// uptime, because the wall clock may have been set since.
func (s *Status) timeLeft() time.Duration {
	if up := boot.Uptime(); s.Up > 0 && up >= s.Up {
		return s.Bounds.Timeout - (up - s.Up)
	}
	return time.Until(s.Started.Add(s.Bounds.Timeout))
}
