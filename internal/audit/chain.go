package audit

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"sallyport/internal/groupcommit"
)

// chain writes the lines of one folder. One goroutine writes, and lines that come while others are synced share the
// next write. It has many fields because it joins its parts, each a separate type, with what they share.
type chain struct {
	bounds

	dir    string
	now    func() time.Time
	log    *slog.Logger
	counts *counts
	queue  *groupcommit.Queue[entry]
	probes chan chan error
	health health

	// The fields below are for the goroutine that writes.
	place

	preface     preface
	file        segmentFile
	checkpoints checkpoints
	unwritten   []groupcommit.Op[entry] // lines that no goroutine waits for, and that are not only counted
}

// preface is a line that comes before the first one of each start and each segment.
type preface struct {
	line    func() Line // nil for none
	written bool        // since the start, and to the segment
}

// entry is a line to be written.
type entry struct {
	line Line
	kind kind // how it is counted if it cannot be written; zero if it is written later
}

// The rhythm of the writer.
const (
	maxBatch    = 256
	queueRoom   = 1024        // lines
	headEvery   = time.Second // for the file checkpoint, if lines were written
	signEvery   = time.Minute // for a checkpoint among the lines, after the first line since the last one
	signLines   = 1000        // the same, in lines
	maxSegment  = 16 << 20    // bytes
	minSegments = 8           // in bounds.keep
	provenFor   = 5 * time.Second
	cutQuoted   = 4 << 10 // bytes of a cut line that are quoted
)

// appendLines writes lines to the segment, all or none.
func (l *chain) appendLines(durable bool, lines ...Line) error {
	p, at, b := l.place, l.now().UTC(), []byte(nil)
	for _, line := range lines {
		line.Time = at
		var err error
		if b, err = p.appendLine(b, line); err != nil {
			return err
		}
	}
	if err := l.file.appendBytes(b, durable); err != nil {
		return err
	}
	l.place = p
	l.checkpoints.noteLines(len(lines), at)
	return nil
}

// writeCheckpoint makes all lines durable, and signs for them among the lines.
func (l *chain) writeCheckpoint() error {
	text, err := l.checkpoints.signForLine(l.place)
	if err != nil {
		return err
	}
	if err := l.appendLines(true, Line{Event: Checkpoint, Note: text}); err != nil {
		return err
	}
	l.checkpoints.fresh = 0
	return nil
}

// writeBothCheckpoints signs for all lines, among the lines and in the file.
func (l *chain) writeBothCheckpoints() error {
	if err := l.writeCheckpoint(); err != nil {
		return err
	}
	return l.checkpoints.writeFile(l.place)
}

// signIfDue writes the checkpoints that are due. A file checkpoint that cannot be written is an error only
// when it is overdue.
func (l *chain) signIfDue() error {
	switch {
	case l.checkpoints.isLineDue():
		if err := l.writeCheckpoint(); err != nil {
			return err
		}
	case l.seq == l.checkpoints.signed.Load():
		return nil
	default:
		if err := l.file.syncFile(); err != nil { // nothing is signed that may not last
			return err
		}
	}
	if err := l.checkpoints.writeFile(l.place); err != nil && l.checkpoints.isFileOverdue() {
		return err
	}
	return nil
}

// startSegment starts another segment, and removes the oldest ones beyond
// the bounds, after a line that records it was signed.
func (l *chain) startSegment() error {
	if l.checkpoints.fresh > 0 {
		if err := l.writeBothCheckpoints(); err != nil {
			return err
		}
	}
	if l.checkpoints.signed.Load() != l.seq {
		if err := l.checkpoints.writeFile(l.place); err != nil {
			return err
		}
	}
	l.preface.written = false
	if err := l.file.createSegment(l.dir, l.seq+1); err != nil {
		return err
	}
	segments, err := listSegments(l.dir)
	if err != nil {
		return err
	}
	old, err := l.findSurplus(segments)
	if err != nil || len(old) == 0 {
		return err
	}
	through := segments[len(old)].first - 1
	if err := l.appendLines(true, Line{Event: Removed, Through: through}); err != nil {
		return err
	}
	if err := l.checkpoints.writeFile(l.place); err != nil {
		return err
	}
	for _, s := range old {
		if err := os.Remove(s.name); err != nil { // it is tried again with the next segment
			l.log.Error("audit lines not removed", "error", err)
		}
	}
	l.log.Info("audit lines removed", "through", through)
	return nil
}

