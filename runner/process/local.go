// Package process starts commands, follows them to their end and stops them.
//
// [Local] holds the runs in progress ([NewLocal], or [NewSupervised] in the supervisor). A command is started without a
// shell, with an explicit environment and with the descriptors 0, 1, 2 and the lock of its run only. It writes into a
// FIFO in the folder of the run (package [sallyport/runner/process/rundir]), which a collector empties (package
// [sallyport/runner/process/output]). A run ends when its main process and all processes that it left behind have ended
// (package [sallyport/runner/process/proctree]). Processes that are left behind get TERM, and KILL after the grace. A
// descriptor that a grandchild keeps open delays nothing.
//
// Invariants:
//
//   - No command starts while a process holds the lock of a run of the same flight, whatever the server says.
//   - One goroutine follows each run, and only that goroutine changes its status.
//   - The end of a run is on the disk before its flight is free. Then its working folder is removed.
//
// Failures: if this process is killed at any step, the lock and the status of each run stay in its folder, and the next
// process adopts the run from there. It cannot learn the exit code any more. An end that cannot be written is kept
// elsewhere until it can.
package process

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"sallyport/internal/boot"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
	"sallyport/runner/process/proctree"
	"sallyport/runner/process/rundir"
)

// Local runs commands as children of the calling process. It implements runner.Processes and is safe for concurrent
// use.
type Local struct {
	runs   *rundir.Runs
	ready  *rundir.ReadyFolders
	hook   func(name string) (*hook.Hook, bool)
	log    *slog.Logger
	parent *proctree.Parent
	ends   *endings
	login  []string // HOME and so on of the user that runs the commands

	attended atomic.Bool // a server is connected

	active activeRuns
}

// NewLocal returns a Local that keeps the folders of runs in dir. It makes dir with mode 0700 when it is missing, and
// refuses it when other users may enter it. hook returns a hook as it is in the file at that moment. Descriptors that
// this process inherited are marked close-on-exec, so that no command gets them.
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
		runs: runs, ready: rundir.NewReadyFolders(runs), hook: hook, log: log, parent: parent,
		login: loginEnvironment(nil),
		ends: &endings{
			runs: runs, parent: parent, log: log, again: cleanUpAgain,
			unwritten: map[string]rundir.Status{},
		},
	}, nil
}

// Supervised configures how a supervisor runs commands.
type Supervised struct {
	Dir      string           // the folder of runs
	Parent   *proctree.Parent // a subreaper that limits the processes of commands
	LoginEnv []string         // what LoginEnv returned in the server
	Log      *slog.Logger
	// DangerouslyUnlocked lets runs of one flight overlap after a crash.
	DangerouslyUnlocked bool
}

// NewSupervised returns a Local for a supervisor, which gets each order with its hook ([Local.StartHook]). It never
// runs two runs of a flight at the same time, takes over the runs that another supervisor left, and keeps folders
// ready.
func NewSupervised(s Supervised) (*Local, error) {
	l, err := newLocal(s.Dir, s.Parent, nil, s.Log)
	if err != nil {
		return nil, err
	}
	l.login = loginEnvironment(s.LoginEnv)
	if s.DangerouslyUnlocked {
		l.runs.Locks.Ignore()
	} else {
		l.ends.holders = map[string]holder{}
	}
	if err := l.adoptRuns(); err != nil {
		return nil, err
	}
	l.KeepReady()
	return l, nil
}

// KeepReady keeps folders ready for runs, as long as the process lives.
func (l *Local) KeepReady() { l.ready.KeepReady() }

// SetAttended records whether a server is connected. A connected server records the ends of runs, too.
func (l *Local) SetAttended(attended bool) { l.attended.Store(attended) }

// HasFolder reports whether a run has a folder here.
func (l *Local) HasFolder(run string) bool { return l.runs.Exists(run) }

// IsBusy reports whether a run is in progress, or an end is not on disk yet.
func (l *Local) IsBusy() bool {
	return len(l.active.listIDs()) > 0 || !l.ends.allWritten()
}

// sealDescriptors marks the descriptors above 2 that this process inherited as close-on-exec. Go marks those that it
// opens itself.
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

// Start starts the command of the order's hook. It returns once the command runs, or with the error why it does not
// run. A run that has a folder already is refused, so that no id runs twice.
func (l *Local) Start(o runner.Order) error {
	h, ok := l.hook(o.Hook)
	if !ok {
		return fmt.Errorf("starting run %s: unknown hook %q", o.Run, o.Hook)
	}
	return l.StartHook(h, o)
}

