package supervisor

import "golang.org/x/sys/unix"

// dupOnto makes the descriptor to stand for what fd stands for.
func dupOnto(fd, to int) error { return unix.Dup3(fd, to, unix.O_CLOEXEC) }
