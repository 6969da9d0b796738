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

	"golang.org/x/sys/unix"

	"sallyport/runner"
)

const (
	readyDir   = "ready" // folders that no run has yet
	readyCount = 16
)

// errFolderGone says that somebody removed the folder of runs. Only another
// supervisor makes it again.
var errFolderGone = fmt.Errorf("%w: the folder of runs was removed", runner.ErrNotNow)

// folder is that of a run. It is made without knowing the run and moved to its
// place whole, because making files takes most filesystems longer than starting
// a process takes: with a supply of folders, a start makes none.
type folder struct {
	root *os.Root
	name string // in readyDir; empty once it was moved

	lock    *os.File // for the command; taken, and open for reading alone
	output  *os.File // for the collector
	fifo    *os.File // likewise, to be read without blocking
	command *os.File // the FIFO for the command
	flight  *os.File // the lock again, empty
	status  *os.File // empty
}

// files are those that are open.
func (f *folder) files() []*os.File {
	return []*os.File{f.lock, f.output, f.fifo, f.command, f.flight, f.status}
}

// discard closes what is open, and removes a folder that was not moved. Doing
// it twice does no harm.
func (l *Local) discard(f *folder) {
	closeAll(f.files()...)
	if f.root != nil {
		_ = f.root.Close()
	}
	if f.name == "" {
		return
	}
	if err := l.root.RemoveAll(filepath.Join(readyDir, f.name)); err != nil {
		l.log.Debug("removing a folder that no run has", "error", err)
	}
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // nothing was written, or it was checked
		}
	}
}

// makeFolder makes a folder for some run.
func (l *Local) makeFolder() (*folder, error) {
	f := &folder{name: rand.Text()}
	if err := l.fillFolder(f); err != nil {
		l.discard(f)
		return nil, fmt.Errorf("making the folder of a run: %w", err)
	}
	return f, nil
}

