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
	"bufio"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
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
	listener *net.UnixListener
	socket   *os.File // the inherited file, for the next image
	mutex    *os.File // the lock file, inherited too
	secret   []byte
	uid      int
	quit     chan struct{}

	// moving is held for reading while a run is started, and for writing while a goroutine sets going or replaces
	// this process.
	moving sync.RWMutex
	going  bool

	loading sync.Mutex
	hooks   map[string]*hook.Hook
	before  map[string]*hook.Hook // the hooks that the server used at the last reload, and may still use

	mu         sync.Mutex
	current    *session
	superseded map[string]bool // the clients that another client has replaced
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
	v := &supervisor{Settings: s, uid: os.Geteuid(), quit: make(chan struct{}), superseded: map[string]bool{}}
	if err := v.takeInherited(); err != nil {
		return err
	}
	if err := v.openRuns(); err != nil {
		return err
	}
	s.Log.Info("supervisor ready", "pid", os.Getpid(), "version", s.Version)
	go v.acceptServers(v.listener)
	go v.stayReachable()
	go v.loadHooksAhead()
	v.waitForEnd(signals)
	v.finishAnswers()
	v.parent.Release()
	s.Log.Info("supervisor ended", "pid", os.Getpid())
	return nil
}

// takeInherited takes over the descriptors that the process which started this one opened for it.
func (v *supervisor) takeInherited() (err error) {
	v.socket, v.mutex = os.NewFile(socketFD, socketFile), os.NewFile(mutexFD, mutexFile)
	// An inherited lock belongs to this process already. Otherwise the lock must be free.
	want, err := os.Stat(filepath.Join(v.State, mutexFile))
	if err != nil {
		return fmt.Errorf("starting as a supervisor: %w", err)
	}
	got, err := v.mutex.Stat()
	if err != nil || !os.SameFile(want, got) {
		return errors.New("this command is started by the server alone")
	}
	if err := unix.Flock(mutexFD, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("taking the lock of the supervisor: %w", err)
	}
	if err := writePID(v.mutex); err != nil {
		return err
	}
	l, err := net.FileListener(v.socket)
	if err != nil {
		return fmt.Errorf("taking the socket over: %w", err)
	}
	var ok bool
	if v.listener, ok = l.(*net.UnixListener); !ok {
		return errors.New("the inherited socket is not a Unix socket")
	}
	if v.secret, err = os.ReadFile(filepath.Join(v.State, secretFile)); err != nil {
		return fmt.Errorf("reading the secret: %w", err)
	}
	if len(v.secret) != secretBytes {
		return fmt.Errorf("the secret has %d bytes and not %d", len(v.secret), secretBytes)
	}
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
			v.mu.Lock()
			alone := v.current == nil
			v.mu.Unlock()
			if idle++; !alone || v.local.IsBusy() {
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

// finishAnswers sends the answers that the server waits for.
func (v *supervisor) finishAnswers() {
	v.mu.Lock()
	s, l := v.current, v.listener
	v.mu.Unlock()
	_ = l.Close()
	if s == nil {
		return
	}
	_ = s.conn.CloseRead()
	_ = s.conn.SetWriteDeadline(time.Now().Add(greetingTime))
	<-s.done
}

// acceptServers greets each peer. It serves only one server: a later one has replaced the earlier one.
func (v *supervisor) acceptServers(l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		switch {
		case err == nil:
			go v.greetPeer(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			v.Log.Error("accepting a server", "error", err)
			<-time.After(100 * time.Millisecond)
		}
	}
}

// greetPeer serves a connection if the peer is a server.
func (v *supervisor) greetPeer(conn *net.UnixConn) {
	s := &session{v: v, conn: conn, gone: make(chan struct{}), done: make(chan struct{})}
	r := bufio.NewReaderSize(conn, maxGreeting)
	pid, err := checkPeer(conn, v.uid)
	if err == nil && pid > 0 {
		err = proctree.CheckStranger(pid, os.Getpid(), v.local.HasFolder)
	}
	err = errors.Join(err, conn.SetDeadline(time.Now().Add(greetingTime)))
	var h hello
	if err == nil {
		err = readGreeting(r, &h)
	}
	if err == nil && subtle.ConstantTimeCompare(h.Secret, v.secret) != 1 {
		err = errors.New("the secret is wrong")
	}
	if err != nil {
		v.Log.Warn("refusing a connection", "error", err)
		_ = conn.Close()
		return
	}
	s.client = h.Client
	if h.Probe {
		v.mu.Lock()
		if v.superseded[h.Client] {
			err = ErrSuperseded
		}
		v.mu.Unlock()
		// A probe sends no requests.
		_ = writeLine(conn, welcome{PID: os.Getpid(), Version: v.Version, Fault: newFault(err)}, nil)
		_ = conn.Close()
		return
	}
	err = v.admitSession(s)
	w := welcome{PID: os.Getpid(), Version: v.Version, Fault: newFault(err)}
	if err := errors.Join(writeLine(conn, w, nil), conn.SetDeadline(time.Time{}), err); err != nil {
		v.Log.Warn("refusing a server", "error", err)
		_ = conn.Close() // this ends serveRequests
	}
	if err == nil {
		s.serveRequests(r)
	}
}

// admitSession makes s the session that is served. It first waits until each request of the earlier session has been
// carried out or never will be, so that s sees the result.
func (v *supervisor) admitSession(s *session) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.superseded[s.client] {
		return ErrSuperseded
	}
	if old := v.current; old != nil {
		if old.client != s.client {
			v.superseded[old.client] = true
		}
		_ = old.conn.Close()
		<-old.done
	}
	v.moving.RLock()
	defer v.moving.RUnlock()
	if v.going {
		return errGoing
	}
	v.current = s
	v.local.SetAttended(true)
	return nil
}

// dismissSession removes a session that is over.
func (v *supervisor) dismissSession(s *session) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.current == s {
		v.current = nil
		v.local.SetAttended(false)
	}
}

