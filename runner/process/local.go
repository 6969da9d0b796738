// Package process starts commands, follows them to their end and bounds what
// they write. It is the only package that touches a process.
//
// A command is started without a shell, with an explicit environment and with
// the descriptors 0, 1, 2 and the lock alone. It writes into a FIFO in the run's
// folder, which is emptied into files that keep the beginning and the end of the
// output. Nobody waits for a descriptor that a grandchild keeps. A run ends when its
// main process and all that this left behind are gone; what is left behind is ended
// with TERM, grace and KILL.
package process

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sallyport/internal/boot"
	"sallyport/internal/pathsafe"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
	"sallyport/runner/process/proctree"
	"sallyport/runner/process/rundir"
)

// Local runs commands as children of the calling process. It is a
// runner.Processes, safe for concurrent use.
type Local struct {
	runs   *rundir.Runs
	ready  *rundir.ReadyFolders
	hook   func(name string) (*hook.Hook, bool)
	log    *slog.Logger
	parent *proctree.Parent
	ends   *endings
	login  []string // HOME and so on, of the user as whom commands run

	attended atomic.Bool // a server is connected

	mu     sync.Mutex
	active map[string]*active
}

// NewLocal returns a Local that keeps the runs' folders in dir, which is made
// with mode 0700 when it is missing and refused when others may enter it. hook
// yields a hook as the file has it at that moment. Descriptors that this
// process inherited are marked close-on-exec, so that no command gets them.
func NewLocal(dir string, hook func(name string) (*hook.Hook, bool), log *slog.Logger) (*Local, error) {
	return newLocal(dir, proctree.NewParent(log), hook, log)
}

func newLocal(
	dir string, parent *proctree.Parent, hook func(name string) (*hook.Hook, bool), log *slog.Logger,
) (*Local, error) {
	runs, err := rundir.Open(dir, log)
	if err != nil {
		return nil, err
	}
	if err := sealDescriptors(); err != nil {
		return nil, fmt.Errorf("keeping descriptors from commands: %w", err)
	}
	return &Local{
		runs: runs, ready: rundir.NewReadyFolders(runs), hook: hook, log: log, parent: parent, login: loginEnv(nil),
		ends:   &endings{runs: runs, parent: parent, log: log, again: cleanUpAgain, unwritten: map[string]rundir.Status{}},
		active: map[string]*active{},
	}, nil
}

// Supervised says how a supervisor runs commands.
type Supervised struct {
	Dir      string           // the folder of runs
	Parent   *proctree.Parent // which is a subreaper, and has limited the processes of commands
	LoginEnv []string         // what LoginEnv returned in the server
	Log      *slog.Logger
	// DangerouslyUnlocked lets runs of one flight overlap after a crash.
	DangerouslyUnlocked bool
}

// NewSupervised returns a Local for a supervisor, whose orders come with their hooks ([Local.StartHook]). It has no
// two runs of a flight at once, takes over the runs that another supervisor left, and keeps folders ready.
func NewSupervised(s Supervised) (*Local, error) {
	l, err := newLocal(s.Dir, s.Parent, nil, s.Log)
	if err != nil {
		return nil, err
	}
	l.login = loginEnv(s.LoginEnv)
	if s.DangerouslyUnlocked {
		l.runs.IgnoreLocks()
	} else {
		l.ends.flights = map[string]int{}
	}
	if err := l.adopt(); err != nil {
		return nil, err
	}
	l.KeepReady()
	return l, nil
}

// KeepReady keeps folders ready for runs, as long as the process lives.
func (l *Local) KeepReady() { l.ready.KeepReady() }

// SetAttended records whether a server is connected, which records the ends of runs, too.
func (l *Local) SetAttended(attended bool) { l.attended.Store(attended) }

// HasFolder reports whether a run has a folder here.
func (l *Local) HasFolder(run string) bool { return l.runs.Exists(run) }

// IsBusy reports whether a run is in progress, or an end not on disk.
func (l *Local) IsBusy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.active) > 0 || !l.ends.allWritten()
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

// Start starts the command of the order's hook and returns once it runs, or
// why it does not. A run that has a folder already is refused, so that no id
// ever runs twice.
func (l *Local) Start(o runner.Order) error {
	h, ok := l.hook(o.Hook)
	if !ok {
		return fmt.Errorf("starting run %s: there is no hook %q", o.Run, o.Hook)
	}
	return l.StartHook(h, o)
}

