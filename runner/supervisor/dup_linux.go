package supervisor

import "golang.org/x/sys/unix"

// duplicateOnto makes to a duplicate of the descriptor fd.
func duplicateOnto(fd, to int) error { return unix.Dup3(fd, to, unix.O_CLOEXEC) }
