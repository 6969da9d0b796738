// Package process starts commands, follows them to their end and bounds what
// they write. It is the only package that touches a process.
//
// A command is started without a shell, with an explicit environment and with
// the descriptors 0, 1, 2 and the lock alone. It writes into a file of its own,
// so nobody has to be alive to read along, and nobody waits for a descriptor
// that a grandchild keeps. A run ends when its main process and all that this
// left behind are gone; what is left behind is ended with TERM, grace and KILL.
package process

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"sallyport/runner"
)

// ErrUnknown says that no run of that id is known here.
var ErrUnknown = errors.New("unknown run")

// Local runs commands as children of the calling process. It is a
// runner.Processes, safe for concurrent use.
type Local struct {
	dir     string // absolute; a folder for each run
	root    *os.Root
	hook    func(name string) (*runner.Hook, bool)
	log     *slog.Logger
	punch   bool   // the filesystem can free the middle of a file
	cgroups string // where a run's cgroup is made; empty where that cannot be

	spawning sync.RWMutex // read: between the birth of a main process and its entry in active
	mu       sync.Mutex
	active   map[string]*active
}

// NewLocal returns a Local that keeps the runs' folders in dir, which is made
// with mode 0700 when it is missing and refused when others may enter it. hook
// yields a hook as the file has it at that moment. Descriptors that this
// process inherited are marked close-on-exec, so that no command gets them.
func NewLocal(dir string, hook func(name string) (*runner.Hook, bool), log *slog.Logger) (*Local, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding the folder of runs: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of runs: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of runs: %w", err)
	}
	info, err := root.Stat(".")
	if err != nil {
		return nil, fmt.Errorf("reading the folder of runs: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("the folder of runs %s is open to others (mode %04o): chmod 0700", dir, perm)
	}
	if err := sealDescriptors(); err != nil {
		return nil, fmt.Errorf("keeping descriptors from commands: %w", err)
	}
	l := &Local{dir: dir, root: root, hook: hook, log: log, active: map[string]*active{}}
	if l.punch, err = canPunch(root); err != nil {
		return nil, fmt.Errorf("trying the folder of runs: %w", err)
	}
	if !l.punch {
		log.Info("the filesystem of the runs cannot free the middle of a file, so outputs go through a pipe", "dir", dir)
	}
	if l.cgroups, err = findCgroups(); err != nil {
		log.Info("no cgroup for each run, so what a command leaves behind is looked for among all processes", "error", err)
	}
	return l, nil
}

// sealDescriptors marks what this process inherited beyond stdin, stdout and
// stderr. What Go opens is marked from the start.
func sealDescriptors() error {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// checkID refuses what is no plain UUID before it becomes a path.
func checkID(run string) error {
	if id, err := uuid.Parse(run); err != nil || id.String() != run {
		return fmt.Errorf("run %q: no plain UUID", run)
	}
	return nil
}

// Start starts the command of the order's hook and returns once it runs, or
// why it does not. A run that has a folder already is refused, so that no id
// ever runs twice.
func (l *Local) Start(o runner.Order) error {
	hook, ok := l.hook(o.Hook)
	if !ok {
		return fmt.Errorf("starting run %s: there is no hook %q", o.Run, o.Hook)
	}
	if err := checkID(o.Run); err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	argv, err := hook.Argv(o.Values)
	if err != nil {
		return fmt.Errorf("starting run %s: %w", o.Run, err)
	}
	if err := l.root.Mkdir(o.Run, 0o700); err != nil {
		return fmt.Errorf("making the folder of a run: %w", err)
	}
	a := &active{
		local: l, hook: hook,
		status: Status{Run: o.Run, Hook: o.Hook, Caller: o.Caller, Created: o.Created},
		stop:   make(chan stopping), done: make(chan struct{}),
	}
	if err := l.launch(a, argv, o); err != nil {
		a.status.End = runner.End{Ended: time.Now(), Error: cause(err)}
		if err := l.writeStatus(&a.status, true); err != nil {
			l.log.Error("recording a run that did not start", "run", o.Run, "error", err)
		}
		return fmt.Errorf("starting run %s: %w", o.Run, err)
	}
	return nil
}

// cause is the system's own word for an error, without the paths around it:
// callers may read it.
func cause(err error) string {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno.Error()
	}
	return "the run could not be prepared"
}

