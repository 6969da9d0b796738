//go:build unix && !linux

package process

import (
	"os"
	"syscall"
)

// processLimit is 0: the limit of processes stays what it is on this system.
func processLimit() uint64 { return 0 }

// withCommandLimits calls fork while this process has the umask that a command is
// to have. Every file of the supervisor is made with an explicit mode for its owner
// alone, so the umask of a command does not open any of them.
func (l *Local) withCommandLimits(umask int, fork func() (*os.Process, error)) (*os.Process, error) {
	l.forking.Lock()
	defer l.forking.Unlock()
	own := syscall.Umask(umask)
	defer syscall.Umask(own)
	return fork()
}

func commandOOMScore() int { return 0 }

func (l *Local) raiseOOMScore(int) {}
