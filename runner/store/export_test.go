package store

import (
	"context"
	"database/sql"
)

// Plans returns how SQLite runs each statement that is to find its rows by an
// index.
func (s *SQLite) Plans(ctx context.Context) (map[string][]string, error) {
	plans := map[string][]string{}
	for _, query := range []string{
		sqlRun, sqlInput, sqlInFlight, sqlFirst, sqlLast, sqlQueue, sqlActive, sqlJoin, sqlEnd, sqlPromote, sqlRequeue, sqlDropQueue, sqlDropRun,
		sqlDropExpired, sqlClaim, sqlUnclaim, sqlList + sqlNewestFirst,
		sqlListPast + sqlNewestFirst, sqlListPast + sqlOfHook + sqlNewestFirst, sqlListPast + sqlOfCaller + sqlNewestFirst,
		sqlListPast + sqlOfBoth + sqlNewestFirst, sqlListActive + sqlNewestFirst, sqlListActive + sqlOfBoth + sqlNewestFirst,
		sqlListPast + sqlOfJoined + sqlNewestFirst, sqlListPast + sqlOfJoined + sqlAndHook + sqlNewestFirst, sqlListActive + sqlOfJoined + sqlNewestFirst,
		sqlNextHook, sqlOld, sqlNewest, sqlOlder, sqlPruneRun, sqlPruneStale, sqlPruneClaims,
	} {
		err := s.reader.rows(ctx, func(rows *sql.Rows) error {
			var id, parent, unused int
			var step string
			err := rows.Scan(&id, &parent, &unused, &step)
			plans[query] = append(plans[query], step)
			return err
		}, "EXPLAIN QUERY PLAN "+query, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		if err != nil {
			return nil, err
		}
	}
	return plans, nil
}

// WriteAll runs a statement on the writer's connection, outside of any
// transaction of its own making.
func (s *SQLite) WriteAll(ctx context.Context, query string) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	_, err := s.conn.ExecContext(ctx, query)
	return err
}

// Checkpoint is what happens once in logCheck.
func (s *SQLite) Checkpoint(ctx context.Context) (bool, error) { return s.checkpoint(ctx) }