// StartHook is Start for the hook that the order means.
func (l *Local) StartHook(h *hook.Hook, o runner.Order) error {
	if err := rundir.CheckID(o.Run); err != nil {
		return fmt.Errorf("%w: %w", runner.ErrRefused, err)
	}
	argv, err := h.Argv(o.Values)
	if err != nil {
		return fmt.Errorf("starting run %s: %w: %w", o.Run, runner.ErrRefused, err)
	}
	flight := h.Flight(o.Values)
	if err := l.ends.reserveFlight(flight); err != nil {
		return fmt.Errorf("starting run %s: %w", o.Run, err)
	}
	a := newActive(l, rundir.Status{
		Run: o.Run, Folder: l.runs.ID(), Hook: o.Hook, Caller: o.Caller, Flight: flight, Created: o.Created, Started: time.Now(), Up: boot.Uptime(),
		Bounds: rundir.Bounds{Timeout: h.Timeout, Grace: h.Grace, Head: int64(h.Output.Head), Tail: max(int64(h.Output.Tail), 1)},
	})
	a.status.Cgroup = l.parent.CgroupOf(o.Run)
	f, stdin, err := l.prepare(a, h, o)
	if err != nil {
		l.ends.releaseFlight(flight)
		return rundir.MarkFull(err)
	}
	defer rundir.CloseFiles(stdin)
	defer f.Discard() // but not what a has taken
	if err := l.launch(a, f, h, argv, stdin, o); err != nil {
		f.Discard() // with it the lock
		l.takeBack(a, err)
		return fmt.Errorf("starting run %s: %w", o.Run, err)
	}
	return nil
}

// prepare gives a run its folder, and its command an input. Folders of ours that
// somebody removed are made again.
func (l *Local) prepare(a *active, h *hook.Hook, o runner.Order) (*rundir.Folder, *os.File, error) {
	f, stdin, err := l.prepareOnce(a, h, o)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, stdin, err
	}
	runs, _ := l.List() // no error comes from a Local
	if err := l.ready.Restore(runs); err != nil {
		return nil, nil, err
	}
	return l.prepareOnce(a, h, o)
}

func (l *Local) prepareOnce(a *active, h *hook.Hook, o runner.Order) (*rundir.Folder, *os.File, error) {
	f, err := l.ready.Take()
	if err != nil {
		return nil, nil, err
	}
	stdin, err := openStdin(f.Root, h, o)
	if err == nil {
		err = f.MoveIn(&a.status)
	}
	if err != nil {
		rundir.CloseFiles(stdin)
		f.Discard()
		return nil, nil, err
	}
	return f, stdin, nil
}

// takeBack removes what there is of a run whose command could not be started, so
// that the same run may be started later. Where that cannot be done, the run is
// over.
func (l *Local) takeBack(a *active, reason error) {
	run := a.status.Run
	if err := l.runs.RemoveRun(run); err != nil {
		l.log.Error("removing a run whose command could not be started", "run", run, "error", err)
		a.status.Started = time.Time{}
		a.status.End = runner.End{Ended: time.Now(), Error: cause(reason)}
		l.conclude(a)
		return
	}
	l.ends.releaseFlight(a.status.Flight)
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
func (l *Local) launch(a *active, f *rundir.Folder, h *hook.Hook, argv []string, stdin *os.File, o runner.Order) error {
	err := a.spawn(h, argv, environ(l.login, h, o), stdin, f.Command, f.Lock)
	rundir.CloseFiles(f.Command, f.Lock) // before follow: from now on only the tree holds the lock
	f.Command, f.Lock = nil, nil
	if err != nil {
		return err
	}
	a.output = output.Collect(l.runs, l.log, f, &a.status)
	a.status.Started, a.status.Up = time.Now(), boot.Uptime()
	l.mu.Lock()
	l.active[o.Run] = a
	l.mu.Unlock()
	go a.follow()
	return nil
}

// Follow yields the end of a run once, and is closed. A run that ended before
// is answered from its folder; one that has a folder and that nobody follows,
// because a crash of the machine lost what tells of it, or whose status it
// garbled, is over, and nobody saw its end. Errors wrap runner.ErrUnknown when the run is not here.
func (l *Local) Follow(run string) (<-chan runner.End, error) {
	ends, _, err := l.FollowUntil(run)
	return ends, err
}

// FollowUntil is Follow, and returns how to leave before the end.
func (l *Local) FollowUntil(run string) (ends <-chan runner.End, leave func(), err error) {
	if err := rundir.CheckID(run); err != nil {
		return nil, nil, fmt.Errorf("following: %w", err)
	}
	follower := make(chan runner.End, 1)
	leave = func() { l.removeFollower(run, follower) }
	if l.addFollower(run, follower) {
		return follower, leave, nil
	}
	s, err := l.ends.recorded(run)
	if err != nil {
		return nil, nil, err
	}
	end := s.Result()
	if s.Ended.IsZero() {
		if l.addFollower(run, follower) { // it was being started just now
			return follower, leave, nil
		}
		end = runner.End{Ended: time.Now(), Reason: runner.Interrupted}
	}
	follower <- end
	close(follower)
	return follower, leave, nil
}

// addFollower has a run in progress tell its end, and reports whether there is one.
func (l *Local) addFollower(run string, follower chan<- runner.End) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, ok := l.active[run]
	if ok {
		a.followers = append(a.followers, follower)
	}
	return ok
}

