package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// sqlEndActive ends the queued and running runs in a backup. When the backup is restored, it is not known how they
// continued, and they must not start a second time.
const sqlEndActive = `UPDATE runs SET state = 'interrupted', ended = $1, error = $2 WHERE ended = 0`

// Backup writes a copy of the database of the state folder dir to the file named to, which must not exist. The copy
// is a snapshot, also if a server writes to the original. Runs that are queued or running at that moment are
// interrupted in the copy. Errors: ErrNewer, ErrOlder, ErrUnavailable.
func Backup(ctx context.Context, dir, to string, now time.Time) error {
	path, err := filepath.Abs(filepath.Join(dir, "state.db"))
	if err != nil {
		return fmt.Errorf("finding the state folder: %w", err)
	}
	original, err := sql.Open("sqlite", dataSource(path, "ro"))
	if err != nil {
		return err
	}
	err = checkVersion(ctx, original)
	if err == nil {
		_, err = original.ExecContext(ctx, `VACUUM INTO $1`, to)
	}
	if err := errors.Join(err, original.Close()); err != nil {
		return unavailable("copying the database", err)
	}
	backup, err := sql.Open("sqlite", dataSource(to, "rw", "synchronous(FULL)"))
	if err != nil {
		return err
	}
	_, err = backup.ExecContext(ctx, sqlEndActive, micros(now), "was queued or running when the backup was made")
	if err := errors.Join(err, backup.Close()); err != nil {
		return unavailable("writing the copy of the database", err)
	}
	return nil
}
