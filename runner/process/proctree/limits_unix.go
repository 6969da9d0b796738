//go:build unix && !linux

package proctree

import (
	"os"
	"syscall"
)

// ProcessLimit returns 0: on this system the process limit is not changed.
func ProcessLimit() uint64 { return 0 }

// whileSet calls fork while this process has the umask of a command. Every file of the supervisor is made with an
// explicit mode for its owner only, so the umask of a command does not open any of them.
func (l *commandLimits) whileSet(umask int, fork func() (*os.Process, error)) (*os.Process, error) {
	own := syscall.Umask(umask)
	defer syscall.Umask(own)
	return fork()
}

func commandOOMScore() int { return 0 }

// RaiseOOMScore does nothing on this system.
func (p *Parent) RaiseOOMScore(int) {}
