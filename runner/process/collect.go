package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tailParts = 4        // so a quarter of the tail more may lie on the disk
	leastPart = 64 << 10 // however short the tail is

	fifoSize = 64 << 10 // bytes that a FIFO holds at first,
	fifoMost = 1 << 20  // and what a user without privileges may have it hold
)

// collector moves what a command writes from the FIFO in the run's folder into the
// parts of its output, and keeps their head and tail.
//
// The command has the FIFO open for reading and writing. So it never gets SIGPIPE:
// when nobody collects, what it writes stays in the FIFO, and when that is full the
// command waits for the next collector, which opens the FIFO by its name. A FIFO
// loses what is in it when nobody at all has it open; therefore the server holds it
// too, see [Client.Follow].
type collector struct {
	local      *Local
	run        string
	head, tail int64
	fifo       *os.File      // nil for a command of a former version, which writes into the file itself
	stopped    chan struct{} // closed when collect has returned

	// These belong to collect, and to the others while it is stopped.
	size   int64    // of all that was written
	file   *os.File // the part that is being written; nil when there is none
	start  int64    // offset of its first byte
	limit  int64    // bytes that may be in it
	grown  bool     // the FIFO holds as much as it may
	gone   bool     // somebody removed the output: nothing more is kept
	failed bool     // a part could not be written, and the log says so
}

func newCollector(l *Local, s *Status) *collector {
	return &collector{local: l, run: s.Run, head: s.Bounds.Head, tail: s.Bounds.Tail}
}

// collectOutput starts the collector of a new run. It takes the files over.
func collectOutput(l *Local, f *folder, s *Status) *collector {
	c := newCollector(l, s)
	c.fifo, c.file, c.limit = f.fifo, f.output, c.head
	f.fifo, f.output = nil, nil
	c.resume()
	return c
}

// adoptCollector goes on with the output of a run that another supervisor, or
// another image of this one, started.
func adoptCollector(l *Local, s *Status) *collector {
	c := newCollector(l, s)
	c.size = s.Output.Bytes
	parts, err := listParts(l.root, s.Run)
	if err == nil && len(parts) == 0 {
		err = ErrNotKept
	}
	if err != nil {
		c.gone = true
		l.log.Error("a run's output cannot be kept", "run", s.Run, "error", err)
	} else {
		c.reopen(parts[len(parts)-1])
	}
	c.fifo, err = openFIFO(c.path(fifoFile), unix.O_RDONLY|unix.O_NONBLOCK)
	switch {
	case err == nil && s.Pipe > 0:
		closeIfSame(s.Pipe, c.fifo)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		l.log.Error("a run's output cannot be read", "run", s.Run, "error", err)
	}
	c.resume()
	return c
}

func (c *collector) path(name string) string { return filepath.Join(c.local.dir, c.run, name) }

// reopen goes on with the last part, if it has all that was written.
func (c *collector) reopen(p part) {
	if p.end() < c.size {
		return // what could not be written
	}
	c.size, c.start, c.limit = p.end(), p.start, c.partSize()
	if p.name == outputFile {
		c.limit = c.head
	}
	var err error
	if c.file, err = c.local.root.OpenFile(filepath.Join(c.run, p.name), os.O_WRONLY|syscall.O_NONBLOCK, 0); err != nil {
		c.fail(err)
	}
}

func (c *collector) partSize() int64 { return max((c.tail+tailParts-1)/tailParts, leastPart) }

// collect goes on until the FIFO's deadline is over.
func (c *collector) collect() {
	defer close(c.stopped)
	conn, err := c.fifo.SyscallConn()
	for err == nil {
		err = conn.Read(func(fd uintptr) bool { return c.move(int(fd)) > 0 })
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.local.log.Error("a run's output cannot be read", "run", c.run, "error", err)
	}
}

// move moves some of what is in the FIFO, and returns how many bytes; 0 when there
// is nothing. What cannot be written is dropped, for the command must not hang on a
// full disk.
func (c *collector) move(fd int) int {
	if c.size-c.start >= c.limit || c.file == nil {
		c.nextPart()
	}
	room := int64(fifoMost)
	if c.file != nil {
		room = min(room, c.start+c.limit-c.size)
	}
	n, err := moveBytes(c.file, c.size-c.start, fd, int(room))
	c.size += int64(n)
	if n > 0 && err != nil {
		c.fail(err)
	}
	if n >= fifoSize && !c.grown { // it was full
		c.grown = true
		growFIFO(fd)
	}
	return n
}

