//go:build unix && !linux && !darwin && !freebsd

package supervisor

import (
	"errors"
	"net"
)

// peerOf lets nobody in where nobody can be told from another.
func peerOf(*net.UnixConn) (uid, pid int, err error) { return -1, 0, errors.ErrUnsupported }
