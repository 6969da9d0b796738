package proctree

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Await returns when the process, which is a child, has ended. It returns nil and does not reap it; on a
// kernel that does not support that, it reaps it and returns its state.
func (m *Main) Await() *os.ProcessState {
	if err := awaitZombie(m.pid); err == nil {
		return nil
	}
	return m.Reap()
}

// HasEnded reports whether the process, which is a child, has ended. It does not reap it.
func (m *Main) HasEnded() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, m.pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}

// awaitZombie waits with the runtime's poller, so a run in progress occupies no thread.
func awaitZombie(pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = f.Close() }() // nothing was written
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ended error
	err = conn.Read(func(fd uintptr) bool {
		var info unix.Siginfo
		ended = unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		return !errors.Is(ended, unix.EINTR) && (ended != nil || info.Signo != 0)
	})
	return errors.Join(err, ended)
}
