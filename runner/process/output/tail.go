package output

import (
	"encoding/binary"
	"errors"
	"os"

	"sallyport/runner/process/rundir"
)

// The file "output" has the beginning of the output of a run. Once that has reached its bound, the file "tail" has
// the end: tailStart bytes for a tailState, and then a ring buffer with room for the bytes that are kept and for
// those that are being written. Bytes that are kept are never overwritten. So readers need no message from the
// supervisor, and the next supervisor continues where one that was killed had stopped.
const (
	tailStart = 4 << 10   // one page, so that pages of the FIFO align with pages of the file
	tailChunk = 256 << 10 // the most that is written at once
)

// tailState is the header of the tail file.
type tailState struct {
	Room    int64 // bytes for output in the file
	First   int64 // the file has all output from this offset on
	Size    int64 // bytes of the whole output
	Pending int64 // bytes at the end that may still be in the FIFO
}

func newTail(tail, size int64) tailState {
	return tailState{Room: (tail + tailChunk + tailStart - 1) / tailStart * tailStart, First: size, Size: size}
}

// locate returns the position in the file of the byte at an offset, and how many bytes follow there without a wrap.
func (s tailState) locate(off int64) (at, run int64) {
	around := off % s.Room
	return tailStart + around, s.Room - around
}

func (s tailState) writeState(f *os.File) error {
	text, err := binary.Append(nil, binary.BigEndian, s)
	if err == nil {
		_, err = f.WriteAt(text, 0)
	}
	return err
}

// readTailState reads the header of the tail file. After a loss of power it may hold any bytes.
func readTailState(f *os.File) (s tailState, err error) {
	text := make([]byte, binary.Size(s))
	if _, err := f.ReadAt(text, 0); err != nil {
		return s, err
	}
	_, err = binary.Decode(text, binary.BigEndian, &s)
	if err == nil &&
		(s.Room <= tailChunk || s.First < 0 || s.Size < s.First || s.Pending < 0 || s.Pending > tailChunk) {
		err = errors.New("the tail of an output is corrupt")
	}
	return s, err
}

// missingBytes returns which bytes of an output are not kept. The head file has the bytes before head.
func (s tailState) missingBytes(head, tail int64) rundir.Dropped {
	d := rundir.Dropped{From: head, To: max(s.First, s.Size-tail)}
	if d.To <= d.From {
		return rundir.Dropped{}
	}
	return d
}
