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
	killAgain = time.Second // a tree may have grown while it was killed
	killLimit = 10          // times, before what cannot be killed is given up

	recordAfter = 5 * time.Millisecond // when the start is out of the way, and short runs are over

	// lingerTime is how long what the main process left may take to end by itself,
	// as the last part of a pipe does, before it is ended and counted.
	lingerTime = 100 * time.Millisecond
)

// active is a run under way. All but followers belongs to Start and then to
// the goroutine in follow.
type active struct {
	local     *Local
	status    rundir.Status
	tree      *proctree.Tree
	output    *output.Collector
	stop      chan stopping
	park      chan parking
	done      chan struct{}           // closed when the end is recorded
	followers []chan<- runner.End     // guarded by local.active.mu
	exit      <-chan *os.ProcessState // nil once the main process ended
	state     *os.ProcessState
	recorded  bool // the folder knows the main process
	kill      *time.Timer
	kills     int
}

func newActive(l *Local, s rundir.Status) *active {
	return &active{local: l, status: s, stop: make(chan stopping), park: make(chan parking), done: make(chan struct{})}
}

type stopping struct {
	why   runner.State
	grace time.Duration
}

// openStdin gives the body as an unlinked file, so that nobody has to be alive
// to feed a pipe.
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

// commandEnvironment is the whole environment of the command. Nothing else comes from the
// server's own, which may hold its secrets.
func commandEnvironment(login []string, h *hook.Hook, o runner.Order) []string {
	own := h.Environ(o.Values)
	base := append(slices.Clone(login),
		"PATH="+hook.DefaultPath,
		"LANG=C.UTF-8",
		proctree.RunMark+o.Run,
		"SALLYPORT_HOOK="+o.Hook,
		"SALLYPORT_CALLER="+o.Caller,
	)
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

// startCommand starts the command as the leader of its own session, so that no
// terminal reaches it and its group is its own.
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
	t, err := a.local.parent.Start(proctree.Command{
		Run: describeLock(a.local.runs, a.status.Run), Argv: argv, Umask: h.Umask, Attr: attr,
	})
	if err != nil {
		return err
	}
	a.tree = t
	a.status.PID, a.status.Cgroup = t.PID(), t.Cgroup()
	return nil
}

