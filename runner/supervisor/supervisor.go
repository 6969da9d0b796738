// Package supervisor runs commands in a separate process, which continues to run when the server ends.
//
// The server has a [Client], which starts the supervisor if none runs, and asks it to start, follow and stop commands.
// The supervisor ([Run]) is the parent of all commands. The two communicate over a Unix socket in the state folder:
// each checks that the other runs as the same user, the server proves that it can read the secret next to the socket,
// and the supervisor refuses a peer that a command started. The supervisor serves only one server: a later server
// replaces the earlier one, and displaces its Client.
//
// If the connection breaks, the order is sent again. It is carried out once: the folder of its run shows whether that
// has happened. If the supervisor is killed, no run is lost: the next supervisor finds the living processes by the
// locks of the runs, and follows them to their end; only the exit codes are lost. A supervisor that has another
// version than the server replaces itself in place, and keeps its children with their exit codes.
package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/pathsafe"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process"
	"sallyport/runner/process/proctree"
	"sallyport/runner/process/rundir"
)

// Settings configure a supervisor.
type Settings struct {
	State string // the state folder
	// Load reads the hooks from the current configuration file. Its error is for the operator.
	Load    func() (map[string]*hook.Hook, error)
	Version string // a server of another version asks this process to replace itself
	Log     *slog.Logger
	Flush   func()   // writes what Log has queued, before this process executes another image; may be nil
	Env     []string // of this process: what [process.LoginEnv] returned in the server

	// Idle is how long the supervisor stays with no server and no run; default one minute.
	Idle time.Duration

	// DangerouslyUnlocked lets runs of one flight overlap after a crash. It is for a test that shows what the locks
	// are for.
	DangerouslyUnlocked bool

	prepare func(*supervisor) // set by tests
}

// supervisor is the parent of all commands, and outlives the server.
type supervisor struct {
	Settings
	local    *process.Local
	parent   *proctree.Parent
	entrance *entrance
	sessions *sessions
	hooks    hookFile
	uid      int // of the servers
	quit     chan struct{}

	// moving is held for reading while a run is started, and for writing while a goroutine sets going or replaces
	// this process.
	moving sync.RWMutex
	going  bool
}

var errGoing = fmt.Errorf("%w: the supervisor is about to end", runner.ErrNotNow)

// Run runs the supervisor. It returns when a request asks it to end, at SIGTERM once its runs have ended, or when it
// was idle for a while. Connect starts a process that calls it. SIGHUP, SIGINT and a broken pipe at stderr do not end
// it.
func Run(s Settings) error {
	// These signals are caught and not ignored, because commands would inherit that they are ignored.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE, syscall.SIGCONT)
	if s.Idle == 0 {
		s.Idle = time.Minute
	}
	v := &supervisor{Settings: s, hooks: hookFile{load: s.Load}, uid: os.Geteuid(), quit: make(chan struct{})}
	var err error
	if v.entrance, err = takeInherited(s.State, s.Log); err != nil {
		return err
	}
	if err := v.openRuns(); err != nil {
		return err
	}
	v.sessions = &sessions{attend: v.local.SetAttended, superseded: map[string]bool{}}
	s.Log.Info("supervisor ready", "pid", os.Getpid(), "version", s.Version)
	go v.acceptServers(v.entrance.listener)
	go v.entrance.stayReachable(v.unlessGoing, v.acceptServers)
	go func() {
		if err := v.hooks.loadAhead(); err != nil {
			s.Log.Error("reading the hooks", "error", err)
		}
	}()
	v.waitForEnd(signals)
	v.finishAnswers()
	v.parent.Release()
	s.Log.Info("supervisor ended", "pid", os.Getpid())
	return nil
}

func (v *supervisor) openRuns() (err error) {
	v.parent = proctree.NewParent(v.Log)
	if err := v.parent.Children.BecomeSubreaper(); err != nil {
		return fmt.Errorf("becoming a subreaper: %w", err)
	}
	v.parent.LimitProcesses()
	if v.prepare != nil {
		v.prepare(v)
	}
	v.local, err = process.NewSupervised(process.Supervised{
		Dir: filepath.Join(v.State, runsDir), Parent: v.parent, LoginEnv: v.Env, Log: v.Log,
		DangerouslyUnlocked: v.DangerouslyUnlocked,
	})
	return err
}

