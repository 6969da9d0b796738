package output

import (
	"bytes"
	"errors"
	"io"
	"os"

	"sallyport/runner/process/rundir"
)

// tailWriter writes the end of an output to the tail file.
type tailWriter struct {
	file  *os.File // nil until the head is full, and while the tail cannot be written
	state tailState
	peek  *peekPipe
}

// settlePending removes the bytes at the end of the tail from the FIFO, if a collector was killed after it had
// written them and before it had removed them.
func (t *tailWriter) settlePending(fifo *os.File) {
	n := t.state.Pending
	if n == 0 || fifo == nil || t.state.Size-n < t.state.First || t.needPeek() != nil {
		return
	}
	fd, has := int(fifo.Fd()), make([]byte, n)
	has = has[:t.peek.copyPeeked(fd, has)]
	for off, left := t.state.Size-n, has; len(left) > 0; {
		at, run := t.state.locate(off)
		written := make([]byte, min(int64(len(left)), run))
		if _, err := t.file.ReadAt(written, at); err != nil || !bytes.Equal(written, left[:len(written)]) {
			return // they were removed already: the FIFO has later bytes
		}
		off, left = off+int64(len(written)), left[len(written):]
	}
	if len(has) > 0 {
		t.peek.takeBytes(fd, int(n))
	}
}

// needPeek creates the pipe that moveFromFIFO needs.
func (t *tailWriter) needPeek() (err error) {
	if t.peek == nil {
		t.peek, err = newPeekPipe()
	}
	return err
}

// moveFromFIFO moves bytes in three steps, so that a collector that is killed between them leaves no doubt about which
// bytes are in the tail and which are still in the FIFO: the bytes are written while they are still in the FIFO, then
// the tail records that it has them, and then they are removed from the FIFO.
func (t *tailWriter) moveFromFIFO(fd int) (n int, err error) {
	if err := t.needPeek(); err != nil {
		return discardBytes(fd, fifoSize), err
	}
	n = t.peek.peekBytes(fd, tailChunk)
	if n == 0 {
		return 0, nil
	}
	end := t.state.Size + int64(n)
	off, err := t.writeUpTo(t.peek.readEnd(fd), end)
	t.state.Size, t.state.Pending = end, int64(n)
	if err != nil {
		discardBytes(t.peek.readEnd(fd), int(end-off))
		t.state.First = end
	}
	err = errors.Join(err, t.state.writeState(t.file))
	t.peek.takeBytes(fd, n)
	t.state.Pending = 0
	return n, errors.Join(err, t.state.writeState(t.file))
}

// writeUpTo writes to the tail up to the offset end of the output, and returns the offset that it reached.
func (t *tailWriter) writeUpTo(from int, end int64) (off int64, err error) {
	for off = t.state.Size; off < end && err == nil; {
		at, run := t.state.locate(off)
		var n int
		n, err = moveBytes(t.file, at, from, int(min(end-off, run)))
		if off += int64(n); n == 0 && err == nil {
			err = io.ErrUnexpectedEOF
		}
	}
	return off, err
}

func (t *tailWriter) closeFile() {
	rundir.CloseFiles(t.file)
	t.file = nil
}

// close closes the file and the pipe.
func (t *tailWriter) close() {
	t.closeFile()
	if t.peek != nil {
		t.peek.closePipe()
	}
}
