package process

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	page  = 4096    // the middle is freed in whole pages
	slack = 1 << 20 // bytes over the bound before it is worth freeing them

	// How often a command's output is measured: what it writes in between is
	// the disk it may take beyond the bound.
	fastest = 5 * time.Millisecond
	slowest = 200 * time.Millisecond
)

// Dropped is the middle of an output that is not kept: the bytes from From up
// to, not including, To.
type Dropped struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Bytes is how many were dropped.
func (d Dropped) Bytes() int64 { return d.To - d.From }

// Ring tells how an output is kept where the middle of a file cannot be freed:
// what comes after Head is written around and around in the Tail bytes behind it.
type Ring struct {
	Head int64 `json:"head"`
	Tail int64 `json:"tail"`
}

// place is where a byte of the output stands in the file, and how many follow it there.
func (r *Ring) place(off int64) (at, run int64) {
	if off < r.Head {
		return off, r.Head - off
	}
	around := (off - r.Head) % r.Tail
	return r.Head + around, r.Tail - around
}

// keeper bounds the output of a run under way.
type keeper struct {
	f    *os.File
	head int64
	tail int64
	ring *Ring         // nil where the command writes into the file itself
	pipe *os.File      // with ring: where the output comes from
	over chan struct{} // with ring: closed when the pipe was read to its end
	wait time.Duration

	mu      sync.Mutex
	size    int64 // of the output as far as it was seen
	dropped Dropped
	ended   bool
	failed  error // of the last write to the ring
}

// newKeeper keeps the output in a run's folder, and returns the descriptor for
// the command. Both take their files over.
func newKeeper(f *folder, b Bounds) (k *keeper, command *os.File, err error) {
	k = &keeper{f: f.output, head: b.Head, tail: b.Tail, wait: fastest}
	if f.command != nil {
		return k, f.command, nil
	}
	if k.pipe, command, err = os.Pipe(); err != nil {
		return nil, nil, err
	}
	k.ring = newRing(b)
	k.over = make(chan struct{})
	go k.copy()
	return k, command, nil
}

func newRing(b Bounds) *Ring { return &Ring{Head: b.Head, Tail: b.Tail} }

// adoptKeeper takes over the output of a run that another process started.
func adoptKeeper(l *Local, s *Status) (*keeper, error) {
	k := &keeper{head: s.Bounds.Head, tail: s.Bounds.Tail, wait: fastest, ring: s.Ring, size: s.Output.Bytes, dropped: s.Dropped}
	var err error
	name := filepath.Join(s.Run, outputFile)
	if k.ring == nil {
		k.f, err = l.root.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
		return k, err
	}
	if k.f, err = l.root.OpenFile(name, os.O_WRONLY, 0); err != nil {
		return k, err
	}
	k.over = make(chan struct{})
	if s.Pipe > 0 {
		k.pipe = os.NewFile(uintptr(s.Pipe), "pipe")
		go k.copy()
		return k, nil
	}
	// Whoever read the pipe is gone, and with it how far it had come. Unless the
	// file was never written around, only its head is known to be in order.
	close(k.over)
	info, err := k.f.Stat()
	if err != nil {
		return k, err
	}
	k.size, k.dropped = info.Size(), Dropped{}
	if k.size >= k.head+k.tail {
		k.dropped = Dropped{From: k.head, To: k.size}
	}
	return k, nil
}

// pause stops reading the pipe, so that another program image can go on with
// it, and returns its descriptor; 0 when there is none. What the command
// writes meanwhile waits in the pipe.
func (k *keeper) pause() (fd int, err error) {
	if k.pipe == nil {
		return 0, nil
	}
	if err := k.pipe.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return 0, fmt.Errorf("pausing an output: %w", err)
	}
	<-k.over
	conn, err := k.pipe.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("pausing an output: %w", err)
	}
	if err := conn.Control(func(p uintptr) { fd, err = int(p), keepOnExec(int(p)) }); err != nil {
		return 0, fmt.Errorf("pausing an output: %w", err)
	}
	return fd, err
}

// resume goes on after a pause that came to nothing.
func (k *keeper) resume(fd int) {
	if k.pipe == nil {
		return
	}
	if fd > 0 {
		syscall.CloseOnExec(fd)
	}
	_ = k.pipe.SetReadDeadline(time.Time{})
	k.over = make(chan struct{})
	go k.copy()
}

// interval is how long to wait until trim.
func (k *keeper) interval() time.Duration { return k.wait }

// trim frees what lies between head and tail. record is told first, so that no
// reader ever takes a freed byte for one that the command wrote; its failure
// does not keep the bytes, for a full disk is the very reason to free them.
func (k *keeper) trim(final bool, record func(Dropped) error) error {
	if k.ring != nil {
		return nil // copy keeps the bound
	}
	info, err := k.f.Stat()
	if err != nil {
		return fmt.Errorf("measuring: %w", err)
	}
	size := info.Size()
	k.mu.Lock()
	if size-k.size > slack {
		k.wait = max(k.wait/2, fastest)
	} else {
		k.wait = min(k.wait*2, slowest)
	}
	k.size = size
	cut := size < k.dropped.To // by the command itself
	if cut {
		k.dropped = Dropped{}
	}
	d, least := k.dropped, int64(slack)
	if d.To == 0 {
		d.From = (k.head + page - 1) &^ (page - 1)
		d.To = d.From
	}
	if final {
		least = page
	}
	from := d.To
	d.To = (size - k.tail) &^ (page - 1)
	if d.To-from < least {
		d = k.dropped
		k.mu.Unlock()
		if cut {
			return record(d)
		}
		return nil
	}
	k.dropped = d
	k.mu.Unlock()
	err = record(d)
	punched := punch(k.f, from, d.To-from)
	if err != nil { // there may be room now
		err = record(d)
	}
	return errors.Join(err, punched)
}

