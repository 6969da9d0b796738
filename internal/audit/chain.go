package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"sallyport/internal/groupcommit"
	"sallyport/internal/pathsafe"
)

// chain is the writer of lines that hang together, in a folder of their own. One goroutine
// writes, and lines that come while others are made durable share the next write.
type chain struct {
	book
	dir      string
	keep     atomic.Int64 // bytes that all lines together may take
	leastAge atomic.Int64 // nanoseconds that a line is kept, however many bytes there are
	sign     *signer
	now      func() time.Time
	log      *slog.Logger
	counts   *counts
	mention  func() Line           // a line that comes before the first one of each start and each segment; nil for none
	fault    atomic.Pointer[error] // why nothing can be written, or nil
	signed   atomic.Uint64         // line that the file checkpoint is about

	queue  *groupcommit.Queue[entry]
	probes chan chan error

	// The rest is the writer's own.
	place

	mentioned bool // the line mention was written since the start, and to the file

	file     *os.File
	pin      pathsafe.Pin // of the file
	size     int64        // of the file, up to the end of its last good line
	spilt    bool         // there may be more in the file than that
	fresh    int          // lines since the last checkpoint among the lines
	since    time.Time    // of the first of them
	failed   time.Time    // since when nothing can be written; zero when it can
	proven   time.Time    // when the file checkpoint was last written
	headless time.Time    // since when the file checkpoint cannot be written; zero when it can
}

// entry is a line to be written.
type entry struct {
	line Line
	kind kind // where it is counted when no goroutine waits for it and it cannot be written
}

// The rhythm of the writer.
const (
	maxBatch    = 256
	queueRoom   = 1024        // lines
	headEvery   = time.Second // the file checkpoint, when something was written
	signEvery   = time.Minute // a checkpoint among the lines, so long after the first since the last one
	signLines   = 1000        // or after so many
	maxSegment  = 16 << 20    // bytes
	minSegments = 8           // within chain.keep
	provenFor   = 5 * time.Second
	cutQuoted   = 4 << 10 // bytes of a cut line that are kept
)

// use makes a file the one that is written.
func (l *chain) use(name string, flags int) error {
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if l.file != nil {
		err = l.file.Close()
	}
	l.file, l.pin, l.size, l.spilt, l.mentioned = f, pathsafe.NewPin(name, info), 0, info.Size() > 0, false
	return err
}

// append writes lines to the file, all or none.
func (l *chain) append(durable bool, lines ...Line) error {
	if l.spilt {
		if err := l.file.Truncate(l.size); err != nil {
			return err
		}
		l.spilt = false
	}
	p, at, b := l.place, l.now().UTC(), []byte(nil)
	for _, line := range lines {
		line.Time = at
		var err error
		if b, err = p.add(b, line); err != nil {
			return err
		}
	}
	_, err := l.file.WriteAt(b, l.size)
	if err == nil && durable {
		err = l.file.Sync()
	}
	if err == nil {
		err = l.pin.Check()
	}
	if err != nil {
		l.spilt = l.file.Truncate(l.size) != nil
		return err
	}
	if l.fresh == 0 {
		l.since = at
	}
	l.place, l.size, l.fresh = p, l.size+int64(len(b)), l.fresh+len(lines)
	return nil
}

