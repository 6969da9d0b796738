package supervisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/guard"
	"sallyport/internal/logging"
	"sallyport/internal/pathsafe"
	"sallyport/runner/process/rundir"
)

// connection is the connection to the supervisor of a state folder. If it breaks, a supervisor is searched for, or
// started, and asked to replace itself if it has another version.
type connection struct {
	o    Options
	id   string
	ctx  context.Context // the context of everything that runs until Close
	stop context.CancelFunc

	displaced chan struct{} // closed once another server has taken over
	displace  sync.Once

	mu     sync.Mutex // never held during a wait
	link   *link
	search *search // the search in progress, or nil
	lost   bool    // the log has the error that the supervisor cannot be reached

	// Only the search in progress uses these.
	foreign string // the supervisor's version after it replaced itself by a program that has another version too
	told    bool   // the log has the warning that the supervisor was not upgraded
}

// search is a search for a supervisor. Each caller that needs a connection during the search waits for it as long as
// its context allows.
type search struct {
	done chan struct{} // closed when the other fields are set
	link *link
	err  error
}

// Displaced returns a channel that is closed once another server has taken over. Then this server starts no more
// runs, and gets no more ends.
func (c *connection) Displaced() <-chan struct{} { return c.displaced }

// PID returns the process id of the supervisor at the time of the last greeting.
func (c *connection) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link.PID
}

// awaitLink returns the connection. If none works, it waits for a search, which all callers share.
func (c *connection) awaitLink(ctx context.Context) (*link, error) {
	s, l := c.currentSearch() //nolint:contextcheck // a search is shared, so no caller's end ends it
	if s == nil {
		return l, nil
	}
	select {
	case <-s.done:
		return s.link, s.err
	case <-ctx.Done():
		return nil, wrapUnreached(ctx.Err())
	}
}

// currentSearch returns the connection, or the search in progress if the connection is broken. It begins one if none is
// in progress.
func (c *connection) currentSearch() (*search, *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.link.isBroken():
		return nil, c.link
	case c.search != nil:
		return c.search, nil
	case c.ctx.Err() != nil:
		s := &search{done: make(chan struct{}), err: wrapUnreached(c.ctx.Err())}
		close(s.done)
		return s, nil
	}
	return c.beginSearch(c.findAndUpdate), nil
}

// beginSearch searches for a supervisor in the background. The caller holds mu, and no search is in progress.
func (c *connection) beginSearch(look func(context.Context) (*link, error)) *search {
	s := &search{done: make(chan struct{})}
	c.search = s
	go func() {
		defer close(s.done)
		ctx, done := context.WithTimeout(c.ctx, patience)
		defer done()
		s.link, s.err = guard.Call(c.o.Log, func() (*link, error) { return look(ctx) })
		if s.err != nil {
			s.err = wrapUnreached(s.err)
			c.noteLost(s.err)
			return
		}
		c.useLink(s.link)
	}()
	return s
}

// noteLost ends a search that failed. It logs once that the supervisor cannot be reached.
func (c *connection) noteLost(err error) {
	if errors.Is(err, ErrSuperseded) {
		c.displace.Do(func() { close(c.displaced) })
	}
	c.mu.Lock()
	c.search = nil
	logged := c.lost
	c.lost = true
	c.mu.Unlock()
	if !logged && c.ctx.Err() == nil {
		c.o.Log.Error("the supervisor cannot be reached; it is tried again", "error", err)
	}
}

// useLink makes l the connection and ends the search. When l breaks, the supervisor is asked whether another server
// has taken over. It starts no supervisor that has ended: the next request does.
func (c *connection) useLink(l *link) {
	c.mu.Lock()
	before, lost := c.link, c.lost
	c.link, c.lost, c.search = l, false, nil
	c.mu.Unlock()
	if before == l {
		return
	}
	if lost {
		c.o.Log.Info("the supervisor is reached again", "pid", l.PID)
	}
	go func() {
		<-l.broken
		if err := probeSuperseded(c.ctx, c.o.State, c.id); errors.Is(err, ErrSuperseded) {
			c.displace.Do(func() { close(c.displaced) })
		}
	}()
}

func (c *connection) findAndUpdate(ctx context.Context) (*link, error) {
	l, err := c.findSupervisor(ctx)
	if err != nil {
		return nil, err
	}
	return c.updateSupervisor(ctx, l)
}

