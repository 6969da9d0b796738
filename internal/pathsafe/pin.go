package pathsafe

import (
	"errors"
	"fmt"
	"os"
)

// ErrMoved says that a name does not lead to its file any more.
var ErrMoved = errors.New("the file was removed or replaced while it was in use")

// Pin remembers which file a name led to. What is written to a file after it was removed
// or replaced is lost when it is closed.
type Pin struct {
	name string
	info os.FileInfo
}

// NewPin pins a name to the file that was opened by it.
func NewPin(name string, opened os.FileInfo) Pin { return Pin{name, opened} }

// Check returns an error unless the name still leads to the same file. It wraps
// ErrMoved if the name leads to another file or to none.
func (p Pin) Check() error {
	info, err := os.Stat(p.name)
	if err == nil && os.SameFile(info, p.info) {
		return nil
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = ErrMoved
	}
	return fmt.Errorf("%s: %w", p.name, err)
}