// followToEnd sees the run to its end: the main process gone, and all that it left.
func (a *active) followToEnd() {
	if !a.tree.IsOrphan() {
		a.status.Birth = a.local.parent.Birth(a.tree.PID())
		a.local.parent.RaiseOOMScore(a.tree.PID())
	}
	exit := make(chan *os.ProcessState, 1)
	a.exit = exit
	go func() { exit <- a.awaitMain() }()
	timeout := time.NewTimer(a.status.TimeLeft())
	defer timeout.Stop()
	a.kill = time.NewTimer(time.Hour)
	a.kill.Stop()
	defer a.kill.Stop()
	if !a.status.KillAt.IsZero() {
		a.kill.Reset(time.Until(a.status.KillAt))
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
		case <-a.kill.C:
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

// writeStatus writes the status. Not being able to is no reason to kill what runs:
// the status is written again, and the lock tells that it runs.
func (a *active) writeStatus() {
	a.recorded = true
	if err := a.local.runs.WriteStatus(&a.status, pathsafe.Unsynced); err != nil {
		a.local.log.Error("recording a run", "run", a.status.Run, "error", err)
	}
}

// awaitMain returns when the main process has ended, and how, where that is known.
func (a *active) awaitMain() *os.ProcessState {
	if !a.tree.IsOrphan() {
		return a.tree.AwaitMain()
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for a.isAlive() {
		<-tick.C
	}
	return nil
}

// isAlive reports whether the main process of an orphan has not ended. One that was not recorded lives as long as
// the lock is held.
func (a *active) isAlive() bool {
	if a.status.Birth == "" {
		return a.local.runs.IsLocked(a.status.Run)
	}
	return a.local.parent.IsAlive(a.status.PID, a.status.Birth)
}

// nothingLeft tells, once the main process ended, whether nothing of the run is left.
// Of an orphan only the lock knows for sure.
func (a *active) nothingLeft() bool {
	if !a.tree.IsOrphan() {
		return a.tree.IsGone()
	}
	a.tree.ForgetMain()
	return a.tree.IsGone() && !a.local.runs.IsLocked(a.status.Run)
}

// endLeftBehind ends what outlived the main process, and counts it where the main
// process was not asked to end.
func (a *active) endLeftBehind() {
	if a.status.KillAt.IsZero() {
		var names []string
		a.status.LeftBehind, names = a.tree.Census()
		a.local.log.Warn("a command left processes behind, which are ended now", "run", a.status.Run, "hook", a.status.Hook,
			"left_behind", a.status.LeftBehind, "programs", names)
	}
	a.requestEnd("", a.status.Bounds.Grace)
}

// requestEnd asks the tree to end, and has it killed when the grace is over. Only the
// first reason counts, and only when the main process did not end by itself. It
// may have done so unnoticed while this process was stopped.
func (a *active) requestEnd(why runner.State, grace time.Duration) {
	if grace < 0 {
		grace = a.status.Bounds.Grace
	}
	if a.exit != nil && a.status.Why == "" && (a.tree.IsOrphan() || !a.tree.MainHasEnded()) {
		a.status.Why = why
	}
	at := time.Now().Add(grace)
	if a.status.KillAt.IsZero() {
		a.tree.Terminate()
	} else if !at.Before(a.status.KillAt) {
		return
	}
	a.status.KillAt = at
	a.kill.Reset(grace)
	a.writeStatus()
}

// killTree kills until nothing is left. What it cannot kill (a process that
// hangs in the kernel, or that became another user's) must not keep the run
// for ever: after a while it is given up, and the lock still tells of it.
func (a *active) killTree() (over bool) {
	a.tree.Kill()
	a.kills++
	if a.kills == killLimit {
		a.local.log.Error("a run has processes that cannot be killed", "run", a.status.Run, "hook", a.status.Hook)
	}
	if a.exit == nil && a.kills >= killLimit {
		a.status.Error = "some of its processes could not be killed"
		return true
	}
	a.kill.Reset(killAgain)
	return false
}

// finishRun takes the exit code and the output's size, and records the end.
func (a *active) finishRun() {
	if a.state == nil && !a.tree.IsOrphan() {
		a.state = a.tree.ReapMain()
	}
	a.status.Ended = time.Now()
	switch {
	case a.state != nil:
		a.status.ExitCode, a.status.Signal = exitStatus(a.state)
	case a.status.Why == "": // what was asked to end, and did, is not to run again as interrupted
		a.status.Why = runner.Interrupted
	}
	if err := a.tree.Close(); err != nil {
		a.local.log.Warn("removing a run's cgroup", "run", a.status.Run, "error", err)
	}
	size, dropped := a.output.Finish()
	if a.status.Dropped == (rundir.Dropped{}) { // it is something with a run of a former version only
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

// tidyTime is how long who waits for the end of a run waits too until what the
// command left in its working folder is removed. That may be anything.
const tidyTime = time.Second

// concludeRun records the end of a run, frees its flight and tells its followers,
// in this order: who learns the end may start the next run of the flight.
func (a *active) concludeRun() {
	l, run := a.local, a.status.Run
	durability := pathsafe.Synced
	if l.attended.Load() { // then the server records the end, and a second sync would slow short runs down
		durability = pathsafe.Whole
	}
	l.ends.writeEnd(&a.status, durability)
	select {
	case <-l.ends.freeFlight(run, a.status.Flight):
	case <-time.After(tidyTime):
	}
	if !a.status.KillAt.IsZero() && l.parent.Reaps() {
		l.parent.Reap() // perhaps hundreds, which would be in the way of the next command
	}
	followers := l.active.removeRun(a)
	close(a.done)
	for _, ends := range followers {
		ends <- a.status.Result()
		close(ends)
	}
	l.parent.ReapSoon()
}
