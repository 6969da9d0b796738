package process

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// moveBytes moves up to most bytes from a FIFO to the offset off of a file, or
// nowhere when that is nil. They do not come through this process, so they are in
// the one or in the other when it is killed.
func moveBytes(to *os.File, off int64, fifo, most int) (n int, err error) {
	if to == nil {
		return copyBytes(nil, off, fifo, most)
	}
	for {
		moved, err := unix.Splice(fifo, nil, int(to.Fd()), &off, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case err == nil:
			return int(moved), nil
		case errors.Is(err, unix.EAGAIN):
			return 0, nil
		case errors.Is(err, unix.EINTR):
		default: // the disk is full, or the filesystem cannot do that
			return copyBytes(to, off, fifo, most)
		}
	}
}

// growFIFO lets a FIFO hold as much as it may. Where the user's pipes together have
// too much already, it stays as it is.
func growFIFO(fd int) {
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, fifoMost)
}
