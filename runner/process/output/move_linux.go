package output

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// moveBytes moves up to most bytes from a pipe to the offset off of a file. The bytes do not pass through this
// process, so each is in the pipe or in the file when the process is killed. Its results are those of copyBytes.
func moveBytes(to *os.File, off int64, from, most int) (n int, err error) {
	n, err = retrySplice(func() (int64, error) {
		return unix.Splice(from, nil, int(to.Fd()), &off, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	})
	if err != nil { // the disk is full, or the filesystem does not support splice
		return copyBytes(to, off, from, most)
	}
	return n, nil
}

// retrySplice calls a system call of the splice family until it is not interrupted. If it returns no bytes and no
// error, the pipe has none.
func retrySplice(call func() (int64, error)) (int, error) {
	for {
		n, err := call()
		switch {
		case err == nil:
			return int(n), nil
		case errors.Is(err, unix.EAGAIN):
			return 0, nil
		case !errors.Is(err, unix.EINTR):
			return 0, err
		}
	}
}

// growPipe raises the capacity of a pipe. If the user's pipes together exceed their limit, the capacity stays as it
// is.
func growPipe(fd, size int) {
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
}

// peekPipe copies what is in a FIFO without removing it from there.
type peekPipe struct{ in, out, null int }

func newPeekPipe() (*peekPipe, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &peekPipe{out: ends[0], in: ends[1]}
	var err error
	if p.null, err = unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
		p.closePipe()
		return nil, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	growPipe(p.in, tailChunk)
	return p, nil
}

// peekBytes copies up to most bytes, which stay in the FIFO, and returns how many.
func (p *peekPipe) peekBytes(fifo, most int) int {
	// Tee between two pipes returns no other errors.
	n, _ := retrySplice(func() (int64, error) { return unix.Tee(fifo, p.in, most, unix.SPLICE_F_NONBLOCK) })
	return n
}

// readEnd returns the descriptor from which the bytes of peekBytes are read.
func (p *peekPipe) readEnd(int) int { return p.out }

// takeBytes removes n bytes from the FIFO.
func (p *peekPipe) takeBytes(fifo, n int) {
	for n > 0 {
		k, err := retrySplice(func() (int64, error) {
			return unix.Splice(fifo, nil, p.null, nil, n, unix.SPLICE_F_NONBLOCK)
		})
		if err != nil || k == 0 { // another process removed them
			return
		}
		n -= k
	}
}

// copyPeeked copies what is in the FIFO into to, without removing it.
func (p *peekPipe) copyPeeked(fifo int, to []byte) (n int) {
	have := p.peekBytes(fifo, len(to))
	for n < have {
		k := readPipe(p.out, to[n:have])
		if k == 0 {
			break
		}
		n += k
	}
	return n
}

func (p *peekPipe) closePipe() {
	for _, fd := range []int{p.in, p.out, p.null} {
		if fd > 0 {
			_ = unix.Close(fd)
		}
	}
}