// updateSupervisor asks a supervisor of another version to replace itself, and returns the connection to the new
// image. If the supervisor cannot replace itself, updateLinked asks again later, because the obstacle may be gone
// then.
func (c *connection) updateSupervisor(ctx context.Context, l *link) (*link, error) {
	if l.Version == c.o.Version || l.Version == c.foreign {
		return l, nil
	}
	_, err := l.callAndWait(ctx, request{Do: doReplace, Exe: c.o.Exe})
	if errors.Is(err, errSilent) { // the supervisor may still replace itself at any moment
		_ = l.conn.Close()
		return nil, err
	}
	if errors.Is(err, errBroken) { // this is the expected result: the old image is gone
		if l, err = c.findSupervisor(ctx); err != nil {
			return nil, err
		}
		if l.Version == c.o.Version {
			return l, nil
		}
		c.foreign, err = l.Version, fmt.Errorf("%s is now of another version than this server", c.o.Exe)
	}
	if !c.told {
		c.told = true
		c.o.Log.Warn("supervisor not upgraded", "version", l.Version, "error", err)
	}
	return l, nil
}

// repeat calls do at each interval, until Close.
func (c *connection) repeat(each time.Duration, do func()) {
	tick := time.NewTicker(each)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

// updateLinked asks a supervisor of another version again to replace itself. It does nothing while a search is in
// progress.
func (c *connection) updateLinked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.link; c.search == nil && !l.isBroken() { // else the search does that
		c.beginSearch(func(ctx context.Context) (*link, error) { return c.updateSupervisor(ctx, l) })
	}
}

func wrapUnreached(err error) error {
	if errors.Is(err, ErrSuperseded) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnreached, err)
}

// findSupervisor dials until a supervisor answers, and starts one if none answers.
func (c *connection) findSupervisor(ctx context.Context) (*link, error) {
	const first, last = time.Millisecond, 50 * time.Millisecond
	var died <-chan error
	var failing logging.Repeated
	began := time.Now()
	for wait := first; ; wait = min(2*wait, last) {
		l, err := dialSupervisor(ctx, c.o.State, c.id)
		if err == nil || errors.Is(err, ErrSuperseded) {
			return l, err
		}
		if time.Since(began) >= askAgain && failing.IsNew(err) {
			c.o.Log.Warn("waiting for the supervisor", "error", err)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.continueSupervisor(greetingTime)
		}
		if ctx.Err() != nil {
			return nil, errors.Join(err, ctx.Err())
		}
		if died == nil {
			ended, err := c.startSupervisor()
			if err != nil {
				return nil, fmt.Errorf("starting it: %w", rundir.MarkFull(err))
			}
			died = ended
		}
		select {
		case end := <-died:
			return nil, fmt.Errorf("it ended at once: %w", end)
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// startSupervisor starts a supervisor, unless another process holds its lock. In that case there is a supervisor
// already, or there will be one, and the channel is nil. Otherwise the channel gets an error when the supervisor
// ends.
func (c *connection) startSupervisor() (died <-chan error, err error) {
	mutex, err := os.OpenFile(filepath.Join(c.o.State, mutexFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, mutex.Close()) }() // the supervisor has inherited it by then
	if err := unix.Flock(int(mutex.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("taking its lock: %w", err)
	}
	if err := c.writeSecret(); err != nil {
		return nil, err
	}
	socket, err := listenAtSocket(c.o.State)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, null.Close()) }()
	// The supervisor gets a new session, so that it gets no signals of a terminal. Of this process's environment it
	// gets only what commands get, because the rest may hold secrets.
	argv := []string{c.o.Exe, "supervise", "--state", c.o.State, "--config", c.o.Config}
	attr := &os.ProcAttr{
		// never nil, because nil means the whole environment of this process
		Dir: "/", Env: append([]string{}, c.o.Env...),
		Files: []*os.File{null, null, os.Stderr, socketFD: socket, mutexFD: mutex},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	p, err := withoutCapabilities(func() (*os.Process, error) { return os.StartProcess(c.o.Exe, argv, attr) })
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() {
		s, err := p.Wait()
		ended <- errors.Join(err, fmt.Errorf("%v", s))
	}()
	return ended, nil
}

// writeSecret writes the secret that proves to the supervisor that a peer is a server. Only the holder of the lock
// calls it.
func (c *connection) writeSecret() error {
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails
	if err := pathsafe.ReplaceFileAt(filepath.Join(c.o.State, secretFile), secret, 0o600); err != nil {
		return fmt.Errorf("making the secret: %w", err)
	}
	return nil
}

// listenAtSocket makes the socket of the supervisor. The caller is the supervisor, or the server that starts it.
func listenAtSocket(state string) (f *os.File, err error) {
	if err := os.Remove(filepath.Join(state, socketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the old socket: %w", err)
	}
	err = withSocket(state, socketFile, func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		f, err = l.File()
		return errors.Join(err, l.Close(), os.Chmod(path, 0o600))
	})
	if err != nil {
		return nil, fmt.Errorf("making the socket: %w", err)
	}
	return f, nil
}