// launch starts the command and leaves a goroutine that follows it.
func (l *Local) launch(a *active, argv []string, o runner.Order) error {
	files, err := a.open(o)
	if err != nil {
		files.close()
		return err
	}
	l.spawning.RLock()
	defer l.spawning.RUnlock()
	err = a.spawn(argv, environ(a.hook, o), files)
	files.close() // before follow: from now on the lock tells of the tree alone
	if err != nil {
		a.output.abandon()
		return err
	}
	a.status.Started = time.Now()
	l.mu.Lock()
	l.active[o.Run] = a
	l.mu.Unlock()
	go a.follow()
	return nil
}

// Follow yields the end of a run once, and is closed. A run that ended before
// is answered from its folder. Errors wrap ErrUnknown when the run is not here
// or was followed by a process that is gone.
func (l *Local) Follow(run string) (<-chan runner.End, error) {
	if err := checkID(run); err != nil {
		return nil, fmt.Errorf("following: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	ends := make(chan runner.End, 1)
	if a, ok := l.active[run]; ok {
		a.followers = append(a.followers, ends)
		return ends, nil
	}
	s, err := l.readStatus(run)
	if err != nil {
		return nil, err
	}
	if s.Ended.IsZero() {
		return nil, fmt.Errorf("following run %s: %w: nobody saw its end", run, ErrUnknown)
	}
	ends <- s.end()
	close(ends)
	return ends, nil
}

// Stop ends a run's whole tree: TERM, grace, KILL. It returns at once. Grace
// below zero means the hook's own; a second Stop may shorten the grace but
// changes nothing else. A run that is over already is no error.
func (l *Local) Stop(run string, why runner.State, grace time.Duration) error {
	if err := checkID(run); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	l.mu.Lock()
	a, ok := l.active[run]
	l.mu.Unlock()
	if !ok {
		_, err := l.readStatus(run)
		return err
	}
	select {
	case a.stop <- stopping{why: why, grace: grace}:
	case <-a.done:
	}
	return nil
}

// List names the runs that are under way, in order.
func (l *Local) List() ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.active)), nil
}

// Remove deletes the folder of a run that is over. A run that is not there is
// no error.
func (l *Local) Remove(run string) error {
	if err := checkID(run); err != nil {
		return fmt.Errorf("removing: %w", err)
	}
	l.mu.Lock()
	_, ok := l.active[run]
	l.mu.Unlock()
	if ok {
		return fmt.Errorf("removing run %s: it is under way", run)
	}
	if err := l.root.RemoveAll(run); err != nil {
		return fmt.Errorf("removing run %s: %w", run, err)
	}
	return nil
}

// finish records the end of a run and tells its followers.
func (l *Local) finish(a *active) {
	if err := l.writeStatus(&a.status, true); err != nil {
		l.log.Error("recording the end of a run", "run", a.status.Run, "error", err)
	}
	if err := l.root.Remove(filepath.Join(a.status.Run, workDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Debug("leaving a run's working folder", "run", a.status.Run, "error", err)
	}
	l.mu.Lock()
	delete(l.active, a.status.Run)
	followers := a.followers
	l.mu.Unlock()
	close(a.done)
	for _, ends := range followers {
		ends <- a.status.end()
		close(ends)
	}
	l.reap()
}

// mains are the pids whose end somebody waits for.
func (l *Local) mains() map[int]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	pids := make(map[int]bool, len(l.active))
	for _, a := range l.active {
		pids[a.status.PID] = true
	}
	return pids
}
