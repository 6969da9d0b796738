//go:build unix && !linux

package supervisor

import "syscall"

// duplicateOnto makes to a duplicate of the descriptor fd.
func duplicateOnto(fd, to int) error {
	if err := syscall.Dup2(fd, to); err != nil {
		return err
	}
	syscall.CloseOnExec(to)
	return nil
}
