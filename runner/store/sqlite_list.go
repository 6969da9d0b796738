package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"sallyport/runner"
)

// Bounds of a page.
const (
	defaultPage = 50
	maxPage     = 1000
	// maxPageBytes is the most bytes of parameters that are read for a page. A page has at least one run.
	maxPageBytes = 1 << 20
	// maxListed is the most bytes of a parameter in a page.
	maxListed = 256
)

// List returns the runs that f allows, newest first, and the cursor for the rest, which is empty at the end. A page
// has fewer than f.Limit runs if their parameters are large. Of a long parameter, it has only the beginning, and
// Run.Cut has its name. The cost of a page hardly depends on the number of runs.
func (r *reader) List(ctx context.Context, f runner.Filter) (page []runner.Run, next string, err error) {
	if f.Limit == 0 {
		f.Limit = defaultPage
	}
	if f.Limit < 1 || f.Limit > maxPage {
		return nil, "", fmt.Errorf("listing runs: limit %d is not 1 to %d", f.Limit, maxPage)
	}
	err = withDeadline(ctx, callTime, func(ctx context.Context) error {
		page, next, err = r.readPage(ctx, f)
		return err
	})
	return page, next, err
}

func (r *reader) readPage(ctx context.Context, f runner.Filter) (page []runner.Run, next string, err error) {
	// The queries use one snapshot, so that a run that ends between them is neither missed nor listed twice.
	tx, err := r.listDB.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, "", unavailable("reading", err)
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	in := r.listPrepared.inTransaction(tx)
	ids, err := findMatching(ctx, in, f)
	if err != nil {
		return nil, "", err
	}
	size := 0
	for _, id := range ids[:min(len(ids), f.Limit)] {
		run, err := in.readRun(ctx, sqlRun, id)
		if err != nil {
			return nil, "", err
		}
		for _, value := range run.Params {
			size += len(value)
		}
		if len(page) > 0 && size > maxPageBytes {
			break
		}
		cutParams(&run)
		page = append(page, run)
	}
	if len(page) < len(ids) {
		next = page[len(page)-1].ID
	}
	return page, next, nil
}

// cutParams shortens long parameters to their beginning.
func cutParams(run *runner.Run) {
	for name, value := range run.Params {
		if len(value) <= maxListed {
			continue
		}
		end := maxListed
		for end > maxListed-utf8.UTFMax && !utf8.RuneStart(value[end]) {
			end--
		}
		run.Params[name] = strings.Clone(value[:end]) + "…" // so that the rest does not stay in memory
		run.Cut = append(run.Cut, name)
	}
	slices.Sort(run.Cut)
}

// The statements of a page find only ids, with an index that contains every column that they compare: a row with long
// parameters takes hundreds of pages of the file.
//
// INDEXED BY is specific to SQLite. Without it the planner reads every run, newest first, until enough of them match.
// With these indexes the runs of each hook, caller and state come newest first, and SQLite continues with the next
// combination at the first run that is too old for the page.
const (
	sqlIDs       = `SELECT id FROM runs `
	sqlBetween   = ` AND id >= $1 AND id < $2 AND state IN (SELECT value FROM json_each($4))`
	sqlOfHooks   = ` AND hook IN (SELECT value FROM json_each($5))`
	sqlOfCallers = ` AND caller IN (SELECT value FROM json_each($6))`
	sqlAnyHook   = ` AND ($5 = '[]' OR hook IN (SELECT value FROM json_each($5)))`
	sqlAnyCaller = ` AND ($6 = '[]' OR caller IN (SELECT value FROM json_each($6)))`
	sqlNewest1st = ` ORDER BY id DESC LIMIT $3`

	sqlListAll    = sqlIDs + `WHERE id >= $1 AND id < $2` + sqlNewest1st
	sqlListActive = sqlIDs + `INDEXED BY runs_active WHERE ended = 0` + sqlBetween + sqlAnyHook + sqlAnyCaller +
		sqlNewest1st
	sqlListStates  = sqlIDs + `INDEXED BY runs_by_state WHERE ended > 0` + sqlBetween + sqlNewest1st
	sqlListHooks   = sqlIDs + `INDEXED BY runs_by_hook WHERE ended > 0` + sqlBetween + sqlOfHooks + sqlNewest1st
	sqlListCallers = sqlIDs + `INDEXED BY runs_by_caller WHERE ended > 0` + sqlBetween + sqlOfCallers + sqlNewest1st
	sqlListBoth    = sqlIDs + `INDEXED BY runs_by_hook_and_caller WHERE ended > 0` + sqlBetween + sqlOfHooks +
		sqlOfCallers + sqlNewest1st
	sqlListJoined = sqlIDs + `INDEXED BY runs_joined WHERE stands_for <> '[]'` +
		` AND replace(stands_for, $7, '') <> stands_for` + sqlBetween + sqlAnyHook + sqlNewest1st
)

// listStatements returns all statements that run on the connections for lists.
func listStatements() []string {
	return []string{
		sqlListAll, sqlListActive, sqlListStates, sqlListHooks, sqlListCallers, sqlListBoth, sqlListJoined, sqlRun,
	}
}

// findMatching returns the ids of the newest runs that f allows, one more than a page has.
func findMatching(ctx context.Context, in *statements, f runner.Filter) (ids []string, err error) {
	low, high := idBounds(f)
	states := f.States
	if len(states) == 0 {
		states = append([]runner.State{runner.Running, runner.Queued}, runner.Ends()...)
	}
	args := []any{
		low, high, f.Limit + 1, jsonList(states), jsonList(f.Hooks), jsonList(f.Callers), jsonString(f.Joined),
	}
	for _, query := range listQueries(f) {
		err := in.eachRow(ctx, func(rows *sql.Rows) error {
			var id string
			err := rows.Scan(&id)
			ids = append(ids, id)
			return err
		}, query, args...)
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return strings.Compare(b, a) })
	return ids[:min(len(ids), f.Limit+1)], nil
}

// listQueries returns the statements that together find the ids that f allows.
func listQueries(f runner.Filter) []string {
	switch {
	case f.Joined != "":
		return []string{sqlListJoined}
	case len(f.Hooks) > 0 && len(f.Callers) > 0:
		return []string{sqlListActive, sqlListBoth}
	case len(f.Hooks) > 0:
		return []string{sqlListActive, sqlListHooks}
	case len(f.Callers) > 0:
		return []string{sqlListActive, sqlListCallers}
	case len(f.States) > 0:
		return []string{sqlListActive, sqlListStates}
	}
	return []string{sqlListAll}
}

func jsonList[T ~string](names []T) string {
	text, _ := json.Marshal(append([]T{}, names...)) // strings can always be marshalled
	return string(text)
}

func jsonString(name string) string {
	text, _ := json.Marshal(name)
	return string(text)
}

// idBounds returns the ids between which the runs of the filter lie. The higher one is excluded.
func idBounds(f runner.Filter) (low, high string) {
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

// firstID returns the prefix of the ids that are created at a time: a UUIDv7 has the milliseconds since 1970 in its
// first 48 bits (RFC 9562, 5.7).
func firstID(t time.Time) string {
	ms := max(t.UnixMilli(), 0) & (1<<48 - 1)
	return fmt.Sprintf("%08x-%04x", ms>>16, ms&0xffff)
}
