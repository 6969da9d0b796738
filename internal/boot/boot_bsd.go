//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package boot

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// ID returns an identifier of the current start of the machine, which no other start has. It is empty if the system
// does not provide one. Where it is the time of the start, a step of the clock changes it, too.
func ID() string {
	if id, err := unix.Sysctl("kern.bootsessionuuid"); err == nil { // darwin
		return id
	}
	at, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return ""
	}
	return strconv.FormatInt(at.Nano(), 10)
}
