package store

import (
	"context"
	"errors"
	"fmt"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"sallyport/runner"
)

// Errors of SQLite. Each error of the disk or the database, as opposed to one of the run, is an ErrUnavailable:
// nothing was recorded, and the same call may succeed later.
var (
	ErrUnavailable = runner.ErrUnavailable
	ErrDiskFull    = errors.New("disk full")
	ErrReadOnly    = errors.New("database is read-only")
	ErrCorrupt     = errors.New("database is corrupt")
	// ErrHeld says that another server uses the folder.
	ErrHeld = errors.New("another server uses it")
	// ErrUnsafe says that other users of the machine could change the folder.
	ErrUnsafe = errors.New("folder is not safe from other users")
	// ErrNewer says that a later version of the program wrote the database.
	ErrNewer = errors.New("database was written by a newer version")
	// ErrOlder says that no server of this version has opened the database yet.
	ErrOlder = errors.New("database schema is older than this program: start the server once to migrate it")
)

// unavailable classifies an error of the database. An error of the context is not changed.
func unavailable(doing string, err error) error {
	var failure *sqlite.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", doing, err)
	case !errors.As(err, &failure): // an error of database/sql: closed, or a row that cannot be read
		return fmt.Errorf("%w: %s: %w", ErrUnavailable, doing, err)
	}
	code := failure.Code() & 0xff                       // the rest of an extended code is detail
	if failure.Code() == sqlite3.SQLITE_IOERR_SHMSIZE { // except this one: no space for the index of the log
		code = sqlite3.SQLITE_FULL
	}
	switch code {
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: %w: %s: %w", ErrUnavailable, ErrDiskFull, doing, err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return fmt.Errorf("%w: %w: %s: %w", ErrUnavailable, ErrReadOnly, doing, err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: %w: %s: %w", ErrUnavailable, ErrCorrupt, doing, err)
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG: // an error of one operation, not of the others in its batch
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, doing, err)
}
