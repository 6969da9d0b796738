package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"sallyport/internal/groupcommit"
	"sallyport/internal/guard"
	"sallyport/runner"
)

// op is one caller's operation: all of it is recorded, or nothing.
type op struct {
	do  func(context.Context, *prepared) error
	err error
}

// maxBatch bounds how much one transaction does, and so how long its first
// operation waits.
const maxBatch = 128

// do has an operation recorded and returns once it is on the disk. ctx and
// callTime bound the wait for a turn only: an operation that has its turn is
// recorded or not, and do waits until that is known.
func (s *SQLite) do(ctx context.Context, f func(context.Context, *prepared) error) error {
	err := within(ctx, callTime, func(ctx context.Context) error { return s.queue.Do(ctx, &op{do: f}) })
	if errors.Is(err, groupcommit.ErrClosed) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// serve is the one writer.
func (s *SQLite) serve(ctx context.Context) {
	defer s.queue.End()
	for {
		select {
		case first := <-s.queue.Ops():
			s.commit(ctx, s.queue.Batch(first))
		case <-s.queue.Closing():
			return
		}
	}
}

// commit records a batch, and reports the results.
func (s *SQLite) commit(ctx context.Context, batch []groupcommit.Op[*op]) {
	err := s.transact(ctx, batch)
	s.notice(err)
	for _, o := range batch {
		// What an operation found may rest on one before it in the
		// batch: if that is not recorded, none of it holds.
		if err != nil {
			o.Done(err)
		} else {
			o.Done(o.Value.err)
		}
	}
}

// transact runs a batch in one transaction. Its error is about all of them;
// the error of an operation by itself stands in the operation.
func (s *SQLite) transact(ctx context.Context, batch []groupcommit.Op[*op]) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	if _, err := s.writer.exec(ctx, `BEGIN IMMEDIATE`); err != nil {
		return s.undo(ctx, err)
	}
	refused := 0
	for _, o := range batch {
		if err := s.step(ctx, o.Value, len(batch) > 1); err != nil {
			return s.undo(ctx, err)
		}
		if o.Value.err != nil {
			refused++
		}
	}
	if err := s.checkInPlace(); err != nil {
		return s.undo(ctx, err)
	}
	if refused == len(batch) {
		return s.undo(ctx, nil)
	}
	if _, err := s.writer.exec(ctx, `COMMIT`); err != nil {
		return s.undoCommit(ctx, err)
	}
	s.commits.Add(1)
	now := time.Now()
	s.written.Store(&now)
	return nil
}

// step runs one operation, in a savepoint unless it is alone.
func (s *SQLite) step(ctx context.Context, o *op, shared bool) error {
	if shared {
		if _, err := s.writer.exec(ctx, `SAVEPOINT op`); err != nil {
			return err
		}
	}
	o.err = guard.Do(s.log, func() error { return o.do(ctx, s.writer) })
	if errors.Is(o.err, ErrUnavailable) {
		return o.err
	}
	if !shared {
		return nil
	}
	if o.err != nil {
		if _, err := s.writer.exec(ctx, `ROLLBACK TO op`); err != nil {
			return err
		}
	}
	_, err := s.writer.exec(ctx, `RELEASE op`)
	return err
}

// undoCommit takes a transaction back whose commit failed, and returns err. When
// the sync failed, the transaction stands in the log, and would count after a crash
// of the program: so another one is written over it. Where that fails too, the
// error is runner.ErrUncertain as well.
func (s *SQLite) undoCommit(ctx context.Context, err error) error {
	_ = s.undo(ctx, err)
	if errors.Is(err, ErrDiskFull) { // it does not stand there whole
		return err
	}
	// What changes nothing is not written. This number means nothing but that.
	query := fmt.Sprintf(`PRAGMA user_version = %d`, time.Now().UnixNano()&math.MaxInt32)
	if _, failed := s.conn.ExecContext(ctx, query); failed != nil {
		return s.undo(ctx, fmt.Errorf("%w: %w", runner.ErrUncertain, err))
	}
	return err
}

// undo takes a transaction back and returns err. After some errors SQLite has
// done so by itself, so that the rollback's own error says nothing.
func (s *SQLite) undo(ctx context.Context, err error) error {
	_, _ = s.writer.exec(ctx, `ROLLBACK`)
	return err
}

// notice tells the operator once that nothing can be recorded, and once that
// it is over.
func (s *SQLite) notice(err error) {
	switch {
	case err != nil && !s.down:
		s.log.Error("store unavailable: nothing is started", "error", err)
	case err == nil && s.down:
		s.log.Info("store available again")
	}
	s.down = err != nil
	if s.down {
		s.written.Store(nil)
	}
}

