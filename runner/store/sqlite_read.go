package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"sallyport/runner"
)

// Deadlines of a call. A call that takes longer ends with ErrUnavailable.
const (
	callTime = 5 * time.Second // for requests
	workTime = time.Minute     // for the server itself
)

// Connections of the readers. A reader holds one connection at a time, and waits for nothing else while it holds the
// connection.
const (
	readConnections = 4
	listConnections = 2
)

// reader reads the store. Pages of runs have separate connections, so that claims never wait for a page.
type reader struct {
	db           *sql.DB // for claims, single runs and the server itself
	prepared     *statements
	listDB       *sql.DB // for pages of runs
	listPrepared *statements
}

// openReader connects, and prepares all statements. It calls check first, because the statements of this version do
// not fit another schema.
func (r *reader) openReader(ctx context.Context, path string, check func(context.Context, *sql.DB) error) (err error) {
	if r.db, err = openReadOnly(path, readConnections); err != nil {
		return err
	}
	if err := check(ctx, r.db); err != nil {
		return err
	}
	if r.prepared, err = prepareAll(ctx, r.db, readStatements()); err != nil {
		return err
	}
	if r.listDB, err = openReadOnly(path, listConnections); err != nil {
		return err
	}
	r.listPrepared, err = prepareAll(ctx, r.listDB, listStatements())
	return err
}

func openReadOnly(path string, connections int) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dataSource(path, "ro", "query_only(1)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

// closeReader closes what was opened.
func (r *reader) closeReader() error {
	return errors.Join(
		r.prepared.closeStatements(), r.listPrepared.closeStatements(), closeDatabase(r.db), closeDatabase(r.listDB))
}

func closeDatabase(db *sql.DB) error {
	if db == nil {
		return nil
	}
	return db.Close()
}

// withDeadline calls f with a deadline.
func withDeadline(ctx context.Context, most time.Duration, f func(context.Context) error) error {
	bounded, stop := context.WithTimeout(ctx, most)
	defer stop()
	err := f(bounded)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fmt.Errorf("%w: no answer within %s", ErrUnavailable, most)
	}
	return err
}

// readStatements returns all statements that run on the connections for claims and single rows.
func readStatements() []string {
	return []string{
		sqlClaim, sqlRun, sqlInput, sqlActive, sqlKeyUses, sqlPauses, sqlTimedPauses, sqlNotDue, sqlNotDueIn, sqlNextHook,
		sqlOld, sqlNewest, sqlOlder,
	}
}

// Find returns the run that a delivery to the hook started, or runner.ErrUnknown, runner.ErrReused or
// runner.ErrOtherBody. If the run was pruned since, only ID and Hook are set.
func (r *reader) Find(ctx context.Context, hook string, c runner.Claim) (run runner.Run, err error) {
	err = withDeadline(ctx, callTime, func(ctx context.Context) error {
		run, err = findClaimed(ctx, r.prepared, hook, c)
		return err
	})
	return run, err
}

// Get returns a run, or runner.ErrUnknown.
func (r *reader) Get(ctx context.Context, id string) (run runner.Run, err error) {
	err = withDeadline(ctx, callTime, func(ctx context.Context) error {
		run, err = r.prepared.readRun(ctx, sqlRun, id)
		return err
	})
	return run, err
}

// Feed returns the input of the command of a run, or runner.ErrUnknown.
func (r *reader) Feed(ctx context.Context, id string) (in runner.Feed, err error) {
	err = withDeadline(ctx, callTime, func(ctx context.Context) error {
		return r.prepared.scanRow(ctx, []any{&in.Trace, &in.Stdin}, sqlInput, id)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return runner.Feed{}, runner.ErrUnknown
	}
	return in, err
}

// Active returns the running runs, and then the queued ones in the order in which they start.
func (r *reader) Active(ctx context.Context) (runs []runner.Run, err error) {
	err = withDeadline(ctx, workTime, func(ctx context.Context) error {
		runs, err = r.prepared.readRuns(ctx, sqlActive)
		return err
	})
	return runs, err
}

func distinct[T cmp.Ordered](list []T) []T {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}
