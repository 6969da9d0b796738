package process

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// Dropped is the middle of an output that is not kept: the bytes from From up
// to, not including, To.
type Dropped struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Bytes is how many were dropped.
func (d Dropped) Bytes() int64 { return d.To - d.From }

// Output reads what a command wrote, during the run and afterwards. Offsets
// are those of all that was written, whatever was dropped. It is for one
// reader at a time.
type Output struct {
	folder *os.Root
	status *Status
	parts  []part
	file   *os.File // of the part that was read last; nil before
	open   part
}

// Output opens the output of a run. Errors wrap ErrUnknown or ErrNotKept where
// there is none. The caller closes it.
func (l *Local) Output(run string) (*Output, error) { return OpenOutput(l.dir, run) }

// OpenOutput opens the output of a run from the folder of runs alone, whether or
// not the run has ended. Errors are those of [Local.Output]. The caller closes it.
func OpenOutput(dir, run string) (*Output, error) {
	if err := checkID(run); err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of runs: %w", err)
	}
	defer func() { _ = root.Close() }()
	s, err := readStatus(root, run)
	if err != nil {
		return nil, err
	}
	folder, err := root.OpenRoot(run)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of run %s: %w", run, err)
	}
	o := &Output{folder: folder, status: s}
	if o.parts, err = listParts(folder, "."); err == nil && (len(o.parts) == 0 || s.Ring != nil) {
		err = ErrNotKept
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the output of run %s: %w", run, err), o.Close())
	}
	return o, nil
}

// State returns how many bytes the command wrote so far and which of them are
// not kept. Both may grow until the run ends.
func (o *Output) State() (size int64, d Dropped) {
	o.refresh()
	switch s := o.status; {
	case !s.Ended.IsZero():
		return s.Output.Bytes, s.Dropped
	case len(o.parts) == 0:
		return 0, Dropped{}
	default:
		size = o.parts[len(o.parts)-1].end()
		if s.Dropped != (Dropped{}) {
			return size, s.Dropped
		}
		return size, missing(o.parts, size, s.Bounds.Tail)
	}
}

// refresh looks at what there is by now, until the run has ended. What cannot be
// read is as it was.
func (o *Output) refresh() {
	if !o.status.Ended.IsZero() {
		return
	}
	s, err := readStatus(o.folder, ".")
	if err != nil {
		s = o.status
	}
	if parts, err := listParts(o.folder, "."); err == nil { // after the status: once that has an end, they are what is kept
		o.status, o.parts = s, parts
	}
}

// Next reads bytes that follow one another, the first at the offset at. That
// is off itself, or the end of the dropped middle when off lies in it. It
// returns io.EOF when nothing is there yet at or after off.
func (o *Output) Next(p []byte, off int64) (at int64, n int, err error) {
	const most = 10 // times that what is to be read is dropped just then
	for tries := 1; ; tries++ {
		size, d := o.State()
		if off >= d.From && off < d.To {
			off = d.To
		}
		if off >= size {
			return off, 0, io.EOF
		}
		end := min(size, off+int64(len(p)))
		if off < d.From {
			end = min(end, d.From)
		}
		n, err := o.read(p[:end-off], off)
		if errors.Is(err, ErrNotKept) && o.status.Ended.IsZero() && tries < most {
			continue
		}
		return off, n, err
	}
}

// read reads from the part that has the offset.
func (o *Output) read(p []byte, off int64) (int, error) {
	has := func(p part) bool { return off >= p.start && off < p.end() }
	i := slices.IndexFunc(o.parts, has)
	if i < 0 {
		return 0, ErrNotKept
	}
	if part := o.parts[i]; o.file == nil || o.open.name != part.name {
		f, err := openRegular(o.folder, part.name)
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNotKept
		}
		if err != nil {
			return 0, fmt.Errorf("reading an output: %w", err)
		}
		closeAll(o.file)
		o.file, o.open = f, part
	}
	n, err := o.file.ReadAt(p[:min(int64(len(p)), o.parts[i].end()-off)], off-o.parts[i].start)
	if n > 0 {
		err = nil
	}
	return n, err
}

// Close closes the output.
func (o *Output) Close() error {
	closeAll(o.file)
	return o.folder.Close()
}
