package output

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"sallyport/runner/process/rundir"

	"golang.org/x/sys/unix"
)

const (
	fifoSize = 64 << 10 // the capacity of a FIFO in bytes at first,
	fifoMost = 1 << 20  // and the largest that a user without privileges may set
)

// Collector moves what a command writes from the FIFO in the folder of the run into the output files, and keeps head
// and tail.
//
// The command has the FIFO open for reading and writing, so it never gets SIGPIPE: while no collector runs, the
// output stays in the FIFO, and when the FIFO is full the command blocks until the next collector opens the FIFO by
// its name. A FIFO loses its content when no process has it open; therefore the server holds it open too, by
// [HoldFIFO].
type Collector struct {
	runs    *rundir.Runs
	log     *slog.Logger
	run     string
	bounds  rundir.Bounds
	fifo    *os.File      // nil for a run of an earlier version: its command writes into the file itself
	stopped chan struct{} // closed when collectUntilStopped has returned

	// Only collectUntilStopped uses these while it runs. While it is stopped, the other methods use them.
	size   int64    // of all that was written
	head   *os.File // nil when it is full or could not be written
	tail   *os.File // nil until the head is full, and while the tail cannot be written
	state  tailState
	peek   *peekPipe
	grown  bool // the FIFO has its largest capacity
	gone   bool // the output was removed: nothing more is kept
	failed bool // the log has the error that some output could not be written
}

// Collect starts the collector of a new run. The collector takes over the files of f.
func Collect(runs *rundir.Runs, log *slog.Logger, f *rundir.Folder, s *rundir.Status) *Collector {
	c := &Collector{runs: runs, log: log, run: s.Run, bounds: s.Bounds, fifo: f.FIFO, head: f.Output}
	f.FIFO, f.Output = nil, nil
	c.startCollecting()
	return c
}

// Adopt continues to collect the output of a run that another supervisor, or another image of this one, started.
func Adopt(runs *rundir.Runs, log *slog.Logger, s *rundir.Status) *Collector {
	c := &Collector{runs: runs, log: log, run: s.Run, bounds: s.Bounds, size: s.Output.Bytes}
	var err error
	c.fifo, err = rundir.OpenFIFO(c.filePath(rundir.FIFOFile), unix.O_RDONLY|unix.O_NONBLOCK)
	switch {
	case err == nil && s.Pipe > 0:
		closeIfSame(s.Pipe, c.fifo)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		log.Error("a run's output cannot be read", "run", s.Run, "error", err)
	}
	if err := c.reopenFiles(); err != nil {
		c.gone = true
		c.logFailure(err)
	}
	c.startCollecting()
	return c
}

func (c *Collector) filePath(name string) string { return c.runs.Path(c.run, name) }

func (c *Collector) openFile(name string, flags int) (*os.File, error) {
	return c.runs.Root.OpenFile(filepath.Join(c.run, name), os.O_RDWR|syscall.O_NONBLOCK|flags, 0o600)
}

// reopenFiles opens the files and continues where they end.
func (c *Collector) reopenFiles() (err error) {
	if c.head, err = c.openFile(rundir.OutputFile, 0); err != nil {
		return err
	}
	info, err := c.head.Stat()
	if err != nil {
		return err
	}
	if c.tail, err = c.openFile(rundir.TailFile, 0); err == nil {
		if c.state, err = readTailState(c.tail); err == nil {
			c.size = max(c.size, c.state.Size)
			c.closeHead()
			c.settlePending()
			c.state.Pending = 0
			return c.state.writeState(c.tail)
		}
		rundir.CloseFiles(c.tail)
		c.tail = nil
	}
	if c.size > info.Size() {
		c.closeHead() // the head misses bytes that could not be written
	}
	c.size = max(c.size, info.Size())
	return nil
}

// settlePending removes the bytes at the end of the tail from the FIFO, if a collector was killed after it had
// written them and before it had removed them.
func (c *Collector) settlePending() {
	n := c.state.Pending
	if n == 0 || c.fifo == nil || c.state.Size-n < c.state.First || c.needPeek() != nil {
		return
	}
	fd, has := int(c.fifo.Fd()), make([]byte, n)
	has = has[:c.peek.copyPeeked(fd, has)]
	for off, left := c.state.Size-n, has; len(left) > 0; {
		at, run := c.state.locate(off)
		written := make([]byte, min(int64(len(left)), run))
		if _, err := c.tail.ReadAt(written, at); err != nil || !bytes.Equal(written, left[:len(written)]) {
			return // they were removed already: the FIFO has later bytes
		}
		off, left = off+int64(len(written)), left[len(written):]
	}
	if len(has) > 0 {
		c.peek.takeBytes(fd, int(n))
	}
}

