package audit

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"sallyport/internal/pathsafe"
)

// Errors of a Log.
var (
	ErrHeld    = errors.New("another server writes this audit")
	ErrDamaged = errors.New("the audit is not as it was left")
	errClosed  = errors.New("the audit is closed")
)

// Options say how an audit is written.
type Options struct {
	State    string             // folder; the audit is in its folder audit
	Keep     int64              // bytes that all lines together may take; the oldest go first
	LeastAge time.Duration      // for which a line about what was allowed is kept, whatever Keep is
	Key      ed25519.PrivateKey // nil for one that is made in the state folder
}

// Log is the writer of an audit: a chain of what was allowed and of the server's own events, and
// another of what was refused, so that refusals, which strangers can cause in any number, never push
// out what was allowed. All methods may be called at once from many goroutines.
type Log struct {
	counts

	decisions *chain
	refusals  *chain
	locks     []*pathsafe.Lock
	now       func() time.Time
}

// Write writes a line and returns once it is on the disk. An error means that it
// is not there, and that what it allows must not be done. ctx bounds the wait
// for a turn only.
func (l *Log) Write(ctx context.Context, line Line) error { return l.decisions.writeLine(ctx, line) }

// Reloaded records that a configuration is about to be in force, and has its
// bounds kept from then on. The digest is that of its file.
func (l *Log) Reloaded(ctx context.Context, o Options, digest string) error {
	if err := l.Write(ctx, Line{Event: Reloaded, Config: digest}); err != nil {
		return fmt.Errorf("writing the audit: %w", err)
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

// refusalsPart is which part of all room refusals have.
const refusalsPart = 4

// Err says why lines cannot be written now, or nothing.
func (l *Log) Err() error {
	return errors.Join(l.decisions.health.currentError(), l.refusals.health.currentError())
}

// Probe writes what is due, and returns why lines cannot be written now.
func (l *Log) Probe(ctx context.Context) error {
	return errors.Join(l.decisions.probeWriter(ctx), l.refusals.probeWriter(ctx))
}

// Close writes what is left and lets the audit go. Lines that come later are
// refused.
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
