//go:build darwin || freebsd

package process

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerUID returns the user at the other end of a Unix socket.
func peerUID(conn *net.UnixConn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Xucred
	var got error
	const local = 0 // SOL_LOCAL
	err = raw.Control(func(fd uintptr) { cred, got = unix.GetsockoptXucred(int(fd), local, unix.LOCAL_PEERCRED) })
	if err != nil {
		return -1, err
	}
	if got != nil {
		return -1, got
	}
	return int(cred.Uid), nil
}