// StartHook is Start with the hook of the order.
func (l *Local) StartHook(h *hook.Hook, o runner.Order) error {
	if err := rundir.CheckID(o.Run); err != nil {
		return fmt.Errorf("%w: %w", runner.ErrRefused, err)
	}
	argv, err := h.Argv(o.Values)
	if err != nil {
		return fmt.Errorf("starting run %s: %w: %w", o.Run, runner.ErrRefused, err)
	}
	flight := h.Flight(o.Values)
	if err := l.ends.reserveFlight(h, flight, o); err != nil {
		return fmt.Errorf("starting run %s: %w", o.Run, err)
	}
	a := newActive(l, rundir.Status{
		Run: o.Run, Folder: l.runs.ID(), Hook: o.Hook, Caller: o.Caller, Flight: flight, Values: o.Values,
		Created: o.Created, Started: time.Now(), Up: boot.Uptime(),
		Bounds: rundir.Bounds{
			Timeout: h.Timeout, Grace: h.Grace, Head: int64(h.Output.Head),
			Tail: max(int64(h.Output.Tail), 1),
		},
	})
	a.status.Cgroup = l.parent.Cgroups.PathOf(o.Run)
	f, stdin, err := a.prepareFolder(h, o)
	if err != nil {
		l.ends.releaseFlight(o.Run)
		return rundir.MarkFull(err)
	}
	defer rundir.CloseFiles(stdin)
	defer f.Discard() // but not the files that a took over
	if err := a.startFollowed(f, h, argv, stdin, o); err != nil {
		f.Discard() // closes the lock, too
		a.undoStart(err)
		return fmt.Errorf("starting run %s: %w", o.Run, err)
	}
	return nil
}

// Follow sends the end of a run once, and closes the channel. The end of a run that ended before is read from its
// folder. A run that has a folder but is neither in progress nor has an end in it is over, with an unknown end: a
// crash of the machine lost or corrupted its status. Errors wrap runner.ErrUnknown when the run is not here.
func (l *Local) Follow(run string) (<-chan runner.End, error) {
	ended, end, err := l.AwaitRun(run)
	if err != nil {
		return nil, err
	}
	ends := make(chan runner.End, 1)
	go func() {
		<-ended
		ends <- end()
		close(ends)
	}()
	return ends, nil
}

// AwaitRun returns a channel that is closed once a run has ended, and a function that then returns the end. Ends and
// errors are those of Follow.
func (l *Local) AwaitRun(run string) (ended <-chan struct{}, end func() runner.End, err error) {
	if err := rundir.CheckID(run); err != nil {
		return nil, nil, fmt.Errorf("following: %w", err)
	}
	if a := l.active.findRun(run); a != nil {
		return a.done, a.status.Result, nil
	}
	s, err := l.ends.recorded(run)
	if err != nil {
		return nil, nil, err
	}
	if s.Ended.IsZero() {
		if a := l.active.findRun(run); a != nil { // it was being started just now
			return a.done, a.status.Result, nil
		}
		s.End = runner.End{Ended: time.Now()}
		s.Why = runner.Interrupted
	}
	closed := make(chan struct{})
	close(closed)
	return closed, s.Result, nil
}

// Known reports whether a run was ever given to Start.
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
	if l.active.findRun(run) != nil {
		return nil
	}
	_, err := l.ends.recorded(run)
	return err
}

// Stop ends all processes of a run: TERM, grace, KILL. It returns at once. A grace below zero means that of the hook.
// A second Stop may shorten the grace but changes nothing else. A run that is over already is not an error.
func (l *Local) Stop(run string, why runner.State, grace time.Duration) error {
	if err := rundir.CheckID(run); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	a := l.active.findRun(run)
	if a == nil {
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

// Revoke implements runner.Processes.
func (l *Local) Revoke(run string, why runner.State) (revoked bool, err error) {
	return rundir.Revoke(l.runs.Root, run, why)
}

// Output opens the output of a run. Errors are those of [output.Open]. The caller closes it.
func (l *Local) Output(run string) (*output.Reader, error) { return output.Open(l.runs.Dir, run) }

// List returns the ids of the runs in progress, in order.
func (l *Local) List() ([]string, error) {
	return l.active.listIDs(), nil
}
