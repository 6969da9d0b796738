package process

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/pathsafe"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
	"sallyport/runner/process/proctree"
	"sallyport/runner/process/rundir"
)

const (
	killAgain = time.Second // a tree may start processes while it is being killed
	killLimit = 10          // attempts, before the run stops waiting for what cannot be killed

	recordAfter = 5 * time.Millisecond // after the start, so that short runs never write this status

	// lingerTime is how long the processes that outlive the main process may take to end by themselves, as the last
	// part of a pipe does. What still runs then is counted and ended.
	lingerTime = 100 * time.Millisecond
)

// active is a run in progress. Only Start, and then the goroutine in followToEnd, may use its fields until done is
// closed. From then on nothing changes them.
type active struct {
	local    *Local
	status   rundir.Status
	tree     *proctree.Tree
	output   *output.Collector
	stop     chan stopping
	park     chan parking
	done     chan struct{}           // closed when the end is recorded
	exit     <-chan *os.ProcessState // nil once the main process ended
	state    *os.ProcessState
	recorded bool // the status file has the main process
	kill     killing
}

// killing is when the processes of a run are killed, again and again until they have ended.
type killing struct {
	timer    *time.Timer
	attempts int // so far
}

func newActive(l *Local, s rundir.Status) *active {
	return &active{local: l, status: s, stop: make(chan stopping), park: make(chan parking), done: make(chan struct{})}
}

type stopping struct {
	why   runner.State
	grace time.Duration
}

// openStdin returns the body as an unlinked file. A pipe would need a process that stays alive to write into it.
func openStdin(root *os.Root, h *hook.Hook, o runner.Order) (*os.File, error) {
	if !h.StdinBody {
		return os.Open(os.DevNull)
	}
	const name = "stdin"
	if err := root.WriteFile(name, o.Stdin, 0o600); err != nil {
		return nil, err
	}
	f, err := root.Open(name)
	return f, errors.Join(err, root.Remove(name))
}

// commandEnvironment returns the whole environment of the command. It takes nothing else from the environment of the
// server, which may hold secrets.
func commandEnvironment(login []string, h *hook.Hook, o runner.Order) []string {
	own := h.Environ(o.Values)
	base := append(slices.Clone(login),
		"PATH="+hook.DefaultPath,
		"LANG=C.UTF-8",
		proctree.RunMark+o.Run,
		"SALLYPORT_HOOK="+o.Hook,
		"SALLYPORT_CALLER="+o.Caller,
	)
	if u := h.RunURL(o.Run); u != "" {
		base = append(base, "SALLYPORT_RUN_URL="+u)
	}
	if o.Trace != "" {
		base = append(base, "TRACEPARENT="+o.Trace)
	}
	named := make(map[string]bool, len(own))
	for _, entry := range own {
		name, _, _ := strings.Cut(entry, "=")
		named[name] = true
	}
	env := make([]string, 0, len(base)+len(own))
	for _, entry := range base {
		if name, _, _ := strings.Cut(entry, "="); !named[name] {
			env = append(env, entry)
		}
	}
	return append(env, own...)
}

