package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// statements runs prepared statements. It returns errors as unavailable classifies them.
type statements struct {
	stmts   map[string]*sql.Stmt
	prepare func(context.Context, string) (*sql.Stmt, error) // nil if all are prepared
	tx      *sql.Tx                                          // in which they run, or nil
}

// newPrepared returns statements for one goroutine, each of which is prepared at its first use.
func newPrepared(prepare func(context.Context, string) (*sql.Stmt, error)) *statements {
	return &statements{stmts: map[string]*sql.Stmt{}, prepare: prepare}
}

// prepareAll returns statements for many goroutines. Nothing is prepared later, because that takes a second
// connection: goroutines that each hold one might wait forever for another.
func prepareAll(ctx context.Context, db *sql.DB, queries []string) (*statements, error) {
	p := &statements{stmts: make(map[string]*sql.Stmt, len(queries))}
	for _, query := range queries {
		st, err := db.PrepareContext(ctx, query)
		if err != nil {
			return nil, errors.Join(unavailable("preparing", err), p.closeStatements())
		}
		p.stmts[query] = st
	}
	return p, nil
}

// inTransaction returns the statements, to be run in a transaction.
func (p *statements) inTransaction(tx *sql.Tx) *statements {
	return &statements{stmts: p.stmts, tx: tx}
}

func (p *statements) findStatement(ctx context.Context, query string) (*sql.Stmt, error) {
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

// closeStatements closes the statements: a connection with an open statement does not close.
func (p *statements) closeStatements() error {
	if p == nil {
		return nil
	}
	var errs []error
	for _, st := range p.stmts {
		errs = append(errs, st.Close())
	}
	return errors.Join(errs...)
}

// execute runs a statement and returns how many rows it changed.
func (p *statements) execute(ctx context.Context, query string, args ...any) (int64, error) {
	st, err := p.findStatement(ctx, query)
	if err != nil {
		return 0, err
	}
	result, err := st.ExecContext(ctx, args...)
	if err != nil {
		return 0, unavailable("writing", err)
	}
	return result.RowsAffected()
}

// scanRow reads one row into dest. Without a row, it returns sql.ErrNoRows.
func (p *statements) scanRow(ctx context.Context, dest []any, query string, args ...any) error {
	st, err := p.findStatement(ctx, query)
	if err != nil {
		return err
	}
	err = st.QueryRowContext(ctx, args...).Scan(dest...)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return unavailable("reading", err)
	}
	return err
}

// eachRow calls each for every row, to scan it.
func (p *statements) eachRow(ctx context.Context, each func(*sql.Rows) error, query string, args ...any) error {
	st, err := p.findStatement(ctx, query)
	if err != nil {
		return err
	}
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return unavailable("reading", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has the error
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
