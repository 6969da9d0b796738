package supervisor

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerCredentials returns the user at the other end of a Unix socket, and the process that connected it; 0 if the
// system does not report it.
func peerCredentials(conn *net.UnixConn) (uid, pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, 0, err
	}
	var cred *unix.Ucred
	var got error
	err = raw.Control(func(fd uintptr) { cred, got = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil {
		return -1, 0, err
	}
	if got != nil {
		return -1, 0, got
	}
	return int(cred.Uid), int(cred.Pid), nil
}
