package pathsafe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ErrNotRegular reports that a name leads to a folder, a FIFO, a socket or a device.
var ErrNotRegular = errors.New("is not a regular file")

// OpenRegular opens a regular file in root for reading. Errors are those of opening, and ErrNotRegular: to open
// a FIFO would block until another process opens it for writing.
func OpenRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if _, err := statRegular(f, name); err != nil {
		_ = f.Close() // only opened
		return nil, err
	}
	return f, nil
}

// ReadRegular returns the content of a regular file in root. Errors are those of OpenRegular and of reading.
func ReadRegular(root *os.Root, name string) ([]byte, error) {
	f, err := OpenRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return io.ReadAll(f)
}

// statRegular describes an open file, which messages call name, and refuses one that is not regular.
func statRegular(f *os.File, name string) (fs.FileInfo, error) {
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s %w", name, ErrNotRegular)
	}
	return info, err
}
