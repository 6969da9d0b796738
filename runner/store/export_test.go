package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
)

// Plans returns how SQLite runs each statement that is to find its rows by an
// index.
func (s *SQLite) Plans(ctx context.Context) (map[string][]string, error) {
	plans := map[string][]string{}
	for _, query := range slices.Concat(readStatements(), listStatements(), []string{
		sqlInFlight, sqlFirst, sqlLast, sqlWaiting, sqlQueue, sqlJoin, sqlEnd, sqlPromote, sqlWish, sqlEndWished,
		sqlPause, sqlRequeue, sqlDropQueue, sqlDropRun,
		sqlDropExpired, sqlUnclaim, sqlPruneRun, sqlPruneStale, sqlPruneClaims,
	}) {
		rows, err := s.reader.db.QueryContext(ctx, "EXPLAIN QUERY PLAN "+query, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", query, err)
		}
		for rows.Next() {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				return nil, err
			}
			plans[query] = append(plans[query], step)
		}
		if err := rows.Close(); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

// Hold takes all connections of the readers until release is called.
func (s *SQLite) Hold(ctx context.Context) (release func() error, err error) {
	var held []*sql.Conn
	release = func() (err error) {
		for _, c := range held {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	for range readConnections {
		c, err := s.reader.db.Conn(ctx)
		if err != nil {
			return release, err
		}
		held = append(held, c)
	}
	return release, nil
}

// HoldTurn blocks the writer until release is called.
func (s *SQLite) HoldTurn() (release func()) {
	s.writer.turn.Lock()
	return s.writer.turn.Unlock
}

// WriteAll runs a statement on the connection of the writer, outside of any transaction.
func (s *SQLite) WriteAll(ctx context.Context, query string) error {
	s.writer.turn.Lock()
	defer s.writer.turn.Unlock()
	_, err := s.writer.conn.ExecContext(ctx, query)
	return err
}

// Checkpoint does what the writer does once per logCheck.
func (s *SQLite) Checkpoint(ctx context.Context) (bool, error) { return s.writer.copyLog(ctx) }

// Do executes a statement as one operation.
func (s *SQLite) Do(ctx context.Context, query string) error {
	return s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		_, err := tx.execute(ctx, query)
		return err
	})
}

// MaxBatch is the most operations of one transaction.
const MaxBatch = maxBatch

// DoPanicking has an operation panic after it removed all runs.
func (s *SQLite) DoPanicking(ctx context.Context) error {
	return s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		if _, err := tx.execute(ctx, `DELETE FROM runs`); err != nil {
			return err
		}
		none := make([]int, 0)
		none[0]++
		return nil
	})
}
