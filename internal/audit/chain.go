package audit

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"sallyport/internal/groupcommit"
)

// chain is the writer of lines that are linked by their hashes, in a folder of their own. One
// goroutine writes, and lines that come while others are made durable share the next write.
type chain struct {
	bounds

	dir    string
	now    func() time.Time
	log    *slog.Logger
	counts *counts
	queue  *groupcommit.Queue[entry]
	probes chan chan error
	health health

	// The rest is for the goroutine that writes.
	place

	preface     preface
	file        segmentFile
	checkpoints checkpoints
}

// preface is a line that comes before the first one of each start and each segment.
type preface struct {
	line    func() Line // nil for none
	written bool        // since the start, and to the segment
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

// append writes lines to the segment, all or none.
func (l *chain) append(durable bool, lines ...Line) error {
	p, at, b := l.place, l.now().UTC(), []byte(nil)
	for _, line := range lines {
		line.Time = at
		var err error
		if b, err = p.add(b, line); err != nil {
			return err
		}
	}
	if err := l.file.write(b, durable); err != nil {
		return err
	}
	l.place = p
	l.checkpoints.noteLines(len(lines), at)
	return nil
}

// signLine makes all lines durable, and signs for them among the lines.
func (l *chain) signLine() error {
	text, err := l.checkpoints.signLine(l.place)
	if err != nil {
		return err
	}
	if err := l.append(true, Line{Event: Checkpoint, Note: text}); err != nil {
		return err
	}
	l.checkpoints.fresh = 0
	return nil
}

// checkpoint signs for all lines, among the lines and in the file.
func (l *chain) checkpoint() error {
	if err := l.signLine(); err != nil {
		return err
	}
	return l.checkpoints.writeFile(l.place)
}

// signDue signs where that is due. A file checkpoint that cannot be written is no error before lines
// have been without one for longer than they may.
func (l *chain) signDue() error {
	switch {
	case l.checkpoints.lineDue():
		if err := l.signLine(); err != nil {
			return err
		}
	case l.seq == l.checkpoints.signed.Load():
		return nil
	default:
		if err := l.file.sync(); err != nil { // nothing is signed that may not last
			return err
		}
	}
	if err := l.checkpoints.writeFile(l.place); err != nil && l.checkpoints.fileOverdue() {
		return err
	}
	return nil
}

// rotate begins another segment, and removes the oldest ones that there is no
// room for. That they go is signed for before they do.
func (l *chain) rotate() error {
	if l.checkpoints.fresh > 0 {
		if err := l.checkpoint(); err != nil {
			return err
		}
	}
	if l.checkpoints.signed.Load() != l.seq {
		if err := l.checkpoints.writeFile(l.place); err != nil {
			return err
		}
	}
	l.preface.written = false
	if err := l.file.create(l.dir, l.seq+1); err != nil {
		return err
	}
	segments, err := list(l.dir)
	if err != nil {
		return err
	}
	old, err := l.findSurplus(segments)
	if err != nil || len(old) == 0 {
		return err
	}
	through := segments[len(old)].first - 1
	if err := l.append(true, Line{Event: Removed, Through: through}); err != nil {
		return err
	}
	if err := l.checkpoints.writeFile(l.place); err != nil {
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

// findSurplus returns the oldest segments that there is no room for, except those with lines that are
// too young to be removed.
func (l *chain) findSurplus(segments []segment) (old []segment, err error) {
	total := l.segmentSize() // for the one that was just begun
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
			l.log.Warn("audit log is larger than audit.keep: its oldest lines are younger than audit.least_age",
				"folder", l.dir, "bytes", total, "age", age.String())
			break
		}
		total -= segments[len(old)].size
		old = append(old, segments[len(old)])
	}
	return old, nil
}

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
			l.health.note(l.tick())
		case answer := <-l.probes:
			err := l.tick()
			l.health.note(err)
			if err == nil {
				err = l.checkpoints.checkFile(l.place)
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
	l.health.note(err)
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
	if l.file.size >= l.segmentSize() {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.checkpoints.lineDue() || l.checkpoints.fileOverdue() {
		if err := l.signDue(); err != nil {
			return err
		}
	}
	if !l.health.since.IsZero() {
		lines = append([]Line{{Event: Resumed, Since: l.health.since}}, lines...)
	}
	if len(lines) == 0 {
		return nil
	}
	if l.preface.line != nil && !l.preface.written {
		lines = append([]Line{l.preface.line()}, lines...)
	}
	err := l.append(durable, lines...)
	l.preface.written = l.preface.written || err == nil
	return err
}

// tick does what is due: it finds out whether lines can be written again, writes
// what was only counted, and signs.
func (l *chain) tick() error {
	if err := l.file.pin.Check(); err != nil {
		return err
	}
	if err := l.tell(false); err != nil {
		return err
	}
	return l.signDue()
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
	l.health.note(err)
}

// stop writes what is left and ends the writer. Lines that come later are refused.
func (l *chain) stop() error {
	l.queue.Close()
	<-l.queue.Ended()
	return errors.Join(l.health.err(), l.file.close())
}

// later has a line written whose writing no goroutine waits for. The line is counted instead when the queue is full.
func (l *chain) later(line Line, k kind) {
	if !l.queue.TrySend(entry{line, k}) {
		l.counts.add(k, tally{1, l.now(), l.now()})
	}
}
