package store

import (
	"context"
	"database/sql"

	"sallyport/internal/keyuse"
)

const ( // the column scheme has the kind of the credential
	sqlUseKey = `INSERT INTO key_uses (caller, scheme, key, used) VALUES ($1, $2, $3, $4)
		ON CONFLICT (caller, scheme, key) DO UPDATE SET used = excluded.used WHERE excluded.used > key_uses.used`
	sqlKeyUses = `SELECT caller, scheme, key, used FROM key_uses ORDER BY caller, scheme, key`
)

// SaveKeyUses records when keys were last used. It does not replace a later time that is already recorded.
func (s *SQLite) SaveKeyUses(ctx context.Context, uses []keyuse.Use) error {
	return s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		for _, u := range uses {
			if _, err := tx.execute(ctx, sqlUseKey, u.Caller, u.Kind, u.Key, micros(u.At)); err != nil {
				return err
			}
		}
		return nil
	})
}

// KeyUses returns when each key was last used, by caller, kind and key.
func (r *reader) KeyUses(ctx context.Context) (uses []keyuse.Use, err error) {
	err = withDeadline(ctx, workTime, func(ctx context.Context) error {
		return r.prepared.eachRow(ctx, func(rows *sql.Rows) error {
			var u keyuse.Use
			var used int64
			if err := rows.Scan(&u.Caller, &u.Kind, &u.Key, &used); err != nil {
				return err
			}
			u.At = timeOf(used)
			uses = append(uses, u)
			return nil
		}, sqlKeyUses)
	})
	return uses, err
}
