//go:build darwin || freebsd || netbsd

package live

import "syscall"

// changeTime is when a file, or what is known of it, was last changed.
func changeTime(s *syscall.Stat_t) syscall.Timespec { return s.Ctimespec }
