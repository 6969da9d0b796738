package audit

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/internal/owned"
)

// Errors of a Log.
var (
	ErrHeld    = errors.New("another server writes this audit")
	ErrDamaged = errors.New("the audit is not as it was left")
	errClosed  = errors.New("the audit is closed")
)

// Options say how an audit is written.
type Options struct {
	State string             // folder; the audit is in its folder audit
	Keep  int64              // bytes that all lines together may take; the oldest go first
	Key   ed25519.PrivateKey // nil for one that is made in the state folder
}

// Log is the writer of an audit. All methods may be called at once from many
// goroutines; one of its own writes, and lines that come while others are made
// durable share the next write.
type Log struct {
	dir   string
	keep  atomic.Int64
	sign  *signer
	now   func() time.Time
	log   *slog.Logger
	lock  *owned.Lock
	fault atomic.Pointer[error] // why nothing can be written, or nil

	ops     chan *op
	probes  chan chan error
	closing chan struct{}
	once    sync.Once
	ended   chan struct{} // closed when the writer is gone

	refusals

	// The rest is the writer's own.
	place

	file   *os.File
	pin    owned.Pin // of the file
	size   int64     // of the file, up to the end of its last good line
	spilt  bool      // there may be more in the file than that
	last   uint64    // line that the file checkpoint is about
	fresh  int       // lines since the last checkpoint among the lines
	since  time.Time // of the first of them
	failed time.Time // since when nothing can be written; zero when it can
}

// op is a line to be written. done is nil for one that nobody waits for.
type op struct {
	line Line
	kind kind // where it is counted when nobody waits and it cannot be written
	done chan error
}

// The rhythm of the writer.
const (
	maxBatch    = 256
	waiting     = 1024        // lines that nobody waits for
	headEvery   = time.Second // the file checkpoint, when something was written
	signEvery   = time.Minute // a checkpoint among the lines, so long after the first since the last one
	signLines   = 1000        // or after so many
	maxSegment  = 16 << 20    // bytes
	minSegments = 8           // within Options.Keep
	cutQuoted   = 4 << 10     // bytes of a cut line that are kept
)

// use makes a file the one that is written.
func (l *Log) use(name string, flags int) error {
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
	l.file, l.pin, l.size, l.spilt = f, owned.NewPin(name, info), 0, info.Size() > 0
	return err
}

