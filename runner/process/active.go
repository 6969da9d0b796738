package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/runner"
)

const (
	killAgain = time.Second // a tree may have grown while it was killed
	killLimit = 10          // times, before what cannot be killed is given up
)

// active is a run under way. All but followers belongs to Start and then to
// the goroutine in follow.
type active struct {
	local     *Local
	hook      *runner.Hook
	status    Status
	process   *os.Process
	tree      *tree
	output    *keeper
	stop      chan stopping
	done      chan struct{}           // closed when the end is recorded
	followers []chan<- runner.End     // guarded by local.mu
	exit      <-chan *os.ProcessState // nil once the main process ended
	state     *os.ProcessState
	kill      *time.Timer
	killAt    time.Time // zero until TERM was sent
	kills     int
}

type stopping struct {
	why   runner.State
	grace time.Duration
}

// files are what the command inherits.
type files struct{ stdin, output, lock *os.File }

func (f *files) close() {
	for _, f := range []*os.File{f.stdin, f.output, f.lock} {
		if f != nil {
			_ = f.Close() // nothing was written through it here
		}
	}
}

// open makes what stands in the run's folder.
func (a *active) open(o runner.Order) (f *files, err error) {
	f = &files{}
	root := a.local.root
	if a.hook.Dir == "" {
		if err := root.Mkdir(filepath.Join(o.Run, workDir), 0o700); err != nil {
			return f, fmt.Errorf("making the working folder: %w", err)
		}
	}
	if f.lock, err = root.OpenFile(filepath.Join(o.Run, lockFile), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return f, fmt.Errorf("making the lock: %w", err)
	}
	if err := unix.Flock(int(f.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return f, fmt.Errorf("taking the lock: %w", err)
	}
	if f.stdin, err = a.openStdin(o); err != nil {
		return f, fmt.Errorf("preparing stdin: %w", err)
	}
	if a.output, f.output, err = newKeeper(a.local, o.Run, a.hook.Output); err != nil {
		return f, fmt.Errorf("making the output: %w", err)
	}
	a.status.Ring = a.output.ring
	return f, nil
}

// openStdin gives the body as an unlinked file, so that nobody has to be alive
// to feed a pipe.
func (a *active) openStdin(o runner.Order) (*os.File, error) {
	if !a.hook.StdinBody {
		return os.Open(os.DevNull)
	}
	name := filepath.Join(o.Run, "stdin")
	if err := a.local.root.WriteFile(name, o.Stdin, 0o600); err != nil {
		return nil, err
	}
	f, err := a.local.root.Open(name)
	return f, errors.Join(err, a.local.root.Remove(name))
}

// environ is the whole environment of the command. Nothing comes from the
// server's own, which may hold its secrets.
func environ(hook *runner.Hook, o runner.Order) []string {
	own := hook.Environ(o.Values)
	base := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG=C.UTF-8",
		"TZ=UTC",
		runMark + o.Run,
		"SALLYPORT_HOOK=" + o.Hook,
		"SALLYPORT_CALLER=" + o.Caller,
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

// runMark begins the entry of the environment that tells a run's processes
// from others.
const runMark = "SALLYPORT_RUN="

// spawn starts the command as the leader of its own session, so that no
// terminal reaches it and its group is its own.
func (a *active) spawn(argv, env []string, f *files) error {
	dir := a.hook.Dir
	if dir == "" {
		dir = filepath.Join(a.local.dir, a.status.Run, workDir)
	}
	attr := &os.ProcAttr{
		Dir: dir, Env: env,
		Files: []*os.File{f.stdin, f.output, f.output, f.lock},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	p, t, err := startTree(a.local, a.status.Run, argv, attr)
	if err != nil {
		return err
	}
	a.process, a.tree = p, t
	a.status.PID, a.status.Cgroup = p.Pid, t.cgroup
	return nil
}

// follow sees the run to its end: the main process gone, and all that it left.
func (a *active) follow() {
	// Not being able to record the start is no reason to kill what runs: the
	// end is recorded again, and the lock tells that it runs.
	if err := a.local.writeStatus(&a.status, false); err != nil {
		a.local.log.Error("recording the start of a run", "run", a.status.Run, "error", err)
	}
	exit := make(chan *os.ProcessState, 1)
	a.exit = exit
	go func() { exit <- awaitEnd(a.process) }()
	timeout := time.NewTimer(a.hook.Timeout)
	defer timeout.Stop()
	a.kill = time.NewTimer(time.Hour)
	a.kill.Stop()
	defer a.kill.Stop()
	wait := a.output.interval()
	tick := time.NewTimer(wait)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case a.state = <-a.exit:
			a.exit = nil
			if over = a.tree.gone(); !over {
				a.end("", a.hook.Grace)
				wait = time.Millisecond
				tick.Reset(wait)
			}
		case s := <-a.stop:
			a.end(s.why, s.grace)
		case <-timeout.C:
			a.end(runner.TimedOut, -1)
		case <-a.kill.C:
			over = a.killTree()
		case <-tick.C:
			a.trim(false)
			if over = a.exit == nil && a.tree.gone(); a.exit == nil {
				wait = min(2*wait, 100*time.Millisecond)
			} else {
				wait = a.output.interval()
			}
			tick.Reset(wait)
		}
	}
	a.finish()
}

// end asks the tree to end, and has it killed when the grace is over. Only the
// first reason counts, and only when the main process did not end by itself.
func (a *active) end(why runner.State, grace time.Duration) {
	if grace < 0 {
		grace = a.hook.Grace
	}
	if a.exit != nil && a.status.Why == "" {
		a.status.Why = why
	}
	at := time.Now().Add(grace)
	if a.killAt.IsZero() {
		a.tree.terminate()
	} else if !at.Before(a.killAt) {
		return
	}
	a.killAt = at
	a.kill.Reset(grace)
}

// killTree kills until nothing is left. What it cannot kill (a process that
// hangs in the kernel, or that became another user's) must not keep the run
// for ever: after a while it is given up, and the lock still tells of it.
func (a *active) killTree() (over bool) {
	a.tree.kill()
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

// trim bounds the output.
func (a *active) trim(final bool) {
	err := a.output.trim(final, func(d Dropped) error {
		a.status.Dropped = d
		return a.local.writeStatus(&a.status, false)
	})
	if err != nil {
		a.local.log.Error("bounding an output", "run", a.status.Run, "error", err)
	}
}

// finish takes the exit code and the output's size, and records the end.
func (a *active) finish() {
	if a.state == nil {
		a.state, _ = a.process.Wait() // no state: somebody else took the exit code
	}
	a.status.Ended = time.Now()
	if a.state == nil {
		a.status.Why = runner.Interrupted
	} else {
		a.status.ExitCode, a.status.Signal = exitOf(a.state)
	}
	if err := a.tree.close(); err != nil {
		a.local.log.Warn("removing a run's cgroup", "run", a.status.Run, "error", err)
	}
	a.trim(true)
	dropped, err := a.output.finish()
	if err != nil {
		a.local.log.Error("keeping an output", "run", a.status.Run, "error", err)
	}
	a.status.Dropped = dropped
	a.status.Output = runner.Output{Bytes: a.output.size, Dropped: dropped.Bytes()}
	a.local.finish(a)
}

func exitOf(s *os.ProcessState) (code *int, signal string) {
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
