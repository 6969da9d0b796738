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
	"sync/atomic"
	"time"

	"modernc.org/sqlite"

	"sallyport/internal/boot"
	"sallyport/internal/groupcommit"
	"sallyport/internal/pathsafe"
)

// SQLite is the durable record of runs and claims, in one file of the state
// folder. What a method has returned without an error is on the disk and
// survives a crash of the program and of the machine. All methods may be
// called at once from many goroutines.
//
// One goroutine writes: operations that come while a transaction is being
// committed share the next one, each in a savepoint of its own.
type SQLite struct {
	// Uptime is the clock that waits are measured by, which no step of the wall clock moves. Only tests set it.
	Uptime func() time.Duration

	now  func() time.Time
	log  *slog.Logger
	path string
	boot string // boot.ID
	lock *pathsafe.Lock
	pins []pathsafe.Pin // of the database and its log, as they were opened

	write   *sql.DB   // one connection for the writer, one for checkpoints
	conn    *sql.Conn // the writer's
	writer  *prepared
	reads   *sql.DB // connections for claims, single runs and what the server reads for itself
	reader  *prepared
	lists   *sql.DB // connections for pages of runs, so that lists never keep a claim waiting
	lister  *prepared
	queue   *groupcommit.Queue[*op]
	turn    sync.Mutex                // held while a transaction is under way
	commits atomic.Int64              // transactions that wrote
	written atomic.Pointer[time.Time] // when a transaction was last committed; nil if one has failed since
	down    bool                      // the last transaction failed; the writer's own
	settled settled
	opened  opening
	noted   atomic.Bool // opened is recorded

	once sync.Once
	done sync.WaitGroup
}

// Open opens, or makes, the record in the folder dir, which must belong to
// this user alone, brings its schema forward, and holds the folder until
// Close. Errors: ErrHeld, ErrUnsafe, ErrNewer, ErrUnavailable with what is wrong.
func Open(ctx context.Context, dir string, now func() time.Time, log *slog.Logger) (*SQLite, error) {
	lock, err := holdFolder(dir)
	if err != nil {
		return nil, err
	}
	path, err := filepath.Abs(filepath.Join(dir, "state.db"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("finding the state folder: %w", err), lock.Close())
	}
	s := &SQLite{
		now: now, log: log, path: path, boot: boot.ID(), lock: lock,
		queue: groupcommit.New[*op](0, maxBatch),
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), s.shut())
	}
	// The two goroutines end with Close, not with the ctx of Open.
	life := context.WithoutCancel(ctx)
	s.done.Go(func() { s.serve(life) })
	s.done.Go(func() { s.keepLogShort(life) })
	return s, nil
}

// OpenRead opens the record in the folder dir to read it, beside the server
// that writes it or without one. What writes fails with ErrUnavailable. Errors:
// ErrNewer, ErrOlder, ErrUnavailable.
func OpenRead(ctx context.Context, dir string) (*SQLite, error) {
	path, err := filepath.Abs(filepath.Join(dir, "state.db"))
	if err != nil {
		return nil, fmt.Errorf("finding the state folder: %w", err)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening the record: %w", err)
	}
	s := &SQLite{path: path, queue: groupcommit.New[*op](0, maxBatch)}
	s.queue.Close() // nothing is written
	if err := s.openReaders(ctx, checkVersion); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), s.shut())
	}
	return s, nil
}

// openReaders connects the readers and prepares all that they run. check comes
// before that: statements of this version do not fit another schema.
func (s *SQLite) openReaders(ctx context.Context, check func(context.Context, *sql.DB) error) (err error) {
	if s.reads, err = openReadOnly(s.path, readConnections); err != nil {
		return err
	}
	if err := check(ctx, s.reads); err != nil {
		return err
	}
	if s.reader, err = prepareAll(ctx, s.reads, readStatements()); err != nil {
		return err
	}
	if s.lists, err = openReadOnly(s.path, listConnections); err != nil {
		return err
	}
	s.lister, err = prepareAll(ctx, s.lists, listStatements())
	return err
}

