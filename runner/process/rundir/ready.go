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
	readyDir   = "ready" // folders that no run has yet
	readyCount = 16
)

// Folder is that of a run. It is made without knowing the run and moved to its
// place as a whole, because making files takes most filesystems longer than starting
// a process takes: with folders that are ready, a start makes none.
type Folder struct {
	Root    *os.Root
	Lock    *os.File // for the command; locked, and open for reading alone
	Output  *os.File // for the collector
	FIFO    *os.File // likewise, to be read without blocking
	Command *os.File // the FIFO for the command

	runs   *Runs
	name   string   // in readyDir; empty once it was moved
	flight *os.File // the lock again, empty
	status *os.File // empty
}

// Discard closes what is open, and removes a folder that was not moved. Doing
// it twice does no harm.
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

// makeFolder makes a folder for some run.
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
	// What a program writes to a descriptor that it did not open stays out of
	// the lock.
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

// MoveIn makes f the folder of the run that s describes: s and the flight are
// in it before it stands there, and before that the lock is among the active
// ones, so that no crash leaves a command without a name that the next supervisor
// looks for, nor a status that is half written. A run that has a folder is fs.ErrExist.
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
	if errors.Is(err, fs.ErrExist) && r.IsGone(s.Run) && !r.IsLocked(s.Run) { // left by a start that failed
		err = errors.Join(r.Root.Remove(mark), r.Root.Link(filepath.Join(from, lockFile), mark))
	}
	if err != nil {
		return fmt.Errorf("naming the lock of a run: %w", err)
	}
	// Never onto another: no run's folder is empty.
	if err := r.Root.Rename(from, s.Run); err != nil {
		return errors.Join(fmt.Errorf("making the folder of a run: %w", err), r.Root.Remove(mark))
	}
	f.name = ""
	return nil
}

// ReadyFolders has folders for runs. It makes each when it is asked for, and ahead once KeepReady was called.
type ReadyFolders struct {
	runs   *Runs
	ready  chan *Folder
	refill chan struct{}
}

// NewReadyFolders returns a ReadyFolders that has none yet.
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

// KeepReady makes folders ahead for as long as the process lives. It waits a
// little before it makes one, so as not to delay the start that took the last.
func (p *ReadyFolders) KeepReady() {
	go func() {
		for {
			for len(p.ready) < readyCount {
				f, err := p.runs.makeFolder()
				if err != nil { // which a start reports
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

// Restore makes the folders again that belong to no run, after somebody removed them, and gives the runs in
// progress their names among the active ones back.
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
		errs = append(errs, p.runs.MarkActive(run))
	}
	return errors.Join(errs...)
}
