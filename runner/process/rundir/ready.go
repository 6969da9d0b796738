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

	"golang.org/x/sys/unix"
)

const (
	readyDir   = "ready" // folders that belong to no run yet
	readyCount = 16
)

// Folder is the folder of a run. It is made before the run is known and then renamed to its place as a whole. On most
// filesystems it takes longer to make files than to start a process; with folders that are ready, a start makes no
// files.
type Folder struct {
	Root    *os.Root
	Lock    *os.File // for the command; locked, and open for reading only
	Output  *os.File // for the collector
	FIFO    *os.File // for the collector, in non-blocking mode
	Command *os.File // the FIFO for the command

	runs   *Runs
	name   string   // in readyDir; empty once the folder was moved
	flight *os.File // the lock file, open for writing; empty
	status *os.File // empty
}

// Discard closes the open files, and removes a folder that was not moved. It may be called twice.
func (f *Folder) Discard() {
	CloseFiles(f.Lock, f.Output, f.FIFO, f.Command, f.flight, f.status)
	if f.Root != nil {
		_ = f.Root.Close()
	}
	if f.name == "" {
		return
	}
	if err := f.runs.Root.RemoveAll(filepath.Join(readyDir, f.name)); err != nil {
		f.runs.log.Debug("removing a folder that no run has", "error", err)
	}
}

// makeFolder makes a folder for a run that is not known yet.
func (r *Runs) makeFolder() (*Folder, error) {
	f := &Folder{runs: r, name: rand.Text()}
	if err := f.makeFiles(); err != nil {
		f.Discard()
		return nil, fmt.Errorf("making the folder of a run: %w", err)
	}
	return f, nil
}

func (f *Folder) makeFiles() (err error) {
	root := f.runs.Root
	if err := root.Mkdir(filepath.Join(readyDir, f.name), 0o700); err != nil {
		return err
	}
	if f.Root, err = root.OpenRoot(filepath.Join(readyDir, f.name)); err != nil {
		return err
	}
	if err := f.Root.Mkdir(WorkDir, 0o700); err != nil {
		return err
	}
	const fresh = os.O_CREATE | os.O_EXCL | os.O_WRONLY
	if f.status, err = f.Root.OpenFile(statusFile, fresh, 0o600); err != nil {
		return err
	}
	if f.flight, err = f.Root.OpenFile(lockFile, fresh, 0o600); err != nil {
		return err
	}
	// The lock is opened for reading only, because the command inherits this descriptor and could write into the
	// lock.
	if f.Lock, err = f.Root.Open(lockFile); err != nil {
		return err
	}
	if err := unix.Flock(int(f.Lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if f.Output, err = f.Root.OpenFile(OutputFile, fresh, 0o600); err != nil {
		return err
	}
	f.FIFO, f.Command, err = makeFIFO(filepath.Join(f.runs.Dir, readyDir, f.name, FIFOFile))
	return err
}

// MoveIn makes f the folder of the run that s describes. It writes s and the flight into the folder first, then links
// the lock into the active folder, and then renames the folder. So a crash leaves no command without a name that the
// next supervisor looks for, and no status that is half written. If the run has a folder already, the error is
// fs.ErrExist.
func (f *Folder) MoveIn(s *Status) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding a status: %w", err)
	}
	if _, err := f.status.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("writing a status: %w", err)
	}
	if _, err := f.flight.WriteString(s.Flight); err != nil {
		return fmt.Errorf("writing a lock: %w", err)
	}
	r := f.runs
	from, mark := filepath.Join(readyDir, f.name), filepath.Join(activeDir, s.Run)
	err = r.Root.Link(filepath.Join(from, lockFile), mark)
	// an earlier start that failed left the name
	if errors.Is(err, fs.ErrExist) && r.IsGone(s.Run) && !r.Locks.IsHeld(s.Run) {
		err = errors.Join(r.Root.Remove(mark), r.Root.Link(filepath.Join(from, lockFile), mark))
	}
	if err != nil {
		return fmt.Errorf("naming the lock of a run: %w", err)
	}
	// This never replaces the folder of a run: a rename replaces only an empty folder, and the folder of a run has its
	// status from the beginning, also that of a revoked run.
	if err := r.Root.Rename(from, s.Run); err != nil {
		return errors.Join(fmt.Errorf("making the folder of a run: %w", err), r.Root.Remove(mark))
	}
	f.name = ""
	return nil
}

// ReadyFolders provides folders for runs. It makes each one when it is requested, and in advance once KeepReady was
// called.
type ReadyFolders struct {
	runs   *Runs
	ready  chan *Folder
	refill chan struct{}
}

// NewReadyFolders returns a ReadyFolders with no folders yet.
func NewReadyFolders(r *Runs) *ReadyFolders {
	return &ReadyFolders{runs: r, ready: make(chan *Folder, readyCount), refill: make(chan struct{}, 1)}
}

// Take returns a folder that is ready, or a new one.
func (p *ReadyFolders) Take() (*Folder, error) {
	select {
	case f := <-p.ready:
		select {
		case p.refill <- struct{}{}:
		default: // one request is enough
		}
		return f, nil
	default:
		return p.runs.makeFolder()
	}
}

// KeepReady makes folders in advance for as long as the process lives. It waits a little before it makes one, so that
// it does not delay the start that took the last one.
func (p *ReadyFolders) KeepReady() {
	go func() {
		for {
			for len(p.ready) < readyCount {
				f, err := p.runs.makeFolder()
				if err != nil { // a start reports the same error
					<-time.After(time.Second)
					continue
				}
				p.ready <- f
			}
			<-p.refill
			<-time.After(2 * time.Millisecond)
		}
	}()
}

// clearReady removes the folders that an earlier process kept ready. At the same time, a server may give a folder in
// there its place, as that of a revoked run. Therefore each folder gets another name before it is emptied: Revoke then
// finds either no folder or a whole one.
func (r *Runs) clearReady() error {
	dir, err := r.Root.Open(readyDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	errs := []error{err, dir.Close()}
	for _, name := range names {
		aside := filepath.Join(readyDir, rand.Text())
		err := r.Root.Rename(filepath.Join(readyDir, name), aside)
		switch {
		case err == nil:
			errs = append(errs, r.Root.RemoveAll(aside))
		case !errors.Is(err, fs.ErrNotExist): // else Revoke gave it its place
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Restore makes the folders that belong to no run again, after they were removed. It also gives the runs in progress
// their names in the active folder again.
func (p *ReadyFolders) Restore(active []string) error {
	p.runs.log.Error("the folders that runs are started from were removed; they are made again", "dir", p.runs.Dir)
	for range len(p.ready) {
		select {
		case f := <-p.ready:
			f.Discard()
		default: // a start took it
		}
	}
	if err := p.runs.makeFolders(); err != nil {
		return err
	}
	var errs []error
	for _, run := range active {
		errs = append(errs, p.runs.Locks.MarkActive(run))
	}
	return errors.Join(errs...)
}
