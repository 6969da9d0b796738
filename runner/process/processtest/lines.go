package processtest

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
)

// The first number and the length of the lines that [CountLines] writes. Each line is its own number, so every byte
// shows at which offset it was written.
const (
	FirstLine = 10_000_000
	LineBytes = 9
)

// CountLines returns a command that writes that many lines.
func CountLines(lines int) []string {
	return []string{"/usr/bin/seq", strconv.Itoa(FirstLine), strconv.Itoa(FirstLine + lines - 1)}
}

// CheckLines checks that p is what the command wrote at the offset.
func CheckLines(t testing.TB, p []byte, at int64) {
	t.Helper()
	for len(p) > 0 {
		line := strconv.AppendInt(nil, FirstLine+at/LineBytes, 10)
		rest := string(append(line, '\n')[at%LineBytes:])
		n := min(len(rest), len(p))
		if string(p[:n]) != rest[:n] {
			t.Fatalf("at %d stands %q, want %q", at, p[:n], rest[:n])
		}
		p, at = p[n:], at+int64(n)
	}
}

// ReadAlong reads an output from its start to the end of the run, and returns how many bytes it got.
func (b *Subject) ReadAlong(t testing.TB, run string, chunk int) (kept int64) {
	t.Helper()
	ends, err := b.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	o, err := b.Output(run)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	p := make([]byte, chunk)
	ended := false
	for off := int64(0); ; {
		at, n, err := o.Next(p, off)
		if errors.Is(err, io.EOF) {
			if ended {
				return kept
			}
			select {
			case <-ends:
				ended = true
			default:
				runtime.Gosched()
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		CheckLines(t, p[:n], at)
		kept += int64(n)
		off = at + int64(n)
	}
}

// DiskUsage returns how many bytes of the disk the output of a run takes.
func (b *Subject) DiskUsage(t testing.TB, run string) (bytes int64) {
	t.Helper()
	for _, name := range []string{"output", "tail"} {
		info, err := os.Stat(filepath.Join(b.Dir, run, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += stat.Blocks * 512
		}
	}
	return bytes
}

// ForgeTail appends bytes to a tail file, and sets its header as if the last pending bytes may still be in the FIFO.
func ForgeTail(name string, more []byte, pending int) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	const start = 4 << 10                            // the position of the output in the file
	var s struct{ Room, First, Size, Pending int64 } // the header of the file
	text := make([]byte, binary.Size(s))
	if _, err := f.ReadAt(text, 0); err != nil {
		return err
	}
	if _, err := binary.Decode(text, binary.BigEndian, &s); err != nil {
		return err
	}
	_, err = f.WriteAt(more, start+s.Size%s.Room)
	s.Size, s.Pending = s.Size+int64(len(more)), int64(pending)
	text, _ = binary.Append(nil, binary.BigEndian, s)
	_, written := f.WriteAt(text, 0)
	return errors.Join(err, written, f.Close())
}
