package output

import (
	"encoding/binary"
	"errors"
	"os"

	"sallyport/runner/process/rundir"
)

// The output of a run is a file "output" with its beginning. Once that has reached
// its bound, the file "tail" has the end: tailStart bytes for a tailState, and then
// room for the bytes that are kept and for those that are being written, around and
// around. What is kept is never written over, so readers need no word from the
// supervisor, and the next supervisor goes on where one that was killed had come to.
const (
	tailStart = 4 << 10   // a page, so that pages of the FIFO are pages of the file
	tailChunk = 256 << 10 // the most that is written at once
)

// tailState is what the tail file says of itself.
type tailState struct {
	Room    int64 // bytes for output in the file
	First   int64 // offset in the output from which on it has all that was written
	Size    int64 // of the output
	Pending int64 // bytes at the end that may still be in the FIFO
}

func newTail(tail, size int64) tailState {
	return tailState{Room: (tail + tailChunk + tailStart - 1) / tailStart * tailStart, First: size, Size: size}
}

// locate returns where the byte at an offset is in the file, and how many follow it there.
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

// readTailState reads what the tail file says. A loss of power may have left anything.
func readTailState(f *os.File) (s tailState, err error) {
	text := make([]byte, binary.Size(s))
	if _, err := f.ReadAt(text, 0); err != nil {
		return s, err
	}
	_, err = binary.Decode(text, binary.BigEndian, &s)
	if err == nil && (s.Room <= tailChunk || s.First < 0 || s.Size < s.First || s.Pending < 0 || s.Pending > tailChunk) {
		err = errors.New("the tail of an output cannot be made out")
	}
	return s, err
}

// missingBytes returns what is not kept of an output whose beginning ends at head.
func (s tailState) missingBytes(head, tail int64) rundir.Dropped {
	d := rundir.Dropped{From: head, To: max(s.First, s.Size-tail)}
	if d.To <= d.From {
		return rundir.Dropped{}
	}
	return d
}