const (
	// logCheck is how often the write-ahead log is copied into the database.
	logCheck = time.Second
	// logLimit is the size in bytes from which on writers wait for that.
	logLimit = 32 << 20
)

// keepLogShort copies the write-ahead log into the database, beside the writer
// and on a connection of its own, so that no commit pays for it. Only a log
// that grew past logLimit makes the writer wait: the log starts over when all
// of it was copied, and a writer that never rests would never let it.
func (s *SQLite) keepLogShort(ctx context.Context) {
	tick := time.NewTicker(logCheck)
	defer tick.Stop()
	var copied int64
	failing := false
	long := longLog{log: s.log}
	for {
		select {
		case <-tick.C:
		case <-s.queue.Closing():
			return
		}
		commits := s.commits.Load()
		if commits == copied {
			continue
		}
		whole, err := s.checkpoint(ctx)
		if info, statErr := os.Stat(s.path + "-wal"); err == nil && statErr == nil && info.Size() > logLimit {
			s.turn.Lock()
			whole, err = s.checkpoint(ctx)
			s.turn.Unlock()
			long.notice(info.Size(), whole || err != nil)
		}
		if whole {
			copied = commits
		}
		if err != nil && !failing {
			s.log.Error("write-ahead log not copied", "error", err)
		}
		failing = err != nil
	}
}

// checkpoint copies what it can without making anybody wait, and tells whether
// that was all.
func (s *SQLite) checkpoint(ctx context.Context) (whole bool, err error) {
	var busy, frames, copied int
	err = s.write.QueryRowContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &frames, &copied)
	if err != nil {
		return false, unavailable("copying the write-ahead log", err)
	}
	return busy == 0 && frames == copied, nil
}

// prepared runs prepared statements. Its errors are those of unavailable.
type prepared struct {
	stmts   map[string]*sql.Stmt
	prepare func(context.Context, string) (*sql.Stmt, error) // at its first use; nil where all are prepared
	tx      *sql.Tx                                          // in which they run, or nil
}

// newPrepared is for one goroutine, which prepares what it needs.
func newPrepared(prepare func(context.Context, string) (*sql.Stmt, error)) *prepared {
	return &prepared{stmts: map[string]*sql.Stmt{}, prepare: prepare}
}

// prepareAll is for many goroutines. Nothing is prepared later: it would take a
// second connection, for which those that hold the others might wait forever.
func prepareAll(ctx context.Context, db *sql.DB, queries []string) (*prepared, error) {
	p := &prepared{stmts: make(map[string]*sql.Stmt, len(queries))}
	for _, query := range queries {
		st, err := db.PrepareContext(ctx, query)
		if err != nil {
			return nil, errors.Join(unavailable("preparing", err), p.close())
		}
		p.stmts[query] = st
	}
	return p, nil
}

// in returns the statements as they run in a transaction.
func (p *prepared) in(tx *sql.Tx) *prepared { return &prepared{stmts: p.stmts, tx: tx} }

func (p *prepared) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	st := p.stmts[query]
	switch {
	case st != nil && p.tx != nil:
		return p.tx.StmtContext(ctx, st), nil
	case st != nil:
		return st, nil
	case p.prepare == nil:
		return nil, fmt.Errorf("%w: statement was not prepared: %s", ErrUnavailable, query)
	}
	st, err := p.prepare(ctx, query)
	if err != nil {
		return nil, unavailable("preparing", err)
	}
	p.stmts[query] = st
	return st, nil
}

// close finalizes the statements: a connection with one left does not close.
func (p *prepared) close() error {
	var errs []error
	for _, st := range p.stmts {
		errs = append(errs, st.Close())
	}
	return errors.Join(errs...)
}

// exec returns how many rows were changed.
func (p *prepared) exec(ctx context.Context, query string, args ...any) (int64, error) {
	st, err := p.stmt(ctx, query)
	if err != nil {
		return 0, err
	}
	result, err := st.ExecContext(ctx, args...)
	if err != nil {
		return 0, unavailable("writing", err)
	}
	return result.RowsAffected()
}

// scan reads one row into dest; it is sql.ErrNoRows when there is none.
func (p *prepared) scan(ctx context.Context, dest []any, query string, args ...any) error {
	st, err := p.stmt(ctx, query)
	if err != nil {
		return err
	}
	err = st.QueryRowContext(ctx, args...).Scan(dest...)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return unavailable("reading", err)
	}
	return err
}

// rows calls each with every row, to scan it.
func (p *prepared) rows(ctx context.Context, each func(*sql.Rows) error, query string, args ...any) error {
	st, err := p.stmt(ctx, query)
	if err != nil {
		return err
	}
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return unavailable("reading", err)
	}
	defer rows.Close() //nolint:errcheck // what matters is in rows.Err
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return unavailable("reading", err)
	}
	return nil
}