// Connections of the readers. A reader holds one connection at a time, and waits
// for nothing else while it does.
const (
	readConnections = 4
	listConnections = 2
)

func openReadOnly(path string, connections int) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dsn(path, "ro", "query_only(1)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

func (s *SQLite) open(ctx context.Context) error {
	// Elsewhere than on Linux and the BSDs this is not to be had, and fsync,
	// which does more, stays.
	if _, err := sqlite.Fdatasync(true); err != nil && !errors.Is(err, sqlite.ErrFdatasyncUnavailable) {
		return fmt.Errorf("choosing fdatasync: %w", err)
	}
	// SQLite would make the file by the umask, and its log by the file's mode.
	file, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("making the file: %w", err)
	}
	info, err := file.Stat()
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("making the file: %w", err)
	}
	s.pins = append(s.pins, pathsafe.NewPin(s.path, info))
	// Who closed the database took its log away. Otherwise there was a crash, of the
	// machine perhaps, and its disk is not believed unseen.
	log, err := os.Stat(s.path + "-wal")
	crashed := err == nil && log.Size() > 0
	s.write, err = sql.Open("sqlite", dsn(s.path, "rw", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
		// The writer never checkpoints in passing, keepLogShort does.
		"wal_autocheckpoint(0)", "journal_size_limit(33554432)", "cache_size(-8192)"))
	if err != nil {
		return err
	}
	s.write.SetMaxOpenConns(2)
	s.write.SetMaxIdleConns(2)
	if err := check(ctx, s.write); err != nil {
		return err
	}
	if crashed {
		if err := s.checkWhole(ctx); err != nil {
			return err
		}
	}
	if err := migrate(ctx, s.write, s.now().UnixMicro()); err != nil {
		return err
	}
	if err := s.readClocks(ctx); err != nil {
		return err
	}
	if s.conn, err = s.write.Conn(ctx); err != nil {
		return unavailable("connecting", err)
	}
	s.writer = newPrepared(s.conn.PrepareContext)
	// By name, because to open the log and close it again would end the locks of SQLite.
	if info, err = os.Stat(s.path + "-wal"); err != nil {
		return fmt.Errorf("finding the write-ahead log: %w", err)
	}
	s.pins = append(s.pins, pathsafe.NewPin(s.path+"-wal", info))
	return s.openReaders(ctx, func(context.Context, *sql.DB) error { return nil }) // the schema was just brought forward
}

func dsn(path, mode string, pragmas ...string) string {
	query := url.Values{"mode": {mode}, "_dqs": {"0"}, "_defensive": {"1"}}
	query["_pragma"] = append([]string{"busy_timeout(5000)", "trusted_schema(0)", "cell_size_check(1)"}, pragmas...)
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}).String()
}

// check refuses what is no database, and a filesystem that cannot do what the
// promise of this package needs.
func check(ctx context.Context, db *sql.DB) error {
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
func (s *SQLite) checkWhole(ctx context.Context) error {
	var result string
	if err := s.write.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&result); err != nil {
		return unavailable("checking the file", err)
	}
	if result != "ok" {
		return fmt.Errorf("%w: %w: %s", ErrUnavailable, ErrCorrupt, result)
	}
	return nil
}

// Close ends what is being written, closes the file and lets the folder go.
// Calls that come later fail with ErrUnavailable.
func (s *SQLite) Close() error {
	var err error
	s.once.Do(func() {
		if s.write != nil {
			s.queue.Close()
			s.done.Wait()
		}
		err = s.shut()
	})
	return err
}

// shut closes what is open, the lock last.
func (s *SQLite) shut() error {
	var errs []error
	for _, statements := range []*prepared{s.reader, s.lister, s.writer} {
		if statements != nil {
			errs = append(errs, statements.close())
		}
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	for _, db := range []*sql.DB{s.reads, s.lists, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing the store: %w", err)
	}
	return nil
}