// create begins a segment.
func (l *chain) create() error {
	if err := l.use(segmentName(l.dir, l.seq+1), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	return pathsafe.SyncFolder(l.dir)
}

// head replaces the file checkpoint.
func (l *chain) head() error {
	text, err := l.sign.checkpoint(l.ofHead, l.place, l.now())
	if err == nil {
		err = pathsafe.ReplaceFileAt(filepath.Join(l.dir, checkpointFile), []byte(text), 0o600)
	}
	switch {
	case err != nil && l.headless.IsZero():
		l.headless = l.now()
		l.log.Error("audit checkpoint not written: lines are, for another minute", "folder", l.dir, "error", err)
	case err == nil && !l.headless.IsZero():
		l.headless = time.Time{}
		l.log.Info("audit checkpoint written again", "folder", l.dir)
	}
	if err != nil {
		return fmt.Errorf("writing the checkpoint: %w", err)
	}
	l.signed.Store(l.seq)
	l.proven = l.now()
	return nil
}

// signLine makes all lines durable, and signs for them among the lines.
func (l *chain) signLine() error {
	text, err := l.sign.checkpoint(l.ofLine, l.place, l.now())
	if err != nil {
		return err
	}
	if err := l.append(true, Line{Event: Checkpoint, Note: text}); err != nil {
		return err
	}
	l.fresh = 0
	return nil
}

// checkpoint signs for all lines, among the lines and in the file.
func (l *chain) checkpoint() error {
	if err := l.signLine(); err != nil {
		return err
	}
	return l.head()
}

// signDue signs where that is due. A file checkpoint that cannot be written is no error before lines
// have been without one for longer than they may.
func (l *chain) signDue() error {
	switch {
	case l.owes():
		if err := l.signLine(); err != nil {
			return err
		}
	case l.seq == l.signed.Load():
		return nil
	default:
		if err := l.file.Sync(); err != nil { // nobody signs for what may not last
			return err
		}
	}
	if err := l.head(); err != nil && l.overdue() {
		return err
	}
	return nil
}

// overdue reports whether the file checkpoint has not been written for so long that lines at the
// end could be cut off unseen.
func (l *chain) overdue() bool {
	return !l.headless.IsZero() && l.now().Sub(l.headless) >= signEvery
}

// owes tells whether enough has come since the last checkpoint.
func (l *chain) owes() bool {
	return l.fresh > 0 && (l.fresh >= signLines || l.now().Sub(l.since) >= signEvery)
}

// rotate begins another segment, and removes the oldest ones that there is no
// room for. That they go is signed for before they do.
func (l *chain) rotate() error {
	if l.fresh > 0 {
		if err := l.checkpoint(); err != nil {
			return err
		}
	}
	if l.signed.Load() != l.seq {
		if err := l.head(); err != nil {
			return err
		}
	}
	if err := l.create(); err != nil {
		return err
	}
	segments, err := list(l.dir)
	if err != nil {
		return err
	}
	old, err := l.surplus(segments)
	if err != nil || len(old) == 0 {
		return err
	}
	through := segments[len(old)].first - 1
	if err := l.append(true, Line{Event: Removed, Through: through}); err != nil {
		return err
	}
	if err := l.head(); err != nil {
		return err
	}
	for _, s := range old {
		if err := os.Remove(s.name); err != nil { // the next time, then
			l.log.Error("audit lines not removed", "error", err)
		}
	}
	l.log.Info("audit lines removed", "through", through)
	return nil
}

// surplus returns the oldest segments that there is no room for, but for those with lines that are
// too young to be removed.
func (l *chain) surplus(segments []segment) (old []segment, err error) {
	total := l.limit() // for the one that was just begun
	for _, s := range segments {
		total += s.size
	}
	for total > l.keep.Load() && len(old) < len(segments)-1 {
		// All its lines are older than the first one of the next.
		next, err := begun(segments[len(old)+1])
		if err != nil {
			return nil, err
		}
		if next.IsZero() {
			next = l.now()
		}
		if age := l.now().Sub(next); age < time.Duration(l.leastAge.Load()) {
			l.log.Warn("audit is larger than it should be: its lines are too young to be removed", "folder", l.dir, "bytes", total, "age", age.String())
			break
		}
		total -= segments[len(old)].size
		old = append(old, segments[len(old)])
	}
	return old, nil
}

// limit is the size from which on a segment is followed by another.
func (l *chain) limit() int64 { return min(maxSegment, l.keep.Load()/minSegments) }

// writeLine writes a line and returns once it is on the disk. ctx bounds the wait for a turn only.
func (l *chain) writeLine(ctx context.Context, line Line) error {
	err := l.queue.Do(ctx, entry{line: line})
	if errors.Is(err, groupcommit.ErrClosed) {
		err = errClosed
	}
	return err
}

// probe has the writer do what is due, and returns why lines cannot be written now.
func (l *chain) probe(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case l.probes <- answer:
	case <-l.queue.Ended():
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// serve is the one writer.
func (l *chain) serve() {
	defer l.queue.End()
	tick := time.NewTicker(headEvery)
	defer tick.Stop()
	for {
		select {
		case first := <-l.queue.Ops():
			l.commit(l.queue.Batch(first))
		case <-tick.C:
			l.notice(l.tick())
		case answer := <-l.probes:
			err := l.tick()
			l.notice(err)
			if err == nil {
				err = l.checkHead()
			}
			answer <- err
		case <-l.queue.Closing():
			l.finish()
			return
		}
	}
}

// commit writes a batch, and tells those who wait.
func (l *chain) commit(batch []groupcommit.Op[entry]) {
	var lines []Line
	durable := false
	for _, o := range batch {
		lines = append(lines, o.Value.line)
		durable = durable || o.Awaited()
	}
	err := l.write(durable, lines)
	l.notice(err)
	for _, o := range batch {
		o.Done(err)
		if err != nil && !o.Awaited() {
			l.counts.add(o.Value.kind, tally{1, l.now(), l.now()})
		}
	}
}

// write appends lines, after one that says so if nothing could be written
// before them. A checkpoint that is due comes first, and without it nothing: many
// lines that nobody signed for would look like a forgery.
func (l *chain) write(durable bool, lines []Line) error {
	if l.size >= l.limit() {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.owes() || l.overdue() {
		if err := l.signDue(); err != nil {
			return err
		}
	}
	if !l.failed.IsZero() {
		lines = append([]Line{{Event: Resumed, Since: l.failed}}, lines...)
	}
	if len(lines) == 0 {
		return nil
	}
	if l.mention != nil && !l.mentioned {
		lines = append([]Line{l.mention()}, lines...)
	}
	err := l.append(durable, lines...)
	l.mentioned = l.mentioned || err == nil
	return err
}

// notice logs once that nothing can be written, and once that it can be again.
func (l *chain) notice(err error) {
	switch {
	case err != nil && l.failed.IsZero():
		l.failed = l.now()
		l.log.Error("audit unavailable", "folder", l.dir, "error", err)
	case err == nil && !l.failed.IsZero():
		l.failed = time.Time{}
		l.log.Info("audit available again", "folder", l.dir)
	}
	if err == nil {
		l.fault.Store(nil)
	} else {
		l.fault.Store(&err)
	}
}

// tick does what is due: it finds out whether lines can be written again, writes
// what was only counted, and signs.
func (l *chain) tick() error {
	if err := l.pin.Check(); err != nil {
		return err
	}
	if err := l.tell(false); err != nil {
		return err
	}
	return l.signDue()
}

// checkHead writes the file checkpoint, which shows that the folder can be written, unless that was done
// just now.
func (l *chain) checkHead() error {
	if l.headless.IsZero() && l.now().Sub(l.proven) < provenFor {
		return nil
	}
	return l.head()
}

// finish writes what is left, and the last checkpoint.
func (l *chain) finish() {
	for batch := l.queue.Rest(); len(batch) > 0; batch = l.queue.Rest() {
		l.commit(batch)
	}
	err := l.tell(true)
	if err == nil {
		err = l.checkpoint()
	}
	l.notice(err)
}

// stop writes what is left and ends the writer. Lines that come later are refused.
func (l *chain) stop() error {
	l.queue.Close()
	<-l.queue.Ended()
	return errors.Join(l.err(), l.shut())
}

// err says why lines cannot be written now, or nothing.
func (l *chain) err() error {
	if err := l.fault.Load(); err != nil {
		return *err
	}
	return nil
}

// shut closes the file, once.
func (l *chain) shut() error {
	f := l.file
	if f == nil {
		return nil
	}
	l.file = nil
	return f.Close()
}

// later has a line written whose writing no goroutine waits for. The line is counted instead when the queue is full.
func (l *chain) later(line Line, k kind) {
	if !l.queue.TrySend(entry{line, k}) {
		l.counts.add(k, tally{1, l.now(), l.now()})
	}
}
