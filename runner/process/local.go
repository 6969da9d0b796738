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
	"context"
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
	"sync/atomic"
	"syscall"
	"time"

	"sallyport/internal/boot"
	"sallyport/internal/pathsafe"
	"sallyport/runner"
	"sallyport/runner/process/output"
	"sallyport/runner/process/rundir"
)

// Local runs commands as children of the calling process. It is a
// runner.Processes, safe for concurrent use.
type Local struct {
	runs    *rundir.Runs
	ready   *rundir.ReadyFolders
	hook    func(name string) (*runner.Hook, bool)
	log     *slog.Logger
	cgroups string // where a run's cgroup is made; empty where that cannot be
	boot    string // boot.ID

	subreaper bool          // what commands leave behind becomes this process's child
	again     time.Duration // after which a working folder that could not be removed is tried again at first

	attended atomic.Bool // a server is connected

	login     []string   // HOME and so on, of the user as whom commands run
	oomScore  int        // oom_score_adj of commands
	processes uint64     // soft RLIMIT_NPROC of commands; 0 leaves it as it is
	forking   sync.Mutex // held while this process has the umask and the limits of a command

	spawning  sync.RWMutex // read: between the birth of a main process and its entry in active
	mu        sync.Mutex
	active    map[string]*active
	unwritten map[string]rundir.Status // ends that are not on disk yet
	flights   map[string]int           // what is under way or still holds its lock; nil when nobody asked for single flights
	reaping   bool                     // a reap is due
}

// NewLocal returns a Local that keeps the runs' folders in dir, which is made
// with mode 0700 when it is missing and refused when others may enter it. hook
// yields a hook as the file has it at that moment. Descriptors that this
// process inherited are marked close-on-exec, so that no command gets them.
func NewLocal(dir string, hook func(name string) (*runner.Hook, bool), log *slog.Logger) (*Local, error) {
	runs, err := rundir.Open(dir, log)
	if err != nil {
		return nil, err
	}
	if err := sealDescriptors(); err != nil {
		return nil, fmt.Errorf("keeping descriptors from commands: %w", err)
	}
	l := &Local{
		runs: runs, ready: rundir.NewReadyFolders(runs), hook: hook, log: log, boot: boot.ID(), again: settleAgain,
		active: map[string]*active{}, unwritten: map[string]rundir.Status{},
	}
	l.login, l.oomScore = loginEnv(nil), commandOOMScore()
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

// Start starts the command of the order's hook and returns once it runs, or
// why it does not. A run that has a folder already is refused, so that no id
// ever runs twice.
func (l *Local) Start(o runner.Order) error {
	hook, ok := l.hook(o.Hook)
	if !ok {
		return fmt.Errorf("starting run %s: there is no hook %q", o.Run, o.Hook)
	}
	return l.start(hook, o)
}

func (l *Local) start(hook *runner.Hook, o runner.Order) error {
	if err := rundir.CheckID(o.Run); err != nil {
		return fmt.Errorf("%w: %w", runner.ErrRefused, err)
	}
	argv, err := hook.Argv(o.Values)
	if err != nil {
		return fmt.Errorf("starting run %s: %w: %w", o.Run, runner.ErrRefused, err)
	}
	flight := hook.Flight(o.Values)
	if err := l.takeOff(flight); err != nil {
		return fmt.Errorf("starting run %s: %w", o.Run, err)
	}
	a := newActive(l, rundir.Status{
		Run: o.Run, Folder: l.runs.ID(), Hook: o.Hook, Caller: o.Caller, Flight: flight, Created: o.Created, Started: time.Now(), Up: boot.Uptime(),
		Bounds: rundir.Bounds{Timeout: hook.Timeout, Grace: hook.Grace, Head: int64(hook.Output.Head), Tail: max(int64(hook.Output.Tail), 1)},
	})
	if l.cgroups != "" {
		a.status.Cgroup = filepath.Join(l.cgroups, cgroupPrefix+o.Run)
	}
	f, stdin, err := l.prepare(a, hook, o)
	if err != nil {
		l.land(flight)
		return full(err)
	}
	defer rundir.CloseFiles(stdin)
	defer f.Discard() // but not what a has taken
	if err := l.launch(a, f, hook, argv, stdin, o); err != nil {
		f.Discard() // with it the lock
		l.takeBack(a, err)
		return fmt.Errorf("starting run %s: %w", o.Run, err)
	}
	return nil
}

// prepare gives a run its folder, and its command an input. Folders of ours that
// somebody removed are made again.
func (l *Local) prepare(a *active, hook *runner.Hook, o runner.Order) (*rundir.Folder, *os.File, error) {
	f, stdin, err := l.prepareOnce(a, hook, o)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, stdin, err
	}
	runs, _ := l.List() // no error comes from a Local
	if err := l.ready.Restore(runs); err != nil {
		return nil, nil, err
	}
	return l.prepareOnce(a, hook, o)
}