func (l *Local) fillFolder(f *folder) (err error) {
	if err := l.root.Mkdir(filepath.Join(readyDir, f.name), 0o700); err != nil {
		return err
	}
	if f.root, err = l.root.OpenRoot(filepath.Join(readyDir, f.name)); err != nil {
		return err
	}
	if err := f.root.Mkdir(workDir, 0o700); err != nil {
		return err
	}
	const fresh = os.O_CREATE | os.O_EXCL | os.O_WRONLY
	if f.status, err = f.root.OpenFile(statusFile, fresh, 0o600); err != nil {
		return err
	}
	if f.flight, err = f.root.OpenFile(lockFile, fresh, 0o600); err != nil {
		return err
	}
	// What a program writes to a descriptor that it did not open stays out of
	// the lock.
	if f.lock, err = f.root.Open(lockFile); err != nil {
		return err
	}
	if err := unix.Flock(int(f.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if f.output, err = f.root.OpenFile(outputFile, fresh, 0o600); err != nil {
		return err
	}
	f.fifo, f.command, err = makeFIFO(filepath.Join(l.dir, readyDir, f.name, fifoFile))
	return err
}

// takeFolder returns a folder from the supply, or a new one.
func (l *Local) takeFolder() (*folder, error) {
	select {
	case f := <-l.ready:
		select {
		case l.refill <- struct{}{}:
		default: // that was said already
		}
		return f, nil
	default:
		return l.makeFolder()
	}
}

// supply keeps folders ready for as long as the process lives. It waits a
// little before it makes one, so as not to be in the way of the start that took
// the last.
func (l *Local) supply() {
	l.ready, l.refill = make(chan *folder, readyCount), make(chan struct{}, 1)
	ready, refill := l.ready, l.refill
	go func() {
		for {
			for len(ready) < readyCount {
				f, err := l.makeFolder()
				if err != nil { // a start will tell
					<-time.After(time.Second)
					continue
				}
				ready <- f
			}
			<-refill
			<-time.After(2 * time.Millisecond)
		}
	}()
}

// moveIn makes f the folder of the run that s describes: s and the flight are
// in it before it stands there, and before that the lock is among the active
// ones, so that no crash leaves a command that nobody looks for, nor a status
// that is half written. A run that has a folder is fs.ErrExist.
func (l *Local) moveIn(f *folder, s *Status) error {
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
	from, mark := filepath.Join(readyDir, f.name), filepath.Join(activeDir, s.Run)
	err = l.root.Link(filepath.Join(from, lockFile), mark)
	if errors.Is(err, fs.ErrExist) && isGone(l.root, s.Run) && !l.held(s.Run) { // left by a start that failed
		err = errors.Join(l.root.Remove(mark), l.root.Link(filepath.Join(from, lockFile), mark))
	}
	if err != nil {
		return fmt.Errorf("naming the lock of a run: %w", err)
	}
	// Never onto another: no run's folder is empty.
	if err := l.root.Rename(from, s.Run); err != nil {
		return errors.Join(fmt.Errorf("making the folder of a run: %w", err), l.root.Remove(mark))
	}
	f.name = ""
	return nil
}

// prepare gives a run its folder, and its command an input. Folders of ours that
// somebody removed are made again.
func (l *Local) prepare(a *active, hook *runner.Hook, o runner.Order) (*folder, *os.File, error) {
	f, stdin, err := l.prepareOnce(a, hook, o)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, stdin, err
	}
	if err := l.restoreFolders(); err != nil {
		return nil, nil, err
	}
	return l.prepareOnce(a, hook, o)
}

func (l *Local) prepareOnce(a *active, hook *runner.Hook, o runner.Order) (*folder, *os.File, error) {
	f, err := l.takeFolder()
	if err != nil {
		return nil, nil, err
	}
	stdin, err := openStdin(f.root, hook, o)
	if err == nil {
		err = l.moveIn(f, &a.status)
	}
	if err != nil {
		closeAll(stdin)
		l.discard(f)
		return nil, nil, err
	}
	return f, stdin, nil
}

// removeRun removes the folder of a run and its mark.
func (l *Local) removeRun(run string) error {
	if err := removeAll(l.root, run); err != nil {
		return err
	}
	if err := l.root.Remove(filepath.Join(activeDir, run)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// restoreFolders makes the folders again that belong to no run, and gives the
// runs under way their marks back.
func (l *Local) restoreFolders() error {
	l.log.Error("the folders that runs are started from were removed; they are made again", "dir", l.dir)
	for range len(l.ready) {
		select {
		case f := <-l.ready:
			l.discard(f)
		default: // somebody else took it
		}
	}
	if err := l.makeFolders(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for run := range l.active {
		err := l.root.Link(filepath.Join(run, lockFile), filepath.Join(activeDir, run))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, fmt.Errorf("marking run %s: %w", run, err))
		}
	}
	return errors.Join(errs...)
}

// clearReady removes what an earlier process kept ready.
func (l *Local) clearReady() error {
	if err := l.root.RemoveAll(readyDir); err != nil {
		return fmt.Errorf("removing folders that no run has: %w", err)
	}
	return l.makeFolders()
}

func (l *Local) makeFolders() error {
	for _, dir := range []string{readyDir, activeDir} {
		switch err := l.root.Mkdir(dir, 0o700); {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w: making %s: %w", errFolderGone, filepath.Join(l.dir, dir), err)
		case err != nil && !errors.Is(err, fs.ErrExist):
			return fmt.Errorf("making a folder: %w", err)
		}
	}
	// Some filesystems have no FIFOs. The start shall fail there, and not each run.
	trial := filepath.Join(readyDir, "trial")
	collect, command, err := makeFIFO(filepath.Join(l.dir, trial))
	closeAll(collect, command)
	if err != nil {
		return fmt.Errorf("making a FIFO in the folder of runs: %w", err)
	}
	return l.root.Remove(trial)
}
