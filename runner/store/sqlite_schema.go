package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	sqlMakeSchema = `CREATE TABLE IF NOT EXISTS schema_version
		(version BIGINT NOT NULL PRIMARY KEY, applied BIGINT NOT NULL)`
	sqlVersion    = `SELECT COALESCE(MAX(version), 0) FROM schema_version`
	sqlSetVersion = `INSERT INTO schema_version (version, applied) VALUES ($1, $2)`
)

// migrateSchema migrates the schema. Each step and its version number are one transaction. A database of a newer
// version is refused before anything is written.
func migrateSchema(ctx context.Context, db *sql.DB, now int64) error {
	if _, err := db.ExecContext(ctx, sqlMakeSchema); err != nil {
		return unavailable("reading the schema version", err)
	}
	version, names, err := readSchema(ctx, db)
	if err != nil {
		return err
	}
	for ; version < len(names); version++ {
		if err := migrateStep(ctx, db, names[version], version+1, now); err != nil {
			return unavailable("applying "+names[version], err)
		}
	}
	return nil
}

// checkVersion refuses a database with a schema that this program cannot read.
func checkVersion(ctx context.Context, db *sql.DB) error {
	version, names, err := readSchema(ctx, db)
	if err == nil && version < len(names) {
		err = versionError(version, len(names), ErrOlder)
	}
	return err
}

// readSchema returns the schema version of a database, and the migrations in order. A newer version is an error.
func readSchema(ctx context.Context, db *sql.DB) (version int, names []string, err error) {
	names, err = fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return 0, nil, fmt.Errorf("listing the migrations: %w", err)
	}
	if err := db.QueryRowContext(ctx, sqlVersion).Scan(&version); err != nil {
		return 0, nil, unavailable("reading the schema version", err)
	}
	if version > len(names) {
		return 0, nil, versionError(version, len(names), ErrNewer)
	}
	return version, names, nil
}

func versionError(is, known int, err error) error {
	return fmt.Errorf("schema version %d, this program knows %d: %w", is, known, err)
}

func migrateStep(ctx context.Context, db *sql.DB, name string, version int, now int64) error {
	text, err := migrations.ReadFile(name)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it returns an error, and before it there is nothing to keep
	if _, err := tx.ExecContext(ctx, string(text)); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, sqlSetVersion, version, now); err != nil {
		return err
	}
	return tx.Commit()
}
