package output

import (
	"errors"
	"fmt"
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
	tail   tailWriter
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
	if c.tail.file, err = c.openFile(rundir.TailFile, 0); err == nil {
		if c.tail.state, err = readTailState(c.tail.file); err == nil {
			c.size = max(c.size, c.tail.state.Size)
			c.closeHead()
			c.tail.settlePending(c.fifo)
			c.tail.state.Pending = 0
			return c.tail.state.writeState(c.tail.file)
		}
		c.tail.closeFile()
	}
	if c.size > info.Size() {
		c.closeHead() // the head misses bytes that could not be written
	}
	c.size = max(c.size, info.Size())
	return nil
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
	if c.head == nil && c.tail.file == nil && !c.gone {
		c.openTail()
	}
	var err error
	switch {
	case c.head != nil:
		n, err = moveBytes(c.head, c.size, fd, int(min(c.bounds.Head-c.size, fifoMost)))
		if n > 0 && err != nil {
			c.closeHead()
		}
	case c.tail.file != nil:
		n, err = c.tail.moveFromFIFO(fd)
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
	if c.tail.file, err = c.openFile(rundir.TailFile, os.O_CREATE); err == nil {
		c.tail.state = newTail(c.bounds.Tail, c.size)
		err = c.tail.state.writeState(c.tail.file)
	}
	if err != nil {
		c.tail.closeFile()
		c.logFailure(err)
	}
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
	rundir.CloseFiles(c.fifo, c.head)
	c.tail.close()
	var head int64
	if info, err := c.runs.Root.Lstat(filepath.Join(c.run, rundir.OutputFile)); err == nil {
		head = info.Size()
	}
	if c.fifo == nil {
		return head, rundir.Dropped{}
	}
	tail := c.tail.state
	if tail.Room == 0 { // no tail was written
		tail.First = c.size
	}
	tail.Size = c.size
	return c.size, tail.missingBytes(head, c.bounds.Tail)
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
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Open(filepath.Join(folder, rundir.FIFOFile), flags, 0)
	if err != nil {
		return func() {}
	}
	return func() { _ = unix.Close(fd) }
}
