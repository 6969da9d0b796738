//go:build unix && !linux

package output

import (
	"os"

	"golang.org/x/sys/unix"
)

// moveBytes is copyBytes.
func moveBytes(to *os.File, off int64, from, most int) (int, error) {
	return copyBytes(to, off, from, most)
}

// growPipe does nothing: this system sets the capacity of a pipe itself.
func growPipe(int, int) {}

// peekPipe stands for the FIFO itself: this system cannot show the content of a FIFO without removing it.
type peekPipe struct{}

func newPeekPipe() (*peekPipe, error) { return &peekPipe{}, nil }

func (p *peekPipe) peekBytes(fifo, most int) int {
	const fionread = 0x4004667f // of macOS and the BSDs
	n, err := unix.IoctlGetInt(fifo, fionread)
	if err != nil {
		return 0
	}
	return min(n, most)
}

func (p *peekPipe) readEnd(fifo int) int { return fifo }

func (p *peekPipe) takeBytes(int, int) {}

func (p *peekPipe) copyPeeked(int, []byte) int { return 0 }

func (p *peekPipe) closePipe() {}