// append writes lines to the file, all or none.
func (l *Log) append(durable bool, lines ...Line) error {
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
func (l *Log) create() error {
	if err := l.use(segmentName(l.dir, l.seq+1), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	return syncFolder(l.dir)
}

// head writes the file checkpoint.
func (l *Log) head() error {
	text, err := l.sign.checkpoint(ofHead, l.place, l.now())
	if err != nil {
		return err
	}
	if err := owned.ReplaceFileAt(filepath.Join(l.dir, checkpointFile), []byte(text), 0o600); err != nil {
		return err
	}
	l.last = l.seq
	return nil
}

// checkpoint makes all lines durable, and signs for them among the lines and in
// the file.
func (l *Log) checkpoint() error {
	text, err := l.sign.checkpoint(ofLine, l.place, l.now())
	if err != nil {
		return err
	}
	if err := l.append(true, Line{Event: Checkpoint, Note: text}); err != nil {
		return err
	}
	l.fresh = 0
	return l.head()
}

// owes tells whether enough has come since the last checkpoint.
func (l *Log) owes() bool {
	return l.fresh > 0 && (l.fresh >= signLines || l.now().Sub(l.since) >= signEvery)
}

// rotate begins another segment, and removes the oldest ones that there is no
// room for. That they go is signed for before they do.
func (l *Log) rotate() error {
	if l.fresh > 0 {
		if err := l.checkpoint(); err != nil {
			return err
		}
	}
	if l.last != l.seq {
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
	total := l.limit() // for the one that was just begun
	for _, s := range segments {
		total += s.size
	}
	var old []segment
	for total > l.keep.Load() && len(old) < len(segments)-1 {
		total -= segments[len(old)].size
		old = append(old, segments[len(old)])
	}
	if len(old) == 0 {
		return nil
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

// limit is the size from which on a segment is followed by another.
func (l *Log) limit() int64 { return min(maxSegment, l.keep.Load()/minSegments) }

// Write writes a line and returns once it is on the disk. An error means that it
// is not there, and that what it allows must not be done. ctx bounds the wait
// for a turn only.
func (l *Log) Write(ctx context.Context, line Line) error {
	o := &op{line: line, done: make(chan error, 1)}
	select {
	case <-l.closing:
		return errClosed
	default:
	}
	select {
	case l.ops <- o:
	case <-l.closing:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-l.ended:
		select {
		case err := <-o.done:
			return err
		default:
			return errClosed
		}
	}
}

// Reloaded records that a configuration is about to be in force, and has its
// bound kept from then on. The digest is that of its file.
func (l *Log) Reloaded(ctx context.Context, keep int64, digest string) error {
	if err := l.Write(ctx, Line{Event: Reloaded, Config: digest}); err != nil {
		return fmt.Errorf("writing the audit: %w", err)
	}
	l.keep.Store(keep)
	return nil
}

// Err says why lines cannot be written now, or nothing.
func (l *Log) Err() error {
	if err := l.fault.Load(); err != nil {
		return *err
	}
	return nil
}

// Probe has the writer do what is due, and returns why lines cannot be written now.
func (l *Log) Probe(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case l.probes <- answer:
	case <-l.ended:
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
func (l *Log) serve() {
	defer close(l.ended)
	tick := time.NewTicker(headEvery)
	defer tick.Stop()
	for {
		select {
		case o := <-l.ops:
			l.commit(l.gather(o))
		case <-tick.C:
			l.notice(l.tick())
		case answer := <-l.probes:
			err := l.tick()
			l.notice(err)
			answer <- err
		case <-l.closing:
			l.finish()
			return
		}
	}
}

// gather takes the lines that wait already.
func (l *Log) gather(first *op) []*op {
	batch := []*op{first}
	for len(batch) < maxBatch {
		select {
		case o := <-l.ops:
			batch = append(batch, o)
		default:
			return batch
		}
	}
	return batch
}

// commit writes a batch, and tells those who wait.
func (l *Log) commit(batch []*op) {
	var lines []Line
	durable := false
	for _, o := range batch {
		lines = append(lines, o.line)
		durable = durable || o.done != nil
	}
	err := l.write(durable, lines)
	l.notice(err)
	for _, o := range batch {
		switch {
		case o.done != nil:
			o.done <- err
		case err != nil:
			l.count(o.kind, tally{1, l.now(), l.now()})
		}
	}
}

// write appends lines, after one that says so if nothing could be written
// before them. A checkpoint that is due comes first, and without it nothing: many
// lines that nobody signed for would look like a forgery.
func (l *Log) write(durable bool, lines []Line) error {
	if l.size >= l.limit() {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.owes() {
		if err := l.checkpoint(); err != nil {
			return err
		}
	}
	if !l.failed.IsZero() {
		lines = append([]Line{{Event: Resumed, Since: l.failed}}, lines...)
	}
	if len(lines) == 0 {
		return nil
	}
	return l.append(durable, lines...)
}

// notice tells the operator once that nothing can be written, and once that it
// is over.
func (l *Log) notice(err error) {
	switch {
	case err != nil && l.failed.IsZero():
		l.failed = l.now()
		l.log.Error("audit unavailable: nothing is started", "error", err)
	case err == nil && !l.failed.IsZero():
		l.failed = time.Time{}
		l.log.Info("audit available again")
	}
	l.fault.Store(nil)
	if err != nil {
		l.fault.Store(&err)
	}
}

// tick does what is due: it finds out whether the audit can be written again,
// writes what was only counted, and signs.
func (l *Log) tick() error {
	if err := l.pin.Check(); err != nil {
		return err
	}
	if err := l.tell(false); err != nil {
		return err
	}
	if l.owes() {
		return l.checkpoint()
	}
	if l.seq == l.last {
		return nil
	}
	if err := l.file.Sync(); err != nil { // nobody signs for what may not last
		return err
	}
	return l.head()
}

// finish writes what is left, and the last checkpoint.
func (l *Log) finish() {
	for len(l.ops) > 0 {
		l.commit(l.gather(<-l.ops))
	}
	err := l.tell(true)
	if err == nil {
		err = l.checkpoint()
	}
	l.notice(err)
}

// Close writes what is left and lets the audit go. Lines that come later are
// refused.
func (l *Log) Close() error {
	var err error
	l.once.Do(func() {
		close(l.closing)
		<-l.ended
		err = errors.Join(l.Err(), l.shut())
	})
	return err
}

// shut closes what is open, the lock last.
func (l *Log) shut() error {
	var errs []error
	if l.file != nil {
		errs = append(errs, l.file.Close())
	}
	return errors.Join(append(errs, l.lock.Close())...)
}
