package audit

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"sallyport/internal/pathsafe"
)

// Errors of an audit log.
var (
	ErrHeld    = errors.New("another server writes this audit log")
	ErrDamaged = errors.New("audit log was modified or truncated")
	errClosed  = errors.New("audit log is closed")
)

// Options say how an audit log is written.
type Options struct {
	State    string             // folder; the audit log is in its folder audit
	Keep     int64              // bytes that all lines together may take; the oldest go first
	LeastAge time.Duration      // a younger line about what was allowed is kept, also beyond Keep
	Key      ed25519.PrivateKey // nil for the key in the state folder, which is made if needed
}

// Log writes an audit log: a chain of what was allowed and of events of the server, and another of what
// was refused. All methods may be called at once from many goroutines.
type Log struct {
	counts

	decisions *chain
	refusals  *chain
	locks     []*pathsafe.Lock
	now       func() time.Time
}

// Write writes a line and returns once it is on the disk. After an error the line was
// not written, and what it allows must not be done. ctx bounds only the time in the
// queue.
func (l *Log) Write(ctx context.Context, line Line) error { return l.decisions.writeLine(ctx, line) }

// Reloaded records that a configuration is about to be used, and uses its bounds from
// then on. The digest is of its file.
func (l *Log) Reloaded(ctx context.Context, o Options, digest string) error {
	if err := l.Write(ctx, Line{Event: Reloaded, Config: digest}); err != nil {
		return fmt.Errorf("writing the audit log: %w", err)
	}
	l.setBounds(o)
	return nil
}

// setBounds divides the room between the chains.
func (l *Log) setBounds(o Options) {
	refusals := o.Keep / refusalsPart
	l.refusals.keep.Store(refusals)
	l.decisions.keep.Store(o.Keep - refusals)
	l.decisions.leastAge.Store(int64(o.LeastAge))
}

// refusalsPart divides Keep: refusals get one such part of it.
const refusalsPart = 4

// Err returns why lines cannot be written now, or nil.
func (l *Log) Err() error {
	return errors.Join(l.decisions.health.currentError(), l.refusals.health.currentError())
}

// Probe writes what is due, and returns why lines cannot be written now, or nil.
func (l *Log) Probe(ctx context.Context) error {
	return errors.Join(l.decisions.probeWriter(ctx), l.refusals.probeWriter(ctx))
}

// Close writes the queued lines and unlocks the folders. Later lines are refused.
func (l *Log) Close() error {
	err := errors.Join(l.refusals.stopWriter(), l.decisions.stopWriter())
	return errors.Join(err, l.unlockFolders())
}

func (l *Log) unlockFolders() error {
	var errs []error
	for _, lock := range l.locks {
		errs = append(errs, lock.Close())
	}
	l.locks = nil
	return errors.Join(errs...)
}
