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

// connection is the connection to the supervisor of a state folder. One that breaks is replaced: a supervisor is
// looked for, or started, and asked to replace itself where it is of another version.
type connection struct {
	o    Options
	id   string
	ctx  context.Context // of all that goes on until Close
	stop context.CancelFunc

	displaced chan struct{} // closed once another server has taken over
	displace  sync.Once

	mu     sync.Mutex // never held while something is waited for
	link   *link
	search *search // under way, or nil
	lost   bool    // the log says that the supervisor cannot be reached

	// Of the search under way.
	foreign string // version of the supervisor once it did replace itself, by a program that is not ours either
	told    bool   // the log says that it stays what it is
}

// search is one for a supervisor. Whoever needs a connection meanwhile waits for
// it, for as long as they like.
type search struct {
	done chan struct{} // closed when the rest is set
	link *link
	err  error
}

// Displaced is closed once another server has taken over: this one starts nothing
// any more, and learns of no end.
func (c *connection) Displaced() <-chan struct{} { return c.displaced }

// PID is the supervisor's process, as it was when it was last spoken to.
func (c *connection) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link.PID
}

// awaitLink returns the connection. Where there is none that works, one search for
// another is under way, whoever waits for it.
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

// currentSearch returns the search under way, which it begins where the connection is
// broken, or the connection.
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

// beginSearch looks for a supervisor in the background. The caller holds mu, and
// no search is under way.
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

// noteLost ends a search in vain. The log says once that the supervisor cannot be
// reached.
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

// useLink makes l the connection, which ends a search. When it breaks, the supervisor
// is asked whether another server has taken over; one that is gone is started by
// whoever needs it.
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

// updateSupervisor has a supervisor of another version replace itself, and returns the
// connection to what it is then. One that cannot is asked again: what is in its
// way may pass.
func (c *connection) updateSupervisor(ctx context.Context, l *link) (*link, error) {
	if l.Version == c.o.Version || l.Version == c.foreign {
		return l, nil
	}
	_, err := l.callAndWait(ctx, request{Do: doReplace, Exe: c.o.Exe})
	if errors.Is(err, errSilent) { // it would be another one at any moment
		_ = l.conn.Close()
		return nil, err
	}
	if errors.Is(err, errBroken) { // as it must be: the old image is gone
		if l, err = c.findSupervisor(ctx); err != nil {
			return nil, err
		}
		if l.Version == c.o.Version {
			return l, nil
		}
		c.foreign, err = l.Version, fmt.Errorf("%s is of another version than this server by now", c.o.Exe)
	}
	if !c.told {
		c.told = true
		c.o.Log.Warn("supervisor not upgraded", "version", l.Version, "error", err)
	}
	return l, nil
}

// repeat calls do each time that the duration has passed, until Close.
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

// updateLinked asks a supervisor of another version again to replace itself.
func (c *connection) updateLinked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.link; c.search == nil && !l.isBroken() { // else the search sees to it
		c.beginSearch(func(ctx context.Context) (*link, error) { return c.updateSupervisor(ctx, l) })
	}
}

func wrapUnreached(err error) error {
	if errors.Is(err, ErrSuperseded) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnreached, err)
}

// findSupervisor dials until a supervisor answers, and starts one when there is none.
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

// startSupervisor starts a supervisor, unless somebody holds its lock: then there is one,
// or will be, and the channel is nil. Otherwise it tells of its end.
func (c *connection) startSupervisor() (died <-chan error, err error) {
	mutex, err := os.OpenFile(filepath.Join(c.o.State, mutexFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, mutex.Close()) }() // the supervisor has it by then
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
	// A session of its own, so that no terminal's end reaches it; and nothing of
	// our environment but what commands get, because it may hold secrets.
	argv := []string{c.o.Exe, "supervise", "--state", c.o.State, "--config", c.o.Config}
	attr := &os.ProcAttr{
		Dir: "/", Env: append([]string{}, c.o.Env...), // never nil, which would stand for all of ours
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

// writeSecret writes what a server must know besides its user. Only the holder
// of the lock calls it.
func (c *connection) writeSecret() error {
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails
	if err := pathsafe.ReplaceFileAt(filepath.Join(c.o.State, secretFile), secret, 0o600); err != nil {
		return fmt.Errorf("making the secret: %w", err)
	}
	return nil
}

// listenAtSocket makes the socket of the supervisor, which is the caller or inherits it.
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
