//go:build unix && !darwin && !freebsd && !netbsd

package config

import "syscall"

// changeTime returns when the contents or the metadata of a file last changed.
func changeTime(s *syscall.Stat_t) syscall.Timespec { return s.Ctim }
