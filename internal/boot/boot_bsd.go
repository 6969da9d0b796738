//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package boot

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// ID is the same from one start of the machine to the next, and never again. It is empty where the system does
// not tell. Where it is the time of the start, a step of the clock changes it too.
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
