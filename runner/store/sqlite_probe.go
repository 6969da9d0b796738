package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"sallyport/runner"
)

// provenFor is how long a commit proves that the store can write.
const provenFor = 5 * time.Second

// Probe reads a row. It also writes one, unless a recent commit proves that the store can write. It returns why the
// store cannot be read or written. ctx limits the time in the queue, and not the write.
func (s *SQLite) Probe(ctx context.Context) error {
	if err := s.writer.checkInPlace(); err != nil {
		return err
	}
	if _, err := s.Get(ctx, ""); !errors.Is(err, runner.ErrUnknown) {
		return fmt.Errorf("reading a row: %w", err)
	}
	if err := s.writer.checkRoom(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if at := s.writer.written.Load(); at != nil && time.Since(*at) < provenFor {
		return nil
	}
	return s.writer.record(ctx, func(ctx context.Context, p *statements) error {
		// user_version is a number in the header of the file that SQLite leaves to programs. It has no other use
		// here. It must change, because SQLite does not write an equal value.
		var version int
		if err := p.scanRow(ctx, []any{&version}, `PRAGMA user_version`); err != nil {
			return err
		}
		query := `PRAGMA user_version = 1`
		if version == 1 {
			query = `PRAGMA user_version = 2`
		}
		_, err := p.execute(ctx, query)
		return err
	})
}

// checkRoom writes a file of the size of a few deliveries and removes it. A commit alone proves little on a full
// disk: it may fit into the existing write-ahead log.
func (w *writer) checkRoom() error {
	const room = 256 << 10
	name := filepath.Join(filepath.Dir(w.path), "probe")
	return errors.Join(os.WriteFile(name, make([]byte, room), 0o600), os.Remove(name))
}

// checkInPlace returns an error if the database or its log was removed or replaced: what is
// committed after that is lost when the server ends.
func (w *writer) checkInPlace() error {
	for _, pin := range w.pins {
		if err := pin.Check(); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return nil
}

// longLog warns of a write-ahead log that grows because a reader prevents that it is copied.
type longLog struct {
	log    *slog.Logger
	warned int64 // its size in bytes at the last warning
}

// warnIfGrowing takes the size of a log that is over its limit, and whether all of it was copied. It warns each time
// that the size has doubled.
func (l *longLog) warnIfGrowing(size int64, copied bool) {
	switch {
	case copied && l.warned > 0:
		l.log.Info("write-ahead log copied again", "bytes", size)
		l.warned = 0
	case !copied && size >= 2*l.warned:
		l.log.Warn("write-ahead log grows: another process reads the database, and the log is not reused until it ends",
			"bytes", size)
		l.warned = size
	}
}
