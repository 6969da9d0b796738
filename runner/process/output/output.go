// Package output keeps what a command writes, and reads it.
//
// A [Collector] moves what a command writes from the FIFO in the folder of the run into two files: the beginning into
// one, the end into the other. It bounds what is kept and does not wait for readers. So a command never blocks
// because of a full disk, and gets no SIGPIPE when the process that collects is killed: the next one continues at the
// same offset. A [Reader] needs only the files, during the run and afterwards, in any process that may read them.
package output

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"sallyport/internal/pathsafe"
	"sallyport/runner"
	"sallyport/runner/process/rundir"
)

// ErrNotKept says that a run is known, but its output was removed.
var ErrNotKept = errors.New("it is not kept any more")

// Reader reads what a command wrote, during the run and afterwards. Offsets count all bytes that were written,
// including those that were dropped. Only one goroutine may use it at a time.
type Reader struct {
	folder *os.Root
	status *rundir.Status
	head   *os.File
	tail   *os.File // nil until there is one
	state  tailState
}

// Open opens the output of a run. It needs only the folder of runs, whether or not the run has ended. Errors wrap
// [runner.ErrUnknown] or ErrNotKept without an output. The caller closes it.
func Open(dir, run string) (*Reader, error) {
	if err := rundir.CheckID(run); err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of runs: %w", err)
	}
	defer func() { _ = root.Close() }()
	s, err := rundir.ReadStatus(root, run)
	if err != nil {
		return nil, err
	}
	if s.IsRevoked() {
		return nil, fmt.Errorf("run %s: %w", run, runner.ErrUnknown)
	}
	folder, err := root.OpenRoot(run)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of run %s: %w", run, err)
	}
	head, err := pathsafe.OpenRegular(folder, rundir.OutputFile)
	if errors.Is(err, fs.ErrNotExist) || err == nil && s.Ring != nil {
		err = ErrNotKept
	}
	if err != nil {
		rundir.CloseFiles(head)
		return nil, errors.Join(fmt.Errorf("opening the output of run %s: %w", run, err), folder.Close())
	}
	return &Reader{folder: folder, status: s, head: head}, nil
}

// State returns how many bytes the command has written so far and which of them are not kept. Both may grow until the
// run ends.
func (o *Reader) State() (size int64, d rundir.Dropped) {
	size, d, _ = o.readState()
	return size, d
}

// readState also returns the offset at which the head file ends.
func (o *Reader) readState() (size int64, d rundir.Dropped, head int64) {
	if o.status.Ended.IsZero() {
		if s, err := rundir.ReadStatus(o.folder, "."); err == nil {
			o.status = s // before the files: once the status has an end, the files do not change
		}
	}
	if o.tail == nil {
		o.tail, _ = pathsafe.OpenRegular(o.folder, rundir.TailFile)
	}
	if o.tail != nil {
		if s, err := readTailState(o.tail); err == nil {
			o.state = s
		}
	}
	if info, err := o.head.Stat(); err == nil {
		head = info.Size()
	}
	size = head
	if o.state.Room > 0 {
		size, d = o.state.Size, o.state.missingBytes(head, o.status.Bounds.Tail)
	}
	if !o.status.Ended.IsZero() {
		size = o.status.Output.Bytes
	}
	if !o.status.Ended.IsZero() || o.status.Dropped != (rundir.Dropped{}) {
		d = o.status.Dropped
	}
	return size, d, head
}

// Next reads consecutive bytes, the first of them at the offset at. That is off itself, or the end of the dropped
// middle when off lies in it. It returns io.EOF when no bytes are there yet at or after off.
func (o *Reader) Next(p []byte, off int64) (at int64, n int, err error) {
	for {
		size, d, head := o.readState()
		if off >= d.From && off < d.To {
			off = d.To
		}
		if off >= size {
			return off, 0, io.EOF
		}
		end := min(size, off+int64(len(p)))
		if off < head {
			n, err = o.head.ReadAt(p[:min(end, head)-off], off)
			return off, n, ignoreEOF(n, err)
		}
		if o.state.Room == 0 {
			return off, 0, ErrNotKept
		}
		place, run := o.state.locate(off)
		n, err = o.tail.ReadAt(p[:min(end-off, run)], place)
		// The collector may have overwritten these bytes while they were read. Then they are dropped now.
		if _, d, _ = o.readState(); off >= d.To {
			return off, n, ignoreEOF(n, err)
		}
	}
}

// ignoreEOF drops an error if bytes were read. The next read returns io.EOF again.
func ignoreEOF(n int, err error) error {
	if n > 0 {
		return nil
	}
	return err
}

// Close closes the output.
func (o *Reader) Close() error {
	rundir.CloseFiles(o.head, o.tail)
	return o.folder.Close()
}
