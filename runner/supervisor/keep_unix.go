//go:build unix

package supervisor

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// keepOnExec lets a descriptor live through the replacement of this process.
func keepOnExec(fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("keeping descriptor %d: %w", fd, err)
	}
	return nil
}