// waitForEnd returns when the supervisor is to end.
func (v *supervisor) waitForEnd(signals <-chan os.Signal) {
	const parts = 4
	tick := time.NewTicker(v.Idle / parts)
	defer tick.Stop()
	for idle := 0; ; {
		select {
		case <-v.quit:
			return
		case s := <-signals:
			switch s {
			case syscall.SIGTERM:
				v.stopAllRuns()
				return
			case syscall.SIGCONT:
				v.Log.Warn("the supervisor was continued: while a process is stopped, no timeout is enforced and no " +
					"output is kept")
			}
		case <-tick.C:
			if idle++; v.sessions.served() != nil || v.local.IsBusy() {
				idle = 0
			}
			if idle > parts && v.refuseMoreRuns() == nil {
				return
			}
		}
	}
}

// stopAllRuns ends all runs with the grace of their hooks.
func (v *supervisor) stopAllRuns() {
	v.moving.Lock()
	v.going = true
	v.moving.Unlock()
	runs, _ := v.local.List() // Local.List returns no error
	var ends []<-chan runner.End
	for _, run := range runs {
		v.Log.Warn("run stopped: the supervisor is shutting down", "run", run)
		if err := v.local.Stop(run, runner.Cancelled, -1); err != nil {
			v.Log.Error("stopping a run", "run", run, "error", err)
		}
		if end, err := v.local.Follow(run); err == nil {
			ends = append(ends, end)
		}
	}
	for _, end := range ends {
		<-end
	}
	if err := v.local.SaveUnwritten(); err != nil {
		v.Log.Error("ending", "error", err)
	}
}

// refuseMoreRuns makes the supervisor refuse new runs, if no run is in progress.
func (v *supervisor) refuseMoreRuns() error {
	v.moving.Lock()
	defer v.moving.Unlock()
	if v.going {
		return errGoing
	}
	if runs, _ := v.local.List(); len(runs) > 0 { // Local.List returns no error
		return errors.New("runs are in progress")
	}
	if err := v.local.SaveUnwritten(); err != nil {
		return err
	}
	v.going = true
	return nil
}

// unlessGoing calls do, unless this process is about to end. Meanwhile it does not begin to end.
func (v *supervisor) unlessGoing(do func() error) error {
	v.moving.RLock()
	defer v.moving.RUnlock()
	if v.going {
		return errGoing
	}
	return do()
}

// finishAnswers sends the answers that the server waits for. Once going is set, nothing replaces the listener.
func (v *supervisor) finishAnswers() {
	_ = v.entrance.listener.Close()
	s := v.sessions.served()
	if s == nil {
		return
	}
	_ = s.conn.CloseRead()
	_ = s.conn.SetWriteDeadline(time.Now().Add(greetingTime))
	<-s.done
}

// startRun starts a run. It does not start again a run that an earlier copy of the order started.
func (v *supervisor) startRun(o *runner.Order, again bool) error {
	if o == nil {
		return fmt.Errorf("%w: it is missing", runner.ErrRefused)
	}
	v.moving.RLock()
	defer v.moving.RUnlock()
	if err := rundir.CheckID(o.Run); err != nil {
		return fmt.Errorf("%w: %w", runner.ErrRefused, err)
	}
	if again {
		if known, err := v.local.Earlier(o.Run); known {
			return err
		}
	}
	if v.going {
		return errGoing
	}
	hook, err := v.hooks.findHook(o)
	if err != nil {
		return fmt.Errorf("starting run %s: %w", o.Run, err)
	}
	return v.local.StartHook(hook, *o)
}

// replaceImage executes another program image in this process, which keeps its children. It returns only if that
// fails.
func (v *supervisor) replaceImage(exe string) error {
	if err := checkImage(exe); err != nil {
		return fmt.Errorf("replacing the supervisor: %w", err)
	}
	v.moving.Lock()
	defer v.moving.Unlock()
	resume, err := v.local.Park()
	defer resume()
	if err == nil {
		err = errors.Join(keepOnExec(socketFD), keepOnExec(mutexFD))
	}
	if err == nil {
		v.Log.Info("supervisor replaces itself", "exe", exe)
		if v.Flush != nil {
			v.Flush()
		}
		err = syscall.Exec(exe, append([]string{exe}, os.Args[1:]...), v.Env) //nolint:gosec // G204: checked above
	}
	syscall.CloseOnExec(socketFD)
	syscall.CloseOnExec(mutexFD)
	return fmt.Errorf("replacing the supervisor: %w", err)
}

// checkImage refuses a program that another user could have written or replaced, by the same rules as for commands.
func checkImage(exe string) error {
	if !filepath.IsAbs(exe) {
		return fmt.Errorf("%q is not an absolute path", exe)
	}
	way, err := pathsafe.ResolvePath(exe)
	if err != nil {
		return err
	}
	if faults := pathsafe.FindFaults(exe, way); len(faults) > 0 {
		return errors.New(strings.Join(faults, "; "))
	}
	return unix.Access(exe, unix.X_OK)
}
