// Package rundir is the layout of the folder of runs: its files, their writers, and what a crash leaves.
//
// [Runs] is the folder of runs. Each run has a folder in it, and the id of the run is its name:
//
//	ID/status   what is known about the run ([Status]), always replaced as a whole
//	ID/lock     locked as long as any process of the command has the descriptor; its content is the flight
//	ID/output   the beginning of the output, and ID/tail its end (package output)
//	ID/fifo     where the command writes, until the run has ended
//	ID/work     the working folder, unless the hook has another
//	active/ID   another name of the lock of each run that may be in progress ([Locks])
//	ready/      folders that belong to no run yet ([ReadyFolders])
//	unwritten   ends that could not be written into the folders of their runs
//
// The next supervisor reads only the names in active/, and removes what is in ready/. A crash of the process leaves,
// after each step of a start:
//
//   - the folder is made in ready/ with all its files: a folder that belongs to no run;
//   - its lock gets a name in active/: also that name, which the next supervisor removes. The run has not started;
//   - the folder is renamed to the id: a run with a free lock. It ends as interrupted, as if its command had run;
//   - the command is started: a run with a lock that says whether one of its processes is alive. It is followed until
//     they have ended;
//   - the end is written, and the working folder and the name in active/ are removed, in this order: a run that has
//     ended. The rest is removed when its lock is free.
//
// [Revoke] makes the folder of a run that never starts: in ready/, with nothing but a status that has an end. Then it
// renames the folder to the id. Before the rename, a crash leaves a folder that belongs to no run; after it, a run that
// has ended. A rename to the id fails if that folder exists. So of a start and a revocation only the first succeeds,
// and a folder has its status before it is found under an id.
//
// [Remove], [Sweep] and [Trim] need no supervisor. They do not touch what a living process has locked, or what is
// mounted.
package rundir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/uuid"

	"sallyport/internal/pathsafe"
	"sallyport/runner"
)

// The names in a run's folder.
const (
	OutputFile = "output" // the beginning of what the command wrote
	TailFile   = "tail"   // its end
	FIFOFile   = "fifo"   // where the command writes, until the run has ended
	WorkDir    = "work"   // the working directory, unless the hook has another
	statusFile = "status" // Status as JSON
	lockFile   = "lock"   // flock'd while any process of the command has the descriptor; its content is the flight
)

// unwrittenFile has the ends that a supervisor could not write into the folders of their runs before it ended: a
// Status for each run, as JSON.
const unwrittenFile = "unwritten"

// ErrFolderGone says that the folder of runs was removed. Only another supervisor makes it again.
var ErrFolderGone = fmt.Errorf("%w: the folder of runs was removed", runner.ErrNotNow)

// Runs is the folder of runs. Its methods may be called from many goroutines at the same time.
type Runs struct {
	Dir  string // absolute, without symlinks
	Root *os.Root

	Locks *Locks // of the runs that may be in progress

	log *slog.Logger
	id  string // device and inode of Root
}

// Open opens the folder of runs. It makes the folder with mode 0700 when it is missing, and refuses it when other
// users may enter it. It removes the folders that an earlier process kept ready.
func Open(dir string, log *slog.Logger) (*Runs, error) {
	dir, root, err := OpenPrivate(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of runs: %w", err)
	}
	r := &Runs{Dir: dir, Root: root, Locks: &Locks{root: root, log: log}, log: log}
	if r.id, err = folderID(root); err != nil {
		return nil, fmt.Errorf("opening the folder of runs: %w", err)
	}
	if err := r.clearReady(); err != nil {
		log.Warn("removing folders that belong to no run; the next supervisor tries it again", "error", err)
	}
	return r, r.makeFolders()
}

// CheckID refuses an id that is not a plain UUID, before it is used in a path.
func CheckID(run string) error {
	if id, err := uuid.Parse(run); err != nil || id.String() != run {
		return fmt.Errorf("run %q: not a plain UUID", run)
	}
	return nil
}

// OpenPrivate makes a folder that no other user may enter, refuses an existing one that other users may enter, and
// returns its real path.
func OpenPrivate(name string) (string, *os.Root, error) {
	if err := os.MkdirAll(name, 0o700); err != nil {
		return "", nil, err
	}
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return "", nil, err
	}
	if real, err = filepath.Abs(real); err != nil {
		return "", nil, err
	}
	root, err := os.OpenRoot(real)
	if err != nil {
		return "", nil, err
	}
	info, err := root.Stat(".")
	if err != nil {
		return "", nil, errors.Join(err, root.Close())
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode().Perm()&0o077 != 0:
		err = fmt.Errorf("%s is open to others (mode %04o): chmod 0700", real, info.Mode().Perm())
	case !ok || int(owner.Uid) != os.Geteuid():
		err = fmt.Errorf("%s belongs to another user", real)
	}
	if err != nil {
		return "", nil, errors.Join(err, root.Close())
	}
	return real, root, nil
}