func (l *Local) prepareOnce(a *active, hook *runner.Hook, o runner.Order) (*rundir.Folder, *os.File, error) {
	f, err := l.ready.Take()
	if err != nil {
		return nil, nil, err
	}
	stdin, err := openStdin(f.Root, hook, o)
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
	l.land(a.status.Flight)
}

// full marks an error that comes of a lack of space, before anything is left of
// a run.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", runner.ErrFull, err)
	}
	return err
}

// takeOff counts a run of a flight, unless there is one already.
func (l *Local) takeOff(flight string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flights == nil {
		return nil
	}
	if l.flights[flight] > 0 {
		return fmt.Errorf("%w: %s", runner.ErrFlight, flight)
	}
	l.flights[flight]++
	return nil
}

func (l *Local) land(flight string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flights[flight] > 1 {
		l.flights[flight]--
		return
	}
	delete(l.flights, flight)
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
func (l *Local) launch(a *active, f *rundir.Folder, hook *runner.Hook, argv []string, stdin *os.File, o runner.Order) error {
	l.spawning.RLock()
	defer l.spawning.RUnlock()
	err := a.spawn(hook, argv, l.environ(hook, o), stdin, f.Command, f.Lock)
	rundir.CloseFiles(f.Command, f.Lock) // before follow: from now on the lock tells of the tree alone
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
	ends, _, err := l.follow(run)
	return ends, err
}

// follow is Follow, and returns how to leave before the end.
func (l *Local) follow(run string) (ends <-chan runner.End, leave func(), err error) {
	if err := rundir.CheckID(run); err != nil {
		return nil, nil, fmt.Errorf("following: %w", err)
	}
	follower := make(chan runner.End, 1)
	leave = func() { l.removeFollower(run, follower) }
	if l.addFollower(run, follower) {
		return follower, leave, nil
	}
	s, err := l.recorded(run)
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

// statusOf reads the status of a run. It is looked up in memory first, where it is
// removed only after it was written, and in its folder without the mutex, because a
// disk may hang.
func (l *Local) statusOf(run string) (*rundir.Status, error) {
	l.mu.Lock()
	s, unwritten := l.unwritten[run]
	l.mu.Unlock()
	if unwritten {
		return &s, nil
	}
	return l.runs.ReadStatus(run)
}

// recorded is the status of a run that is not in progress. Errors wrap runner.ErrUnknown
// when the run is not here.
func (l *Local) recorded(run string) (*rundir.Status, error) {
	s, err := l.statusOf(run)
	if errors.Is(err, rundir.ErrCorrupt) { // an error here would keep the server from ever starting again
		l.log.Error("the status of a run cannot be read, so its end is unknown", "run", run, "error", err)
		return new(rundir.Status), nil
	}
	return s, err
}

// Known tells whether a run was ever given to Start.
func (l *Local) Known(run string) (bool, error) {
	err := l.find(run)
	if errors.Is(err, runner.ErrUnknown) {
		return false, nil
	}
	return err == nil, err
}

// find returns nil for a run that is known, or an error that wraps runner.ErrUnknown.
func (l *Local) find(run string) error {
	if err := rundir.CheckID(run); err != nil {
		return fmt.Errorf("looking up: %w", err)
	}
	l.mu.Lock()
	_, active := l.active[run]
	l.mu.Unlock()
	if active {
		return nil
	}
	_, err := l.recorded(run)
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

// How often a working folder that cannot be removed is tried, at first and in the
// end: somebody may unmount what is mounted there.
const (
	settleAgain  = time.Minute
	settleRarely = time.Hour
)

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
	if err := l.runs.WriteEnd(&a.status, durability); err != nil {
		l.log.Error("recording the end of a run; it will be tried again", "run", run, "error", err)
		l.mu.Lock()
		l.unwritten[run] = a.status
		l.mu.Unlock()
		go l.writeLater(run)
	}
	select {
	case <-l.free(run, a.status.Flight):
	case <-time.After(tidyTime):
	}
	if !a.status.KillAt.IsZero() && l.reaps() {
		l.reap() // perhaps hundreds, which would be in the way of the next command
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
	l.reapSoon()
}

// writeLater writes the end of a run that could not be written, on a full disk
// for one. Until then it is told from memory.
func (l *Local) writeLater(run string) {
	const first, last = 200 * time.Millisecond, 10 * time.Second
	for wait := first; ; wait = min(2*wait, last) {
		<-time.After(wait)
		l.mu.Lock()
		s, ok := l.unwritten[run]
		l.mu.Unlock()
		if !ok { // removed
			return
		}
		err := l.runs.WriteEnd(&s, pathsafe.Synced)
		switch {
		case err == nil:
			l.log.Info("the end of a run is recorded at last", "run", run)
		case l.runs.IsGone(run):
			l.log.Warn("a run ended whose folder somebody removed", "run", run)
		default:
			l.log.Debug("recording the end of a run", "run", run, "error", err)
			continue
		}
		l.mu.Lock()
		delete(l.unwritten, run)
		if len(l.unwritten) == 0 {
			l.runs.RemoveUnwritten()
		}
		l.mu.Unlock()
		l.settle(run)
		return
	}
}

// free lets the next run of the flight start, as soon as nobody keeps the lock.
// The channel is closed when nothing is left to do for it now.
func (l *Local) free(run, flight string) <-chan struct{} {
	done := make(chan struct{})
	held := l.runs.IsLocked(run)
	if held { // perhaps by a child that is about to execute another command
		l.spawning.Lock()
		held = l.runs.IsLocked(run)
		l.spawning.Unlock()
	}
	if held {
		l.log.Error("a process that got away keeps the lock of a run that is over, and its flight with it", "run", run, "flight", flight)
		go l.freeLater(run, flight)
		close(done)
		return done
	}
	l.land(flight)
	go func() { l.settle(run); close(done) }()
	return done
}

func (l *Local) freeLater(run, flight string) {
	l.runs.AwaitUnlock(run)
	l.log.Info("the lock of a run is free at last", "run", run, "flight", flight)
	l.land(flight)
	l.settle(run)
}

// settle removes the working folder of a run and then, once its end is on disk,
// forgets that the run may be under way: until then, another supervisor settles
// what this one did not. The lock is free, but for a moment in which somebody
// tries it, or a child of another start has not executed its command yet.
func (l *Local) settle(run string) { l.settleOr(run, l.again) }

// settleOr is settle, tried again after a while where the folder cannot go yet.
func (l *Local) settleOr(run string, again time.Duration) {
	l.runs.AwaitUnlock(run)
	if err := l.runs.RemoveFIFO(run); err != nil {
		l.log.Warn("removing a run's FIFO", "run", run, "error", err)
	}
	if err := l.runs.RemoveWork(run); err != nil {
		level := slog.LevelWarn
		if again > l.again { // that was said
			level = slog.LevelDebug
		}
		l.log.Log(context.Background(), level, "removing a run's working folder; it will be tried again", "run", run, "error", err)
		time.AfterFunc(again, func() { l.settleOr(run, min(2*again, settleRarely)) })
		return
	}
	l.mu.Lock()
	_, unwritten := l.unwritten[run]
	l.mu.Unlock()
	if unwritten { // then writeLater comes here again
		return
	}
	if err := l.runs.UnmarkActive(run); err != nil {
		l.log.Warn("forgetting a run", "run", run, "error", err)
	}
}

// reaps reports whether what commands leave behind becomes a child of this process.
func (l *Local) reaps() bool { return l.subreaper || os.Getpid() == 1 }

// reapSoon takes the zombies that commands left to this process, also those that
// end a little later than their run.
func (l *Local) reapSoon() {
	if !l.reaps() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reaping {
		return
	}
	l.reaping = true
	time.AfterFunc(time.Second, func() {
		l.mu.Lock()
		l.reaping = false
		l.mu.Unlock()
		l.reap()
	})
}

// busy tells whether a run is under way, or an end not on disk.
func (l *Local) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.active)+len(l.unwritten) > 0
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
