package rundir

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// makeFIFO makes a FIFO and opens it twice: for the collector and for the command.
func makeFIFO(path string) (collect, command *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, nil, &fs.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// The read end is opened first, so that the kernel has a reader when the write end is opened.
	if collect, err = OpenFIFO(path, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
		return nil, nil, err
	}
	command, err = OpenFIFO(path, unix.O_RDWR)
	return collect, command, err
}

// OpenFIFO opens a FIFO, and refuses any other file. The os package would open it in non-blocking mode for the
// runtime's poller, which does not suit a command.
func OpenFIFO(path string, flags int) (*os.File, error) {
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
