package supervisor

import "golang.org/x/sys/unix"

// duplicateOnto makes the descriptor to stand for what fd stands for.
func duplicateOnto(fd, to int) error { return unix.Dup3(fd, to, unix.O_CLOEXEC) }
