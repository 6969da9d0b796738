package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"sallyport/runner"
)

// Find returns the run that a delivery to the hook started, or
// runner.ErrUnknown, or runner.ErrReused. Of a run that was pruned since, only
// ID and Hook are set.
func (s *SQLite) Find(ctx context.Context, hook string, c runner.Claim) (runner.Run, error) {
	return claimed(ctx, s.reader, hook, c)
}

// Get returns a run, or runner.ErrUnknown.
func (s *SQLite) Get(ctx context.Context, id string) (runner.Run, error) {
	return s.reader.run(ctx, sqlRun, id)
}

// Feed returns what the command of a run is to be given, or runner.ErrUnknown.
func (s *SQLite) Feed(ctx context.Context, id string) (in runner.Feed, err error) {
	err = s.reader.scan(ctx, []any{&in.Trace, &in.Stdin}, sqlInput, id)
	if errors.Is(err, sql.ErrNoRows) {
		return runner.Feed{}, runner.ErrUnknown
	}
	return in, err
}

// Active returns what has not ended: the running runs, then those that wait,
// in the order in which each flight takes them.
func (s *SQLite) Active(ctx context.Context) ([]runner.Run, error) {
	return s.reader.runs(ctx, sqlActive)
}

// List returns the runs that f allows, newest first, and the cursor for the
// rest, empty at the end. A page costs about the same however many runs there are.
func (s *SQLite) List(ctx context.Context, f runner.Filter) (page []runner.Run, next string, err error) {
	if f.Limit == 0 {
		f.Limit = 50
	}
	if f.Limit < 1 || f.Limit > 1000 {
		return nil, "", fmt.Errorf("listing runs: limit %d is not 1 to 1000", f.Limit)
	}
	// One snapshot for all parts of the page: a run that ends meanwhile is
	// neither missed nor listed twice.
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, "", unavailable("reading", err)
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	in := newPrepared(func(ctx context.Context, query string) (*sql.Stmt, error) {
		st, err := s.reader.stmt(ctx, query)
		if err != nil {
			return nil, err
		}
		return tx.StmtContext(ctx, st), nil
	})
	for _, part := range parts(f) {
		low, high := bounds(f)
		if len(page) > f.Limit { // only what is newer can still get onto the page
			low = page[f.Limit].ID
		}
		runs, err := in.runs(ctx, part.query, append([]any{low, high, f.Limit + 1}, part.args...)...)
		if err != nil {
			return nil, "", err
		}
		page = append(page, runs...)
		slices.SortFunc(page, func(a, b runner.Run) int { return cmp.Compare(b.ID, a.ID) })
		page = page[:min(len(page), f.Limit+1)]
	}
	if len(page) > f.Limit {
		page = page[:f.Limit]
		next = page[f.Limit-1].ID
	}
	return page, next, nil
}

const (
	sqlList        = `SELECT ` + runColumns + ` FROM runs WHERE id >= $1 AND id < $2`
	sqlListActive  = sqlList + ` AND ended = 0 AND state = $4`
	sqlListPast    = sqlList + ` AND ended > 0 AND state = $4`
	sqlOfHook      = ` AND hook = $5`
	sqlOfCaller    = ` AND caller = $5`
	sqlOfBoth      = ` AND hook = $5 AND caller = $6`
	sqlOfJoined    = ` AND stands_for <> '[]' AND replace(stands_for, $5, '') <> stands_for`
	sqlAndHook     = ` AND hook = $6`
	sqlNewestFirst = ` ORDER BY id DESC LIMIT $3`
)

// part is a list that one index yields in order.
type part struct {
	query string
	args  []any
}

// parts takes a filter apart into lists that an index yields in order, one for
// each hook, caller and state. A query with all of them at once would read and
// sort every run that matches, or read every run that does not.
func parts(f runner.Filter) (parts []part) {
	if len(f.Hooks)+len(f.Callers)+len(f.States) == 0 && f.Joined == "" {
		return []part{{query: sqlList + sqlNewestFirst}}
	}
	states := f.States
	if len(states) == 0 {
		states = allStates()
	}
	for _, state := range distinct(states) {
		list := sqlListPast
		if !state.Ended() {
			list = sqlListActive
		}
		for _, hook := range orAny(f.Hooks) {
			if f.Joined != "" {
				parts = append(parts, joinedPart(list, state, hook, f.Joined))
				continue
			}
			for _, caller := range orAny(f.Callers) {
				p := part{query: list + sqlNewestFirst, args: []any{state}}
				switch {
				case hook != nil && caller != nil:
					p = part{list + sqlOfBoth + sqlNewestFirst, []any{state, *hook, *caller}}
				case hook != nil:
					p = part{list + sqlOfHook + sqlNewestFirst, []any{state, *hook}}
				case caller != nil:
					p = part{list + sqlOfCaller + sqlNewestFirst, []any{state, *caller}}
				}
				parts = append(parts, p)
			}
		}
	}
	return parts
}

// joinedPart lists the runs that stand for a caller.
func joinedPart(list string, state runner.State, hook *string, caller string) part {
	name, _ := json.Marshal(caller) // a string can always be written
	p := part{query: list + sqlOfJoined, args: []any{state, string(name)}}
	if hook != nil {
		p = part{query: p.query + sqlAndHook, args: append(p.args, *hook)}
	}
	p.query += sqlNewestFirst
	return p
}

func allStates() []runner.State {
	return append([]runner.State{runner.Running, runner.Queued}, runner.Ends()...)
}

// orAny returns the distinct names, or one nil for any.
func orAny(names []string) []*string {
	if len(names) == 0 {
		return []*string{nil}
	}
	names = distinct(names)
	out := make([]*string, len(names))
	for i := range names {
		out[i] = &names[i]
	}
	return out
}

func distinct[T cmp.Ordered](list []T) []T {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}

// bounds are the ids between which the filter's runs lie, the higher one not
// included.
func bounds(f runner.Filter) (low, high string) {
	high = "~" // above every id
	if f.Before != "" {
		high = f.Before
	}
	if !f.Until.IsZero() {
		high = min(high, firstID(f.Until))
	}
	if !f.Since.IsZero() {
		low = firstID(f.Since)
	}
	return low, high
}

// firstID is what the ids of a time begin with: a UUIDv7 has the milliseconds
// since 1970 in its first 48 bits (RFC 9562, 5.7).
func firstID(t time.Time) string {
	ms := max(t.UnixMilli(), 0) & (1<<48 - 1)
	return fmt.Sprintf("%08x-%04x", ms>>16, ms&0xffff)
}
