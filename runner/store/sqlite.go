// Package store keeps runs and claims in SQLite, in the file state.db of the state folder.
//
// Invariants:
//
//   - What a method of [SQLite] returns without an error is on the disk. It survives a crash of the program and of the
//     machine.
//   - At most one run of a flight is running. A partial unique index on the flight of running runs ensures it, so no
//     fault of the program can record two.
//   - A claim and the run that its delivery started are recorded together, or neither is.
//   - One process at a time has the folder open for writing: [Open] locks it until [SQLite.Close].
//
// Failures: an error of the disk or of the database is an [ErrUnavailable]. Nothing was recorded then, and the same
// call may succeed later. The exception is runner.ErrUncertain: a server that starts later may find it recorded. After
// a crash, [Open] checks the whole file before it uses it, and refuses a damaged one with [ErrCorrupt]. If the file or
// its write-ahead log was moved or removed, all writes fail.
//
// One goroutine writes. Operations that arrive while it commits share the next transaction, each in a separate
// savepoint. Readers have separate connections and never wait for the writer. Schema changes are in migrations/. [Open]
// applies them in order, and they are never reverted.
//
// [Open] is for the server, [OpenRead] is for commands that read the state folder, and [Backup] copies the database of
// a running server.
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

// SQLite is the durable store of runs and claims, in one file of the state folder. What a method has returned without
// an error is on the disk and survives a crash of the program and of the machine. All methods may be called
// concurrently.
type SQLite struct {
	reader
	clocks

	writer *writer
	pruner pruner
	lock   *pathsafe.Lock // of the state folder; nil if the store is open for reading only
	once   sync.Once
}

// Open opens the store in the folder dir, or creates it, migrates its schema, and locks the folder until Close. This
// user must own the folder, and other users must not have access to it. Errors: ErrHeld, ErrUnsafe, ErrNewer, and
// ErrUnavailable with the cause.
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

// OpenRead opens the store in the folder dir for reading, also while a server writes to it. Methods that write fail
// with ErrUnavailable. Errors: ErrNewer, ErrOlder, ErrUnavailable.
func OpenRead(ctx context.Context, dir string) (*SQLite, error) {
	path, err := databasePath(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	s := &SQLite{clocks: clocks{now: time.Now, Uptime: boot.Uptime}, writer: newWriter(path, nil)}
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
	// The schema was just migrated.
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

// checkJournal refuses a file that is not a database, and a filesystem that lacks what durability needs.
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

// checkWhole refuses a damaged database. It reads all of it, which takes a second or more for a million runs.
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

// Close waits for the current transaction, closes the file and unlocks the folder.
// Later calls fail with ErrUnavailable.
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