// needPeek creates the pipe that moveToTail needs.
func (c *Collector) needPeek() (err error) {
	if c.peek == nil {
		c.peek, err = newPeekPipe()
	}
	return err
}

func (c *Collector) closeHead() {
	rundir.CloseFiles(c.head)
	c.head = nil
}

// collectUntilStopped collects until stopCollecting sets the deadline of the FIFO.
func (c *Collector) collectUntilStopped() {
	defer close(c.stopped)
	conn, err := c.fifo.SyscallConn()
	for err == nil {
		err = conn.Read(func(fd uintptr) bool { return c.moveFromFIFO(int(fd)) > 0 })
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.log.Error("a run's output cannot be read", "run", c.run, "error", err)
	}
}

// moveFromFIFO moves some of the bytes in the FIFO, and returns how many; 0 when the FIFO is empty. Bytes that cannot
// be written are dropped, because the command must not block on a full disk.
func (c *Collector) moveFromFIFO(fd int) (n int) {
	if c.head != nil && c.size >= c.bounds.Head {
		c.closeHead()
	}
	if c.head == nil && c.tail == nil && !c.gone {
		c.openTail()
	}
	var err error
	switch {
	case c.head != nil:
		n, err = moveBytes(c.head, c.size, fd, int(min(c.bounds.Head-c.size, fifoMost)))
		if n > 0 && err != nil {
			c.closeHead()
		}
	case c.tail != nil:
		n, err = c.moveToTail(fd)
	default:
		n = discardBytes(fd, fifoSize)
	}
	c.size += int64(n)
	if n > 0 && err != nil {
		c.logFailure(err)
	}
	if c.size >= fifoMost && !c.grown { // the command writes much
		c.grown = true
		growPipe(fd, fifoMost)
	}
	return n
}

// openTail creates the tail file. After a failure, the next call tries again.
func (c *Collector) openTail() {
	var err error
	if c.tail, err = c.openFile(rundir.TailFile, os.O_CREATE); err == nil {
		c.state = newTail(c.bounds.Tail, c.size)
		err = c.state.writeState(c.tail)
	}
	if err != nil {
		rundir.CloseFiles(c.tail)
		c.tail = nil
		c.logFailure(err)
	}
}

// moveToTail moves bytes in three steps, so that a collector that is killed between them leaves no doubt about which
// bytes are in the tail and which are still in the FIFO: the bytes are written while they are still in the FIFO, then
// the tail records that it has them, and then they are removed from the FIFO.
func (c *Collector) moveToTail(fd int) (n int, err error) {
	if err := c.needPeek(); err != nil {
		return discardBytes(fd, fifoSize), err
	}
	n = c.peek.peekBytes(fd, tailChunk)
	if n == 0 {
		return 0, nil
	}
	end := c.state.Size + int64(n)
	off, err := c.writeTail(c.peek.readEnd(fd), end)
	c.state.Size, c.state.Pending = end, int64(n)
	if err != nil {
		discardBytes(c.peek.readEnd(fd), int(end-off))
		c.state.First = end
	}
	err = errors.Join(err, c.state.writeState(c.tail))
	c.peek.takeBytes(fd, n)
	c.state.Pending = 0
	return n, errors.Join(err, c.state.writeState(c.tail))
}

// writeTail writes to the tail up to the offset end of the output, and returns the offset that it reached.
func (c *Collector) writeTail(from int, end int64) (off int64, err error) {
	for off = c.state.Size; off < end && err == nil; {
		at, run := c.state.locate(off)
		var n int
		n, err = moveBytes(c.tail, at, from, int(min(end-off, run)))
		if off += int64(n); n == 0 && err == nil {
			err = io.ErrUnexpectedEOF
		}
	}
	return off, err
}

// Size returns how many bytes the command has written so far. It may be called while the Collector is paused.
func (c *Collector) Size() int64 { return c.size }

