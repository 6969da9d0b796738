package boot

import (
	"time"

	"golang.org/x/sys/unix"
)

// Uptime is the time since the machine started, with the time it was suspended (CLOCK_BOOTTIME). No step of
// the wall clock changes it.
func Uptime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil { // never, on a kernel that Go runs on
		return 0
	}
	return time.Duration(t.Nano())
}
