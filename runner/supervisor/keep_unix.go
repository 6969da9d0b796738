//go:build unix

package supervisor

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// keepOnExec keeps a descriptor open when this process executes another program image.
func keepOnExec(fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("keeping descriptor %d: %w", fd, err)
	}
	return nil
}