// copy moves the pipe into the ring, until nobody writes any more.
func (k *keeper) copy() {
	defer close(k.over)
	buf := make([]byte, 32<<10)
	for {
		n, err := k.pipe.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			at, room := k.ring.place(k.size)
			part := b[:min(int64(len(b)), room)]
			b = b[len(part):]
			k.put(part, at)
		}
		if err != nil {
			return
		}
	}
}

// put writes a part that fits in one piece. A part that cannot be written
// counts as dropped, with all before it back to the head: the command must not
// hang on a full disk.
func (k *keeper) put(part []byte, at int64) {
	k.mu.Lock()
	size := k.size + int64(len(part))
	if size > k.head+k.tail {
		k.dropped = Dropped{From: k.from(k.head), To: size - k.tail}
	}
	k.mu.Unlock()
	_, err := k.f.WriteAt(part, at)
	k.mu.Lock()
	if err != nil {
		k.dropped = Dropped{From: k.from(min(k.head, k.size)), To: size}
		k.failed = err
	}
	k.size = size
	k.mu.Unlock()
}

// from is where the dropped middle begins, once anything was dropped at all.
func (k *keeper) from(otherwise int64) int64 {
	if k.dropped == (Dropped{}) {
		return otherwise
	}
	return k.dropped.From
}

// state tells readers how long the output is and what of it is not there.
func (k *keeper) state() (size int64, d Dropped) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ring == nil && !k.ended {
		if info, err := k.f.Stat(); err == nil {
			return info.Size(), k.dropped
		}
	}
	return k.size, k.dropped
}

// abandon gives up an output that no command will write.
func (k *keeper) abandon() {
	if k.pipe != nil {
		_ = k.pipe.Close() // ends copy
	}
	_ = k.f.Close()
}

// finish ends the keeping: what the tree wrote is there. A writer that got
// away from the tree is not waited for.
func (k *keeper) finish() (Dropped, error) {
	if k.pipe != nil {
		_ = k.pipe.SetReadDeadline(time.Now().Add(time.Second))
		<-k.over
		_ = k.pipe.Close()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	_ = k.f.Close() // the command's writes do not depend on it
	return k.dropped, k.failed
}

// Output reads what a command wrote, during the run and afterwards. Offsets
// are those of all that was written, whatever was dropped. It is for one
// reader at a time.
type Output struct {
	f      *os.File
	folder *os.Root
	ring   *Ring
	state  func() (int64, Dropped)
}

// Output opens the output of a run. Errors wrap ErrUnknown or ErrNotKept where
// there is none. The caller closes it.
func (l *Local) Output(run string) (*Output, error) {
	if err := checkID(run); err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	o, err := openOutput(l.root, run)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.active[run]; ok {
		o.state = a.output.state
	}
	return o, nil
}

// OpenOutput opens the output of a run from the folder of runs alone, whoever
// keeps it. While a run is under way whose output goes through a pipe, no more
// than the head is told. The caller closes it.
func OpenOutput(dir, run string) (*Output, error) {
	if err := checkID(run); err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of runs: %w", err)
	}
	defer func() { _ = root.Close() }()
	return openOutput(root, run)
}

func openOutput(root *os.Root, run string) (*Output, error) {
	s, err := readStatus(root, run)
	if err != nil {
		return nil, err
	}
	folder, err := root.OpenRoot(run)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of run %s: %w", run, err)
	}
	f, err := folder.Open(outputFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotKept
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the output of run %s: %w", run, err), folder.Close())
	}
	return &Output{f: f, folder: folder, ring: s.Ring, state: func() (int64, Dropped) {
		// The status is replaced before a byte is freed, so what it tells after
		// a byte was read says whether that byte was still there.
		if s.Ended.IsZero() {
			if now, err := readStatus(folder, "."); err == nil {
				s = now
			}
		}
		if !s.Ended.IsZero() {
			return s.Output.Bytes, s.Dropped
		}
		info, err := f.Stat()
		if err != nil {
			return 0, Dropped{}
		}
		if s.Ring != nil {
			return min(info.Size(), s.Ring.Head), Dropped{}
		}
		return info.Size(), s.Dropped
	}}, nil
}

// State returns how many bytes the command wrote so far and which of them are
// not kept. Both may grow until the run ends.
func (o *Output) State() (size int64, d Dropped) { return o.state() }

// Next reads bytes that follow one another, the first at the offset at. That
// is off itself, or the end of the dropped middle when off lies in it. It
// returns io.EOF when nothing is there yet at or after off.
func (o *Output) Next(p []byte, off int64) (at int64, n int, err error) {
	for {
		size, d := o.state()
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
		pos := off
		if o.ring != nil {
			var room int64
			pos, room = o.ring.place(off)
			end = min(end, off+room)
		}
		n, err := o.f.ReadAt(p[:end-off], pos)
		// What was freed while it was read is not what the command wrote.
		if _, d = o.state(); off+int64(n) > d.From && off < d.To {
			if off >= d.From {
				continue
			}
			n = int(d.From - off)
		}
		if n > 0 {
			err = nil
		}
		return off, n, err
	}
}

// Close closes the output.
func (o *Output) Close() error { return errors.Join(o.f.Close(), o.folder.Close()) }
