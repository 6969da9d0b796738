package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/pathsafe"
)

// reachEach is how often a supervisor checks whether servers can still reach it. It is shorter than the time for
// which servers try.
const reachEach = 2 * time.Second

// entrance is what a server needs to reach the supervisor: the socket, the secret, and the lock file by which it knows
// that there is a supervisor. Only stayReachable changes it.
type entrance struct {
	state    string
	log      *slog.Logger
	listener *net.UnixListener
	socket   *os.File // the inherited file, for the next image
	lock     *os.File // the lock file, inherited too
	secret   []byte
}

// takeInherited takes over the descriptors that the process which started this one opened for it.
func takeInherited(state string, log *slog.Logger) (*entrance, error) {
	var want, got unix.Stat_t
	if err := unix.Stat(filepath.Join(state, mutexFile), &want); err != nil {
		return nil, fmt.Errorf("starting as a supervisor: %w", err)
	}
	if err := unix.Fstat(mutexFD, &got); err != nil || want.Dev != got.Dev || want.Ino != got.Ino {
		return nil, errors.New("this command is started by the server alone")
	}
	// Not before this check: an os.File closes its descriptor in the end, even if that belongs to another part of the
	// process.
	e := &entrance{
		state: state, log: log, socket: os.NewFile(socketFD, socketFile), lock: os.NewFile(mutexFD, mutexFile),
	}
	// An inherited lock belongs to this process already. Otherwise the lock must be free.
	if err := unix.Flock(mutexFD, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("taking the lock of the supervisor: %w", err)
	}
	if err := writePID(e.lock); err != nil {
		return nil, err
	}
	l, err := net.FileListener(e.socket)
	if err != nil {
		return nil, fmt.Errorf("taking the socket over: %w", err)
	}
	var ok bool
	if e.listener, ok = l.(*net.UnixListener); !ok {
		return nil, errors.New("the inherited socket is not a Unix socket")
	}
	if e.secret, err = os.ReadFile(filepath.Join(state, secretFile)); err != nil {
		return nil, fmt.Errorf("reading the secret: %w", err)
	}
	if len(e.secret) != secretBytes {
		return nil, fmt.Errorf("the secret has %d bytes and not %d", len(e.secret), secretBytes)
	}
	return e, nil
}

// stayReachable makes the socket, the secret and the lock file again when they were removed or replaced. While the
// supervisor holds its lock, no other process makes them.
//
// A new socket is made by unlessGoing, and passed to accept: when this process is about to end, the next supervisor
// makes another one.
func (e *entrance) stayReachable(unlessGoing func(func() error) error, accept func(*net.UnixListener)) {
	socket, _ := os.Lstat(filepath.Join(e.state, socketFile)) // nil if it was removed already
	failing := false
	for {
		<-time.After(reachEach)
		now, err := os.Lstat(filepath.Join(e.state, socketFile))
		if socket == nil || err != nil || !os.SameFile(socket, now) {
			err = unlessGoing(func() (err error) {
				socket, err = e.listenAgain()
				return err
			})
			if err == nil {
				go accept(e.listener)
			}
		}
		if err == nil {
			err = errors.Join(e.keepSecret(), e.keepLock())
		}
		if err != nil && !failing {
			e.log.Error("servers cannot reach the supervisor", "error", err)
		}
		failing = err != nil
	}
}

// listenAgain makes the socket again. The next image of this process inherits it.
func (e *entrance) listenAgain() (os.FileInfo, error) {
	f, err := listenAtSocket(e.state)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the duplicate at socketFD stays open
	if err := duplicateOnto(int(f.Fd()), socketFD); err != nil {
		return nil, fmt.Errorf("keeping the socket: %w", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("keeping the socket: %w", err)
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errors.New("the socket is not a Unix socket"), l.Close())
	}
	_ = e.listener.Close() // this ends its accept
	e.listener = listener
	e.log.Warn("the supervisor's socket was removed; it is made again")
	return os.Lstat(filepath.Join(e.state, socketFile))
}

// keepLock takes the lock again if its file was replaced. Otherwise a server would start a second supervisor.
func (e *entrance) keepLock() error {
	held, err := e.lock.Stat()
	if err != nil {
		return err
	}
	name := filepath.Join(e.state, mutexFile)
	if now, err := os.Lstat(name); err == nil && os.SameFile(held, now) {
		return nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("making the lock again: %w", err)
	}
	defer func() { _ = f.Close() }() // the duplicate at mutexFD keeps the lock
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("taking the lock again: %w", err)
	}
	if err := duplicateOnto(int(f.Fd()), mutexFD); err != nil {
		return fmt.Errorf("keeping the lock: %w", err)
	}
	e.log.Warn("the supervisor's lock was removed; it is made again")
	return writePID(e.lock)
}

func (e *entrance) keepSecret() error {
	name := filepath.Join(e.state, secretFile)
	if text, err := os.ReadFile(name); err == nil && bytes.Equal(text, e.secret) {
		return nil
	}
	if err := pathsafe.ReplaceFileAt(name, e.secret, 0o600); err != nil {
		return fmt.Errorf("making the secret again: %w", err)
	}
	e.log.Warn("the supervisor's secret was removed; it is made again")
	return nil
}
