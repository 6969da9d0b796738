// Package store keeps the record of runs.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sallyport/internal/boot"
	"sallyport/internal/pathsafe"
)

// SQLite is the durable store of runs and claims, in one file of the state
// folder. What a method has returned without an error is on the disk and
// survives a crash of the program and of the machine. All methods may be
// called at once from many goroutines.
type SQLite struct {
	reader
	clocks

	writer *writer
	pruner pruner
	lock   *pathsafe.Lock // of the state folder; nil if the store is open to be read only
	once   sync.Once
}

// Open opens, or makes, the store in the folder dir, which must belong to
// this user alone, brings its schema forward, and holds the folder until
// Close. Errors: ErrHeld, ErrUnsafe, ErrNewer, ErrUnavailable with what is wrong.
func Open(ctx context.Context, dir string, now func() time.Time, log *slog.Logger) (*SQLite, error) {
	lock, err := holdFolder(dir)
	if err != nil {
		return nil, err
	}
	path, err := databasePath(dir)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s := &SQLite{clocks: clocks{now: now, boot: boot.ID()}, writer: newWriter(path, log), lock: lock}
	if err := s.openParts(ctx, path); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), s.closeAll())
	}
	s.writer.startWriter(ctx)
	return s, nil
}

// OpenRead opens the store in the folder dir to read it, whether or not a server
// writes it. What writes fails with ErrUnavailable. Errors: ErrNewer, ErrOlder,
// ErrUnavailable.
func OpenRead(ctx context.Context, dir string) (*SQLite, error) {
	path, err := databasePath(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	s := &SQLite{writer: newWriter(path, nil)}
	s.writer.queue.Close() // nothing is written
	if err := s.reader.openReader(ctx, path, checkVersion); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), s.closeAll())
	}
	return s, nil
}

func databasePath(dir string) (string, error) {
	path, err := filepath.Abs(filepath.Join(dir, "state.db"))
	if err != nil {
		return "", fmt.Errorf("finding the state folder: %w", err)
	}
	return path, nil
}

func (s *SQLite) openParts(ctx context.Context, path string) error {
	if err := s.writer.openWriter(ctx); err != nil {
		return err
	}
	if err := migrateSchema(ctx, s.writer.db, s.now().UnixMicro()); err != nil {
		return err
	}
	if err := s.clocks.readClocks(ctx, s.writer.db); err != nil {
		return err
	}
	if err := s.writer.connectWriter(ctx); err != nil {
		return err
	}
	// The schema was just brought forward.
	if err := s.reader.openReader(ctx, path, func(context.Context, *sql.DB) error { return nil }); err != nil {
		return err
	}
	s.pruner.prepared = s.reader.prepared
	return nil
}

func dataSource(path, mode string, pragmas ...string) string {
	query := url.Values{"mode": {mode}, "_dqs": {"0"}, "_defensive": {"1"}}
	query["_pragma"] = append([]string{"busy_timeout(5000)", "trusted_schema(0)", "cell_size_check(1)"}, pragmas...)
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}).String()
}

// checkJournal refuses a file that is not a database, and a filesystem that cannot do what the
// promise of this package needs.
func checkJournal(ctx context.Context, db *sql.DB) error {
	var mode string
	if err := db.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&mode); err != nil {
		return unavailable("reading the file", err)
	}
	if mode != "wal" {
		return fmt.Errorf("%w: its filesystem does not allow a write-ahead log (journal mode %s)", ErrUnavailable, mode)
	}
	return nil
}

// checkWhole refuses a database that is damaged. It reads all of it, which takes
// a second or more for a million runs.
func checkWhole(ctx context.Context, db *sql.DB) error {
	var result string
	if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&result); err != nil {
		return unavailable("checking the file", err)
	}
	if result != "ok" {
		return fmt.Errorf("%w: %w: %s", ErrUnavailable, ErrCorrupt, result)
	}
	return nil
}

// Close ends what is being written, closes the file and unlocks the folder.
// Calls that come later fail with ErrUnavailable.
func (s *SQLite) Close() error {
	var err error
	s.once.Do(func() {
		s.writer.stopWriter()
		err = s.closeAll()
	})
	return err
}

// closeAll closes what is open, the lock last.
func (s *SQLite) closeAll() error {
	err := errors.Join(s.reader.closeReader(), s.writer.closeWriter())
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	if err != nil {
		return fmt.Errorf("closing the store: %w", err)
	}
	return nil
}
