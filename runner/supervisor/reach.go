package supervisor

import (
	"bytes"
	"errors"
	"fmt"
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

// stayReachable makes the socket, the secret and the lock file again when they were removed or replaced. While the
// supervisor holds its lock, no other process makes them.
func (v *supervisor) stayReachable() {
	socket, _ := os.Lstat(filepath.Join(v.State, socketFile)) // nil if it was removed already
	failing := false
	for {
		<-time.After(reachEach)
		now, err := os.Lstat(filepath.Join(v.State, socketFile))
		if socket == nil || err != nil || !os.SameFile(socket, now) {
			socket, err = v.listenAgain()
		}
		if err == nil {
			err = errors.Join(v.keepSecret(), v.keepLock())
		}
		if err != nil && !failing {
			v.Log.Error("servers cannot reach the supervisor", "error", err)
		}
		failing = err != nil
	}
}

// listenAgain makes the socket again, and accepts servers on it. The next image of this process inherits it.
func (v *supervisor) listenAgain() (os.FileInfo, error) {
	v.moving.RLock()
	defer v.moving.RUnlock()
	if v.going { // the next supervisor makes another socket
		return nil, errGoing
	}
	f, err := listenAtSocket(v.State)
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
	v.mu.Lock()
	old := v.listener
	v.listener = listener
	v.mu.Unlock()
	_ = old.Close() // this ends its acceptServers
	go v.acceptServers(listener)
	v.Log.Warn("the supervisor's socket was removed; it is made again")
	return os.Lstat(filepath.Join(v.State, socketFile))
}

// keepLock takes the lock again if its file was replaced. Otherwise a server would start a second supervisor.
func (v *supervisor) keepLock() error {
	held, err := v.mutex.Stat()
	if err != nil {
		return err
	}
	name := filepath.Join(v.State, mutexFile)
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
	v.Log.Warn("the supervisor's lock was removed; it is made again")
	return writePID(v.mutex)
}

func (v *supervisor) keepSecret() error {
	name := filepath.Join(v.State, secretFile)
	if text, err := os.ReadFile(name); err == nil && bytes.Equal(text, v.secret) {
		return nil
	}
	if err := pathsafe.ReplaceFileAt(name, v.secret, 0o600); err != nil {
		return fmt.Errorf("making the secret again: %w", err)
	}
	v.Log.Warn("the supervisor's secret was removed; it is made again")
	return nil
}