func (v *supervisor) loadHooksAhead() {
	v.loading.Lock()
	defer v.loading.Unlock()
	if err := v.loadHooks(); err != nil {
		v.Log.Error("reading the hooks", "error", err)
	}
}

func (v *supervisor) loadHooks() error {
	hooks, err := v.Load()
	if err == nil {
		v.hooks = hooks
	}
	return err
}

// reloadHooks reads the hooks again, before the server uses them. The server may never use them: until then it uses the
// hooks with the hook.Digest inForce, however often it fails to load the new ones.
func (v *supervisor) reloadHooks(inForce string) (digest string, err error) {
	v.loading.Lock()
	defer v.loading.Unlock()
	before := v.hooks
	if v.before != nil && hook.Digest(v.before) == inForce {
		before = v.before
	}
	if err := v.loadHooks(); err != nil {
		return "", err
	}
	v.before = before
	return hook.Digest(v.hooks), nil
}

// hookFor returns the hook of an order. If the server knows another version of the hook, the file is read again,
// because one of the two may have read it earlier than the other.
func (v *supervisor) hookFor(o *runner.Order) (*hook.Hook, error) {
	v.loading.Lock()
	defer v.loading.Unlock()
	for again := false; ; again = true {
		h := v.hooks[o.Hook]
		if old := v.before[o.Hook]; old != nil && old.Digest() == o.Digest {
			h = old
		}
		switch {
		case h != nil && h.Digest() == o.Digest:
			if !h.Unauthenticated && !slices.Contains(h.Callers, o.Caller) {
				return nil, fmt.Errorf("%w: the file does not allow the caller %q to start the hook %q",
					runner.ErrRefused, o.Caller, o.Hook)
			}
			return h, nil
		case again && h == nil:
			return nil, fmt.Errorf("%w: the file has no hook %q", runner.ErrNotNow, o.Hook)
		case again:
			return nil, fmt.Errorf("%w: the hook %q has changed in the file since the server read it", runner.ErrNotNow,
				o.Hook)
		}
		if err := v.loadHooks(); err != nil {
			return nil, fmt.Errorf("%w: reading the hooks: %w", runner.ErrNotNow, err)
		}
	}
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
	hook, err := v.hookFor(o)
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

// session is a connection of a server.
type session struct {
	v      *supervisor
	conn   *net.UnixConn
	client string
	gone   chan struct{} // closed when no more requests arrive
	done   chan struct{} // closed when all requests were carried out

	writing sync.Mutex
}

func (s *session) serveRequests(r *bufio.Reader) {
	var calls sync.WaitGroup
	for {
		q, err := readRequest(r)
		if err != nil {
			break
		}
		calls.Go(func() {
			p := s.answerRequest(q)
			p.ID = q.ID
			s.writing.Lock()
			defer s.writing.Unlock()
			if err := writeLine(s.conn, p, nil); err != nil {
				_ = s.conn.Close() // the server sends the request again on another connection
			}
		})
	}
	close(s.gone)
	calls.Wait()
	_ = s.conn.Close()
	close(s.done)
	s.v.dismissSession(s)
}

func (s *session) answerRequest(q *request) *reply {
	p := new(reply)
	l := s.v.local
	var err error
	switch q.Do {
	case doStart:
		err = s.v.startRun(q.Order, q.Again)
		if errors.Is(err, rundir.ErrFolderGone) && s.v.refuseMoreRuns() == nil { // the next supervisor makes the folder
			close(s.v.quit)
		}
	case doStop:
		err = l.Stop(q.Run, q.Why, q.Grace)
	case doKnown:
		err = l.Find(q.Run)
	case doWait:
		err = s.waitEnd(q.Run, p)
	case doList:
		p.Runs, err = l.List()
	case doReload:
		p.Digest, err = s.v.reloadHooks(q.InForce)
	case doReplace:
		err = s.v.replaceImage(q.Exe)
	case doQuit:
		if err = s.v.refuseMoreRuns(); err == nil {
			close(s.v.quit)
		}
	default:
		err = fmt.Errorf("unknown request %q", q.Do)
	}
	p.Fault = newFault(err)
	return p
}

// waitEnd waits for the end of a run, or of the connection.
func (s *session) waitEnd(run string, p *reply) error {
	ends, leave, err := s.v.local.FollowUntil(run)
	if err != nil {
		return err
	}
	defer leave()
	select {
	case e := <-ends:
		p.End, p.Why = &e, e.Reason
		return nil
	case <-s.gone:
	}
	select { // an end that is available already is still sent
	case e := <-ends:
		p.End, p.Why = &e, e.Reason
		return nil
	default:
		return context.Canceled
	}
}
