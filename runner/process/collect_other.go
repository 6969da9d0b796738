//go:build unix && !linux

package process

import "os"

// moveBytes moves up to most bytes from a FIFO to the offset off of a file, or
// nowhere when that is nil.
func moveBytes(to *os.File, off int64, fifo, most int) (int, error) {
	return copyBytes(to, off, fifo, most)
}

// growFIFO does nothing: this system decides by itself what a FIFO holds.
func growFIFO(int) {}