// findSurplus returns the oldest segments beyond the bounds, except those with lines that are
// younger than leastAge.
func (l *chain) findSurplus(segments []segment) (old []segment, err error) {
	total := l.segmentSize() // for the segment that was just started
	for _, s := range segments {
		total += s.size
	}
	for total > l.keep.Load() && len(old) < len(segments)-1 {
		// All its lines are older than the first line of the next segment.
		next, err := firstLineTime(segments[len(old)+1])
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

// writeLine writes a line and returns once it is on the disk. ctx bounds only the time in the queue.
func (l *chain) writeLine(ctx context.Context, line Line) error {
	err := l.queue.Do(ctx, entry{line: line})
	if errors.Is(err, groupcommit.ErrClosed) {
		err = errClosed
	}
	return err
}

// probeWriter makes the writer do what is due, and returns why lines cannot be written now, or nil.
func (l *chain) probeWriter(ctx context.Context) error {
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

// serveQueue is the goroutine that writes.
func (l *chain) serveQueue() {
	defer l.queue.End()
	tick := time.NewTicker(headEvery)
	defer tick.Stop()
	for {
		select {
		case first := <-l.queue.Ops():
			l.commitBatch(l.queue.Batch(first))
		case <-tick.C:
			l.health.recordResult(l.doDueWork())
			l.retryUnwritten()
		case answer := <-l.probes:
			err := l.doDueWork()
			l.health.recordResult(err)
			if err == nil {
				err = l.checkpoints.ensureFileWritable(l.place)
			}
			answer <- err
		case <-l.queue.Closing():
			l.finishWriting()
			return
		}
	}
}

// commitBatch writes a batch, and reports the result. What cannot be written and has no goroutine that waits for it is
// counted, or kept for retryUnwritten.
func (l *chain) commitBatch(batch []groupcommit.Op[entry]) {
	var lines []Line
	durable := false
	for _, o := range batch {
		lines = append(lines, o.Value.line)
		durable = durable || o.Awaited()
	}
	err := l.writeLines(durable, lines)
	l.health.recordResult(err)
	for _, o := range batch {
		o.Done(err)
		switch {
		case err == nil || o.Awaited():
		case o.Value.kind == kind{}:
			l.unwritten = append(l.unwritten, o)
		default:
			l.counts.countOne(o.Value.kind, l.now())
		}
	}
}

// retryUnwritten writes the lines that could not be written before, if lines can be written again.
func (l *chain) retryUnwritten() {
	for l.health.since.IsZero() && len(l.unwritten) > 0 {
		n := min(maxBatch, len(l.unwritten))
		batch := l.unwritten[:n]
		l.unwritten = l.unwritten[n:]
		l.commitBatch(batch)
	}
}

// writeLines appends lines, after a line Resumed if no lines could be written before.
// A checkpoint that is due comes first. If it fails, no line is written: too many lines
// without a signature would look like a forgery.
func (l *chain) writeLines(durable bool, lines []Line) error {
	if l.file.size >= l.segmentSize() {
		if err := l.startSegment(); err != nil {
			return err
		}
	}
	if l.checkpoints.isLineDue() || l.checkpoints.isFileOverdue() {
		if err := l.signIfDue(); err != nil {
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
	err := l.appendLines(durable, lines...)
	l.preface.written = l.preface.written || err == nil
	return err
}

// doDueWork finds out whether lines can be written again, writes what was only counted,
// and signs.
func (l *chain) doDueWork() error {
	if err := l.file.pin.Check(); err != nil {
		return err
	}
	if err := l.writeCounts(false); err != nil {
		return err
	}
	return l.signIfDue()
}

// finishWriting writes the queued lines and the last checkpoint.
func (l *chain) finishWriting() {
	for batch := l.queue.Rest(); len(batch) > 0; batch = l.queue.Rest() {
		l.commitBatch(batch)
	}
	l.health.recordResult(l.writeCounts(true))
	l.retryUnwritten()
	if l.health.since.IsZero() {
		l.health.recordResult(l.writeBothCheckpoints())
	}
}

// stopWriter writes the queued lines and ends the writer. Later lines are refused.
func (l *chain) stopWriter() error {
	l.queue.Close()
	<-l.queue.Ended()
	return errors.Join(l.health.currentError(), l.file.closeFile())
}
