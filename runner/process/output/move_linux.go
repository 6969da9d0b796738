package output

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// moveBytes moves up to most bytes from a pipe to the offset off of a file. They do
// not come through this process, so they are in the one or in the other when it is
// killed. Its results are those of copyBytes.
func moveBytes(to *os.File, off int64, from, most int) (n int, err error) {
	n, err = retrySplice(func() (int64, error) {
		return unix.Splice(from, nil, int(to.Fd()), &off, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	})
	if err != nil { // the disk is full, or the filesystem cannot do that
		return copyBytes(to, off, from, most)
	}
	return n, nil
}

// retrySplice calls a system call of the splice family. No bytes without an error mean that
// there are none.
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

// growPipe lets a pipe hold more. Where the user's pipes together have too much
// already, it stays as it is.
func growPipe(fd, size int) {
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
}

// peekPipe shows what is in a FIFO before it is taken from there.
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

// peekBytes gets up to most bytes, which the FIFO has still, and returns how many.
func (p *peekPipe) peekBytes(fifo, most int) int {
	n, _ := retrySplice(func() (int64, error) { return unix.Tee(fifo, p.in, most, unix.SPLICE_F_NONBLOCK) }) // two pipes have no errors
	return n
}

// readEnd is where the bytes of peekBytes are to be read.
func (p *peekPipe) readEnd(int) int { return p.out }

// takeBytes takes bytes from the FIFO, which has them.
func (p *peekPipe) takeBytes(fifo, n int) {
	for n > 0 {
		k, err := retrySplice(func() (int64, error) { return unix.Splice(fifo, nil, p.null, nil, n, unix.SPLICE_F_NONBLOCK) })
		if err != nil || k == 0 { // somebody else took them
			return
		}
		n -= k
	}
}

// copyPeeked copies what is in the FIFO.
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
