package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"time"
)

// The output of spill.
const (
	SpillBlock = 4 << 10 // a FIFO writes so many bytes atomically
	Spilled    = 1 << 30 // total bytes, half on each stream
	spillWrite = 16      // blocks per write
)

// spill is a command for hooks: spill FILE GATE. It writes Spilled bytes to both streams at once, writes the duration
// in nanoseconds to FILE, and ends when GATE exists.
func spill() {
	begin := time.Now()
	var both sync.WaitGroup
	for _, stream := range []*os.File{os.Stdout, os.Stderr} {
		both.Go(func() {
			blocks := NewBlocks()
			buf := make([]byte, 0, spillWrite*SpillBlock)
			for n := range Spilled / SpillBlock / 2 {
				if buf = append(buf, blocks.Block(stream == os.Stderr, n)...); len(buf) < cap(buf) {
					continue
				}
				if _, err := stream.Write(buf); err != nil {
					os.Exit(1) //nolint:forbidigo // it is a separate program
				}
				buf = buf[:0]
			}
		})
	}
	both.Wait()
	took := time.Since(begin)
	if err := os.WriteFile(os.Args[1], strconv.AppendInt(nil, int64(took), 10), 0o600); err != nil {
		os.Exit(1) //nolint:forbidigo // likewise
	}
	for {
		if _, err := os.Stat(os.Args[2]); err == nil {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}

// Blocks are the output of spill. Each block contains its stream and its number, and the rest follows from the number.
type Blocks struct{ noise, buf []byte }

// NewBlocks returns the same blocks each time.
func NewBlocks() *Blocks {
	b := &Blocks{noise: make([]byte, SpillBlock+256), buf: make([]byte, SpillBlock)}
	_, _ = rand.NewChaCha8([32]byte{}).Read(b.noise) // never fails
	return b
}

// Block returns a block, which is valid until the next call.
func (b *Blocks) Block(second bool, n int) []byte {
	head := fmt.Sprintf("%5t %09d\n", second, n)
	copy(b.buf, head)
	copy(b.buf[len(head):], b.noise[n%256:])
	return b.buf
}