// folderID returns the device and inode of a folder.
func folderID(root *os.Root) (string, error) {
	info, err := root.Stat(".")
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.New("the system reports no inode")
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// makeFolders makes the folders that belong to no run.
func (r *Runs) makeFolders() error {
	for _, dir := range []string{readyDir, activeDir} {
		switch err := r.Root.Mkdir(dir, 0o700); {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w: making %s: %w", ErrFolderGone, filepath.Join(r.Dir, dir), err)
		case err != nil && !errors.Is(err, fs.ErrExist):
			return fmt.Errorf("making a folder: %w", err)
		}
	}
	// Some filesystems do not support FIFOs. There the start of the supervisor fails, instead of each run.
	trial := filepath.Join(readyDir, "trial")
	collect, command, err := makeFIFO(filepath.Join(r.Dir, trial))
	CloseFiles(collect, command)
	if err != nil {
		return fmt.Errorf("making a FIFO in the folder of runs: %w", err)
	}
	return r.Root.Remove(trial)
}

// ID identifies the folder of runs, as [Status.Folder] does. A copy of the folder has another ID.
func (r *Runs) ID() string { return r.id }

// Path returns the absolute path of a file in the folder of a run.
func (r *Runs) Path(run, name string) string { return filepath.Join(r.Dir, run, name) }

// LockPath returns the path of the lock of a run.
func (r *Runs) LockPath(run string) string { return r.Path(run, lockFile) }

// Exists reports whether a run has a folder.
func (r *Runs) Exists(run string) bool {
	_, err := r.Root.Stat(run)
	return err == nil
}

// IsGone reports whether a run certainly has no folder. If an error hides that, both IsGone and Exists return false.
func (r *Runs) IsGone(run string) bool { return hasNoFolder(r.Root, run) }

// RemoveUnstarted removes what is left of a run that had no status. A concurrent Revoke may move a folder with a
// status to the same path, if that has no folder or an empty one: that folder stays.
func (r *Runs) RemoveUnstarted(run string) error {
	if err := r.Root.Remove(run); err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := r.ReadStatus(run); !errors.Is(err, runner.ErrUnknown) {
		return err
	}
	return removeAll(r.Root, run)
}

// RemoveRun removes the folder of a run and its name in the active folder.
func (r *Runs) RemoveRun(run string) error {
	if err := removeAll(r.Root, run); err != nil {
		return err
	}
	return r.Locks.UnmarkActive(run)
}

// RemoveFIFO removes the FIFO of a run that has ended.
func (r *Runs) RemoveFIFO(run string) error {
	if err := r.Root.Remove(filepath.Join(run, FIFOFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// RemoveWork removes the working folder of a run. It removes nothing outside the folder of runs, even if the command
// left symlinks.
func (r *Runs) RemoveWork(run string) error { return removeAll(r.Root, filepath.Join(run, WorkDir)) }

// SaveUnwritten writes the ends that could not be written into the folders of their runs to a file that the next
// supervisor reads.
func (r *Runs) SaveUnwritten(ends map[string]Status) error {
	text, err := json.Marshal(ends)
	if err == nil {
		err = pathsafe.ReplaceFile(r.Root, unwrittenFile, text, 0o600, pathsafe.Synced)
	}
	return err
}

// LoadUnwritten returns the ends that SaveUnwritten wrote.
func (r *Runs) LoadUnwritten() (ends map[string]Status, err error) {
	text, err := pathsafe.ReadRegular(r.Root, unwrittenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &ends)
	}
	return ends, err
}

// RemoveUnwritten removes the file that SaveUnwritten wrote, if there is one.
func (r *Runs) RemoveUnwritten() { _ = r.Root.Remove(unwrittenFile) } // most supervisors leave none

// CloseFiles closes those of the files that are not nil.
func CloseFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // nothing was written, or it was checked
		}
	}
}

// MarkFull wraps an error that means a lack of disk space in runner.ErrFull. It is for errors of a start that left
// nothing of the run.
func MarkFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", runner.ErrFull, err)
	}
	return err
}