func (l *Local) removeFollower(run string, follower chan<- runner.End) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.active[run]; ok {
		a.followers = slices.DeleteFunc(a.followers, func(f chan<- runner.End) bool { return f == follower })
	}
}

// Known tells whether a run was ever given to Start.
func (l *Local) Known(run string) (bool, error) {
	err := l.Find(run)
	if errors.Is(err, runner.ErrUnknown) {
		return false, nil
	}
	return err == nil, err
}

// Find returns nil for a run that is known, or an error that wraps runner.ErrUnknown.
func (l *Local) Find(run string) error {
	if err := rundir.CheckID(run); err != nil {
		return fmt.Errorf("looking up: %w", err)
	}
	l.mu.Lock()
	_, active := l.active[run]
	l.mu.Unlock()
	if active {
		return nil
	}
	_, err := l.ends.recorded(run)
	return err
}

// Stop ends a run's whole tree: TERM, grace, KILL. It returns at once. Grace
// below zero means the hook's own; a second Stop may shorten the grace but
// changes nothing else. A run that is over already is no error.
func (l *Local) Stop(run string, why runner.State, grace time.Duration) error {
	if err := rundir.CheckID(run); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	l.mu.Lock()
	a, ok := l.active[run]
	l.mu.Unlock()
	if !ok {
		if _, err := l.runs.ReadStatus(run); !errors.Is(err, rundir.ErrCorrupt) {
			return err
		}
		return nil
	}
	select {
	case a.stop <- stopping{why: why, grace: grace}:
	case <-a.done:
	}
	return nil
}

// Revoke is that of runner.Processes.
func (l *Local) Revoke(run string, why runner.State) (revoked bool, err error) {
	return rundir.Revoke(l.runs.Root, run, why)
}

// Output opens the output of a run. Errors are those of [output.Open]. The caller closes it.
func (l *Local) Output(run string) (*output.Reader, error) { return output.Open(l.runs.Dir, run) }

// List names the runs that are under way, in order.
func (l *Local) List() ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.active)), nil
}

// tidyTime is how long who waits for the end of a run waits too until what the
// command left in its working folder is removed. That may be anything.
const tidyTime = time.Second

// conclude records the end of a run, frees its flight and tells its followers,
// in this order: who learns the end may start the next run of the flight.
func (l *Local) conclude(a *active) {
	run := a.status.Run
	durability := pathsafe.Synced
	if l.attended.Load() { // then the server records the end, and a second sync would slow short runs down
		durability = pathsafe.Whole
	}
	l.ends.write(&a.status, durability)
	select {
	case <-l.ends.freeFlight(run, a.status.Flight):
	case <-time.After(tidyTime):
	}
	if !a.status.KillAt.IsZero() && l.parent.Reaps() {
		l.parent.Reap() // perhaps hundreds, which would be in the way of the next command
	}
	l.mu.Lock()
	delete(l.active, run)
	followers := a.followers
	l.mu.Unlock()
	close(a.done)
	for _, ends := range followers {
		ends <- a.status.Result()
		close(ends)
	}
	l.parent.ReapSoon()
}