// startCommand starts the command as the leader of a new session. So no terminal controls it, and its process group has
// no other processes.
func (a *active) startCommand(h *hook.Hook, argv, env []string, stdin, output, lock *os.File) error {
	dir := h.Dir
	if dir == "" {
		dir = a.local.runs.Path(a.status.Run, rundir.WorkDir)
	}
	attr := &os.ProcAttr{
		Dir: dir, Env: env,
		Files: []*os.File{stdin, output, output, lock},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if u := h.User; u != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	t, err := a.local.parent.Start(proctree.Command{
		Run: describeLock(a.local.runs, a.status.Run), Argv: argv, Umask: h.Umask, Attr: attr,
	})
	if err != nil {
		return err
	}
	a.tree = t
	a.status.PID, a.status.Cgroup = t.Main.PID(), t.Cgroup()
	return nil
}

// followToEnd follows the run until the main process and all processes that it left behind have ended.
func (a *active) followToEnd() {
	if !a.tree.Main.IsOrphan() {
		a.status.Birth = a.local.parent.Birth(a.tree.Main.PID())
		a.local.parent.RaiseOOMScore(a.tree.Main.PID())
	}
	exit := make(chan *os.ProcessState, 1)
	a.exit = exit
	go func() { exit <- a.awaitMain() }()
	timeout := time.NewTimer(a.status.TimeLeft())
	defer timeout.Stop()
	a.kill.timer = time.NewTimer(time.Hour)
	a.kill.timer.Stop()
	defer a.kill.timer.Stop()
	if !a.status.KillAt.IsZero() {
		a.kill.timer.Reset(time.Until(a.status.KillAt))
	}
	wait := recordAfter
	tick := time.NewTimer(wait)
	defer tick.Stop()
	var lingered <-chan time.Time
	for over := false; !over; {
		select {
		case a.state = <-a.exit:
			a.exit = nil
			if over = a.nothingLeft(); !over {
				lingered = time.After(lingerTime)
				wait = time.Millisecond
				tick.Reset(wait)
			}
		case <-lingered:
			if over = a.nothingLeft(); !over {
				a.endLeftBehind()
			}
		case s := <-a.stop:
			a.requestEnd(s.why, s.grace)
		case p := <-a.park:
			p.ready <- a.handOver()
			<-p.resume
			a.resumeFollowing()
		case <-timeout.C:
			a.requestEnd(runner.TimedOut, -1)
		case <-a.kill.timer.C:
			over = a.killTree()
		case <-tick.C:
			if !a.recorded {
				a.writeStatus()
			}
			if a.exit == nil {
				over = a.nothingLeft()
				wait = min(2*wait, 100*time.Millisecond)
				tick.Reset(wait)
			}
		}
	}
	a.finishRun()
}

// writeStatus writes the status. If that fails, the run goes on: the status is written again later, and the lock
// shows that the run is in progress.
func (a *active) writeStatus() {
	a.recorded = true
	if err := a.local.runs.WriteStatus(&a.status, pathsafe.Unsynced); err != nil {
		a.local.log.Error("recording a run", "run", a.status.Run, "error", err)
	}
}

// awaitMain waits until the main process has ended, and returns its state; nil where the state is not known.
func (a *active) awaitMain() *os.ProcessState {
	if !a.tree.Main.IsOrphan() {
		return a.tree.Main.Await()
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for a.isAlive() {
		<-tick.C
	}
	return nil
}

// isAlive reports whether the main process of an orphan has not ended. If the main process was not recorded, it
// counts as alive as long as a process holds the lock.
func (a *active) isAlive() bool {
	if a.status.Birth == "" {
		return a.local.runs.Locks.IsHeld(a.status.Run)
	}
	return a.local.parent.IsAlive(a.status.PID, a.status.Birth)
}

// nothingLeft reports, once the main process has ended, whether no process of the run is left. For an orphan only the
// lock shows that reliably.
func (a *active) nothingLeft() bool {
	if !a.tree.Main.IsOrphan() {
		return a.tree.IsGone()
	}
	a.tree.ForgetMain()
	return a.tree.IsGone() && !a.local.runs.Locks.IsHeld(a.status.Run)
}

// endLeftBehind ends the processes that outlived the main process. It counts them, unless the main process was asked
// to end.
func (a *active) endLeftBehind() {
	if a.status.KillAt.IsZero() {
		var names []string
		a.status.LeftBehind, names = a.tree.Census()
		a.local.log.Warn("a command left processes behind, which are ended now", "run", a.status.Run,
			"hook", a.status.Hook,
			"left_behind", a.status.LeftBehind, "programs", names)
	}
	a.requestEnd("", a.status.Bounds.Grace)
}

// requestEnd asks the tree to end, and has it killed when the grace is over. Only the first reason counts, and only
// when the main process did not end by itself. It may have ended unnoticed while this process was stopped.
func (a *active) requestEnd(why runner.State, grace time.Duration) {
	if grace < 0 {
		grace = a.status.Bounds.Grace
	}
	if a.exit != nil && a.status.Why == "" && (a.tree.Main.IsOrphan() || !a.tree.Main.HasEnded()) {
		a.status.Why = why
	}
	at := time.Now().Add(grace)
	if a.status.KillAt.IsZero() {
		a.tree.Terminate()
	} else if !at.Before(a.status.KillAt) {
		return
	}
	a.status.KillAt = at
	a.kill.timer.Reset(grace)
	a.writeStatus()
}

// killTree kills the tree, again and again until no process is left. Some processes cannot be killed: one that hangs
// in the kernel, or one that runs as another user now. The run does not wait for them without end: after killLimit
// attempts it is over, and its lock shows that they are still alive.
func (a *active) killTree() (over bool) {
	a.tree.Kill()
	a.kill.attempts++
	if a.kill.attempts == killLimit {
		a.local.log.Error("a run has processes that cannot be killed", "run", a.status.Run, "hook", a.status.Hook)
	}
	if a.exit == nil && a.kill.attempts >= killLimit {
		a.status.Error = "some of its processes could not be killed"
		return true
	}
	a.kill.timer.Reset(killAgain)
	return false
}

// finishRun takes the exit code and the size of the output, and records the end.
func (a *active) finishRun() {
	if a.state == nil && !a.tree.Main.IsOrphan() {
		a.state = a.tree.Main.Reap()
	}
	a.status.Ended = time.Now()
	switch {
	case a.state != nil:
		a.status.ExitCode, a.status.Signal = exitStatus(a.state)
	case a.status.Why == "": // a run that was asked to end keeps that reason: an interrupted run may be started again
		a.status.Why = runner.Interrupted
	}
	if err := a.tree.Close(); err != nil {
		a.local.log.Warn("removing a run's cgroup", "run", a.status.Run, "error", err)
	}
	size, dropped := a.output.Finish()
	if a.status.Dropped == (rundir.Dropped{}) { // it is set only for a run that an earlier version started
		a.status.Dropped = dropped
	}
	a.status.Output = runner.Output{Bytes: size, Dropped: a.status.Dropped.Bytes()}
	a.concludeRun()
}

func exitStatus(s *os.ProcessState) (code *int, signal string) {
	ws, ok := s.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		c := s.ExitCode()
		return &c, ""
	}
	if signal = unix.SignalName(ws.Signal()); signal == "" {
		signal = fmt.Sprintf("signal %d", int(ws.Signal()))
	}
	return nil, signal
}

// tidyTime bounds how long the followers of a run wait for the removal of its working folder. The command may have
// left any number of files there.
const tidyTime = time.Second

// concludeRun records the end of a run, frees its flight and notifies its followers, in this order: a follower may
// start the next run of the flight at once.
func (a *active) concludeRun() {
	l, run := a.local, a.status.Run
	durability := pathsafe.Synced
	if l.attended.Load() { // then the server records the end too, and a second sync would slow short runs
		durability = pathsafe.Whole
	}
	l.ends.writeEnd(&a.status, durability)
	select {
	case <-l.ends.freeFlight(run, a.status.Flight):
	case <-time.After(tidyTime):
	}
	if !a.status.KillAt.IsZero() && l.parent.Children.AdoptsOrphans() {
		// there may be hundreds of zombies, which count against the process limit of the next command
		l.parent.Children.Reap()
	}
	l.active.removeRun(run)
	close(a.done)
	l.parent.Children.ReapSoon()
}
