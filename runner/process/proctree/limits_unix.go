//go:build unix && !linux

package proctree

import (
	"os"
	"syscall"
)

// ProcessLimit is 0: the limit of processes stays what it is on this system.
func ProcessLimit() uint64 { return 0 }

// whileSet calls fork while this process has the umask that a command is
// to have. Every file of the supervisor is made with an explicit mode for its owner
// alone, so the umask of a command does not open any of them.
func (l *commandLimits) whileSet(umask int, fork func() (*os.Process, error)) (*os.Process, error) {
	l.forking.Lock()
	defer l.forking.Unlock()
	own := syscall.Umask(umask)
	defer syscall.Umask(own)
	return fork()
}

func commandOOMScore() int { return 0 }

// RaiseOOMScore does nothing on this system.
func (p *Parent) RaiseOOMScore(int) {}