// logFailure logs that output is not kept, once.
func (c *Collector) logFailure(err error) {
	if !c.failed {
		c.log.Error("some of a run's output is not kept", "run", c.run, "error", err)
	}
	c.failed = true
}

// stopCollecting ends collectUntilStopped. What the command writes after that stays in the FIFO.
func (c *Collector) stopCollecting() {
	if c.fifo != nil {
		_ = c.fifo.SetReadDeadline(time.Unix(1, 0)) // an error here also ends collectUntilStopped, which logs it
		<-c.stopped
	}
}

// startCollecting starts collectUntilStopped, or starts it again after stopCollecting.
func (c *Collector) startCollecting() {
	if c.fifo != nil {
		_ = c.fifo.SetReadDeadline(time.Time{})
		c.stopped = make(chan struct{})
		go c.collectUntilStopped()
	}
}

// Pause is stopCollecting for another image of this program. The descriptor that it returns stays open until that
// image has opened the FIFO, so that the FIFO is open at every moment.
func (c *Collector) Pause() (fd int, err error) {
	c.stopCollecting()
	if c.fifo == nil {
		return 0, nil
	}
	fd = int(c.fifo.Fd())
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		return fd, fmt.Errorf("keeping descriptor %d: %w", fd, err)
	}
	return fd, nil
}

// Unpause continues after a Pause when no other image took over.
func (c *Collector) Unpause(fd int) {
	if fd > 0 {
		syscall.CloseOnExec(fd)
	}
	c.startCollecting()
}

// Finish ends the collecting when the processes of the command are gone. It returns how many bytes were written and
// which of them are not kept. It takes what is in the FIFO, and does not wait for a process that escaped and has the
// FIFO open.
func (c *Collector) Finish() (size int64, d rundir.Dropped) {
	c.stopCollecting()
	if c.fifo != nil {
		fd := int(c.fifo.Fd())
		for taken, n := 0, 1; n > 0 && taken < fifoMost; taken += n {
			n = c.moveFromFIFO(fd)
		}
	}
	rundir.CloseFiles(c.fifo, c.head, c.tail)
	if c.peek != nil {
		c.peek.closePipe()
	}
	var head int64
	if info, err := c.runs.Root.Lstat(filepath.Join(c.run, rundir.OutputFile)); err == nil {
		head = info.Size()
	}
	if c.fifo == nil {
		return head, rundir.Dropped{}
	}
	if c.state.Room == 0 { // no tail was written
		c.state.First = c.size
	}
	c.state.Size = c.size
	return c.size, c.state.missingBytes(head, c.bounds.Tail)
}

// copyBytes moves bytes where the system cannot move them itself. It returns how many it took from the pipe, and an
// error when not all of them could be written. If it returns no bytes and no error, the pipe is empty.
func copyBytes(to *os.File, off int64, from, most int) (n int, err error) {
	const chunk = 64 << 10
	buf := make([]byte, min(most, chunk))
	if n = readPipe(from, buf); n == 0 {
		return 0, nil
	}
	_, err = to.WriteAt(buf[:n], off)
	return n, err
}

// discardBytes removes up to n bytes from a pipe, and returns how many.
func discardBytes(from, n int) (taken int) {
	const chunk = 64 << 10
	buf := make([]byte, min(n, chunk))
	for k := 1; k > 0 && taken < n; taken += k {
		k = readPipe(from, buf[:min(n-taken, chunk)])
	}
	return taken
}

// readPipe returns how many bytes it read; 0 when the pipe is empty. Reads of an open pipe have no other errors than
// those handled here.
func readPipe(fd int, buf []byte) int {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0)
		}
	}
}

// closeIfSame closes fd if it is another descriptor of the file f.
func closeIfSame(fd int, f *os.File) {
	var inherited, own unix.Stat_t
	if unix.Fstat(fd, &inherited) != nil || unix.Fstat(int(f.Fd()), &own) != nil {
		return
	}
	if fd != int(f.Fd()) && inherited.Dev == own.Dev && inherited.Ino == own.Ino {
		_ = unix.Close(fd)
	}
}

// HoldFIFO keeps the FIFO of a run open until release is called, if there is one. It does not use the runtime's
// poller, which would wake this process at each write.
func HoldFIFO(folder string) (release func()) {
	fd, err := unix.Open(filepath.Join(folder, rundir.FIFOFile), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	return func() { _ = unix.Close(fd) }
}