// nextPart begins another part, and removes those that are not needed from then on.
func (c *collector) nextPart() {
	if c.file != nil {
		_ = c.file.Close() // what was written to it is in the system's hands
		c.file = nil
	}
	if c.gone {
		return
	}
	var err error
	c.file, err = c.local.root.OpenFile(filepath.Join(c.run, partName(c.size)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		c.fail(err)
		return
	}
	c.start, c.limit = c.size, c.partSize()
	parts, err := listParts(c.local.root, c.run)
	d := missing(parts, c.size, c.tail)
	for _, p := range parts {
		if p.name != outputFile && p.end() <= d.To {
			err = errors.Join(err, c.local.root.Remove(filepath.Join(c.run, p.name)))
		}
	}
	if err != nil {
		c.local.log.Warn("removing a part of an output", "run", c.run, "error", err)
	}
}

// fail gives up the part that is being written. What comes next is tried with
// another.
func (c *collector) fail(err error) {
	if c.file != nil {
		_ = c.file.Close() // it failed already
		c.file = nil
	}
	if !c.failed {
		c.local.log.Error("a part of a run's output is not kept", "run", c.run, "error", err)
	}
	c.failed = true
}

// stop ends collect, and leaves in the FIFO what comes.
func (c *collector) stop() {
	if c.fifo != nil {
		_ = c.fifo.SetReadDeadline(time.Unix(1, 0)) // its error would be that of collect, which ended with it
		<-c.stopped
	}
}

// resume starts collect, or starts it again after stop.
func (c *collector) resume() {
	if c.fifo != nil {
		_ = c.fifo.SetReadDeadline(time.Time{})
		c.stopped = make(chan struct{})
		go c.collect()
	}
}

// pause is stop for another image of this program: the descriptor that it returns
// stays open until that has opened the FIFO itself, so that it always is open.
func (c *collector) pause() (fd int, err error) {
	c.stop()
	if c.fifo == nil {
		return 0, nil
	}
	fd = int(c.fifo.Fd())
	return fd, keepOnExec(fd)
}

// unpause goes on after a pause when no other image came.
func (c *collector) unpause(fd int) {
	if fd > 0 {
		syscall.CloseOnExec(fd)
	}
	c.resume()
}

// finish ends the collecting when the command's processes are gone, and returns how
// much was written and what of it is not kept. It takes what is in the FIFO, and
// waits for nobody who got away with it.
func (c *collector) finish() (size int64, d Dropped) {
	c.stop()
	if c.fifo != nil {
		fd := int(c.fifo.Fd())
		for taken, n := 0, 1; n > 0 && taken < fifoMost; taken += n {
			n = c.move(fd)
		}
	}
	closeAll(c.fifo, c.file)
	parts, err := listParts(c.local.root, c.run)
	if err != nil {
		c.local.log.Error("looking for a run's output", "run", c.run, "error", err)
	}
	if c.fifo == nil && len(parts) > 0 {
		c.size = parts[len(parts)-1].end()
	}
	return c.size, missing(parts, c.size, c.tail)
}

// copyBytes is how bytes are moved where the system cannot do it by itself. It
// returns how many were taken from the FIFO, and an error when not all of them could
// be written. Without an error and without bytes, the FIFO is empty.
func copyBytes(to *os.File, off int64, fifo, most int) (n int, err error) {
	const chunk = 64 << 10
	buf := make([]byte, min(most, chunk))
	for {
		n, err = unix.Read(fifo, buf)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case err != nil || n <= 0: // EAGAIN; a FIFO has no other errors
		return 0, nil
	case to == nil:
		return n, nil
	}
	_, err = to.WriteAt(buf[:n], off)
	return n, err
}

// makeFIFO makes a FIFO and opens it, for the collector and for the command.
func makeFIFO(path string) (collect, command *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, nil, &fs.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// First, as the kernel then has somebody who reads for those who write.
	if collect, err = openFIFO(path, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
		return nil, nil, err
	}
	command, err = openFIFO(path, unix.O_RDWR)
	return collect, command, err
}

// openFIFO opens a FIFO, and nothing else. The os package would open it as the
// poller needs it, which is not for a command.
func openFIFO(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := f.Stat()
	if err == nil && info.Mode().Type() != fs.ModeNamedPipe {
		err = fmt.Errorf("%s is not a FIFO", path)
	}
	if err != nil {
		_ = f.Close() // nothing was read
		return nil, err
	}
	return f, nil
}

// closeIfSame closes a descriptor if it is another of the file.
func closeIfSame(fd int, f *os.File) {
	var inherited, own unix.Stat_t
	if unix.Fstat(fd, &inherited) != nil || unix.Fstat(int(f.Fd()), &own) != nil {
		return
	}
	if fd != int(f.Fd()) && inherited.Dev == own.Dev && inherited.Ino == own.Ino {
		_ = unix.Close(fd)
	}
}

// holdFIFO keeps a run's FIFO open until release is called, if there is one. It does
// without the poller, which would be woken at each write.
func holdFIFO(folder string) (release func()) {
	fd, err := unix.Open(filepath.Join(folder, fifoFile), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	return func() { _ = unix.Close(fd) }
}
