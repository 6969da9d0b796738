package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sallyport/runner"
)

// The statements of the state machine. They work in SQLite and PostgreSQL. States are literals in them where a
// partial index needs that.
const (
	runColumns = `id, hook, caller, flight, state, params, created, started, ended, exit_code, signal, error,
		output_bytes, output_dropped, rerun_of, attempt, stands_for, boot, wish, left_behind, detail, on_interrupted,
		title, due, retries, again`

	pauseOfRun = `SELECT 1 FROM pauses WHERE pauses.hook = runs.hook AND (length = 0 OR ends_up > ` // the uptime
	// A run that is not due holds back the later runs of its hook, and not those of other hooks in its flight.
	notDueBefore = `SELECT 1 FROM runs AS earlier WHERE earlier.flight = runs.flight AND earlier.state = 'queued'
		AND earlier.hook = runs.hook AND earlier.place < runs.place AND earlier.due_up > ` // the uptime

	// Whether a queued run starts before a later one of hook $2: not if it is of another hook that is paused.
	startsBefore = `(hook = $2 OR NOT EXISTS (` + pauseOfRun + `$3)))`

	sqlInsertRun = `INSERT INTO runs (id, hook, caller, flight, state, place, params, created, started, trace, stdin,
		rerun_of, attempt, boot, accepted_up, on_interrupted, title, retries)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)`
	sqlRun      = `SELECT ` + runColumns + ` FROM runs WHERE id = $1`
	sqlInput    = `SELECT trace, stdin FROM runs WHERE id = $1`
	sqlInFlight = `SELECT ` + runColumns + ` FROM runs WHERE flight = $1 AND state = 'running'`
	// The run for which a new one of a hook waits, apart from one in progress.
	sqlFirst = `SELECT ` + runColumns + ` FROM runs WHERE flight = $1 AND state = 'queued'
		AND NOT EXISTS (` + pauseOfRun + `$2))
		AND (hook = $3 OR due_up <= $2 AND NOT EXISTS (` + notDueBefore + `$2)) ORDER BY place LIMIT 1`
	sqlLast = `SELECT ` + runColumns + ` FROM runs WHERE flight = $1 AND state = 'queued' AND hook = $2
		ORDER BY place DESC LIMIT 1`
	sqlWaiting = `SELECT DISTINCT flight FROM runs WHERE state = 'queued' AND flight > ''` // flights are not empty
	// The runs of the queue that start before a new one of a hook, its last place, and how many runs in it are of the
	// hook.
	sqlQueue = `SELECT COUNT(CASE WHEN ` + startsBefore + ` THEN 1 END), COALESCE(MAX(place), 0),
		COUNT(CASE WHEN hook = $2 THEN 1 END) FROM runs WHERE flight = $1 AND state = 'queued'`
	sqlPosition = `SELECT COUNT(*) FROM runs WHERE flight = $1 AND state = 'queued' AND ` + startsBefore + `
		AND place <= (SELECT place FROM runs WHERE id = $4)`
	sqlActive = `SELECT ` + runColumns + ` FROM runs WHERE ended = 0 ORDER BY state DESC, place, id`

	// Parameters and caller change together: a queued run never has the name of one caller and the parameters of
	// another. Nor does it have the id of a run that it repeats, with other parameters.
	sqlJoin = `UPDATE runs SET caller = $2, params = $3, trace = $4, stdin = $5, stands_for = $6,
		accepted_up = $7, on_interrupted = $8, title = $9, rerun_of = '', attempt = 0, retries = 0,
		due = 0, due_up = 0, due_after = 0
		WHERE id = $1 RETURNING ` + runColumns

	sqlWish = `UPDATE runs SET wish = $2 WHERE id = $1 AND state = 'running' RETURNING ` + runColumns

	// The input of an interrupted run is kept, because the run may be repeated without another delivery.
	sqlEnd = `UPDATE runs SET state = $2, ended = $3, exit_code = $4, signal = $5, error = $6,
		output_bytes = $7, output_dropped = $8, left_behind = $9, detail = $10,
		stdin = CASE WHEN $2 = 'interrupted' THEN stdin END
		WHERE id = $1 AND state IN ('running', 'queued') RETURNING ` + runColumns
	sqlPromote = `UPDATE runs SET state = 'running', started = $2, boot = $3, due = 0, due_up = 0, due_after = 0
		WHERE id = (SELECT id FROM runs WHERE flight = $1 AND state = 'queued' AND due_up <= $4
			AND NOT EXISTS (` + pauseOfRun + `$4)) AND NOT EXISTS (` + notDueBefore + `$4) ORDER BY place LIMIT 1)
		AND NOT EXISTS (SELECT 1 FROM runs WHERE flight = $1 AND state = 'running') RETURNING ` + runColumns

	// The next attempt at a run that failed, as the first of its flight.
	sqlRetry = `INSERT INTO runs (id, hook, caller, flight, state, place, params, created, trace, stdin, rerun_of,
		attempt, accepted_up, on_interrupted, stands_for, title, due, due_up, due_after, retries)
		SELECT $2, hook, caller, flight, 'queued', (SELECT COALESCE(MIN(place), 1) - 1 FROM runs AS others
			WHERE others.flight = runs.flight AND others.state = 'queued'),
		params, $3, trace, stdin, id, attempt + 1, $4, on_interrupted, stands_for, title, $5, $6, $7, retries + 1
		FROM runs WHERE id = $1 AND state = 'running' AND wish = ''`
	sqlSetAgain = `UPDATE runs SET again = $2 WHERE id = $1`
	// The flights with runs that are not due, and when the first of each is.
	sqlNotDue = `SELECT flight, MIN(due_up) FROM runs WHERE state = 'queued' AND flight > '' AND due_up > $1
		GROUP BY flight`
	sqlNotDueIn = `SELECT flight, MIN(due_up) FROM runs WHERE state = 'queued' AND flight = $2 AND due_up > $1
		GROUP BY flight`

	sqlEndWished = `UPDATE runs SET state = wish, started = 0, ended = $2, stdin = NULL
		WHERE id = $1 AND state = 'running' AND wish <> '' RETURNING ` + runColumns
	sqlRequeue = `UPDATE runs SET state = 'queued', started = 0, boot = '',
		place = (SELECT COALESCE(MIN(place), 1) - 1 FROM runs AS others
			WHERE others.flight = runs.flight AND others.state = 'queued')
		WHERE id = $1 AND state = 'running' RETURNING ` + runColumns

	sqlDropQueue = sqlEndQueued + `WHERE flight = $1 AND state = 'queued' AND hook = $5 RETURNING ` + runColumns
	sqlDropRun   = sqlEndQueued + `WHERE id = $1 AND state = 'queued' RETURNING ` + runColumns
	sqlEndQueued = `UPDATE runs SET state = $2, ended = $3, error = $4, stdin = NULL `

	sqlClaim  = `SELECT run, body FROM claims WHERE hook = $1 AND key = $2`
	sqlSetRun = `INSERT INTO claims (hook, key, run, body, until, created) VALUES ($1, $2, $3, $4, $5, $6)`
	// The run that the claim named before did not succeed.
	sqlMoveClaim = sqlSetRun + ` ON CONFLICT (hook, key) DO UPDATE SET run = excluded.run, body = excluded.body,
		until = excluded.until, created = excluded.created`
	sqlUnclaim = `DELETE FROM claims WHERE run = $1`
)

// readRuns returns the runs that a statement returns.
func (p *statements) readRuns(ctx context.Context, query string, args ...any) (runs []runner.Run, err error) {
	err = p.eachRow(ctx, func(rows *sql.Rows) error {
		r, err := scanRun(rows)
		runs = append(runs, r)
		return err
	}, query, args...)
	return runs, err
}

// readRun returns the run that a statement returns, or runner.ErrUnknown.
func (p *statements) readRun(ctx context.Context, query string, args ...any) (runner.Run, error) {
	runs, err := p.readRuns(ctx, query, args...)
	switch {
	case err != nil:
		return runner.Run{}, err
	case len(runs) == 0:
		return runner.Run{}, runner.ErrUnknown
	}
	return runs[0], nil
}

func scanRun(rows *sql.Rows) (r runner.Run, err error) {
	var params, standsFor []byte
	var created, started, ended, due int64
	err = rows.Scan(&r.ID, &r.Hook, &r.Caller, &r.Flight, &r.State, &params, &created, &started, &ended,
		&r.ExitCode, &r.Signal, &r.Error, &r.Output.Bytes, &r.Output.Dropped, &r.RerunOf, &r.Attempt, &standsFor,
		&r.Boot, &r.Wish, &r.LeftBehind, &r.Detail, &r.OnInterrupted, &r.Title, &due, &r.Retries, &r.Again)
	if err != nil {
		return r, unavailable("reading a run", err)
	}
	if err := errors.Join(json.Unmarshal(params, &r.Params), json.Unmarshal(standsFor, &r.StandsFor)); err != nil {
		return r, fmt.Errorf("%w: %w: reading run %s: %w", ErrUnavailable, ErrCorrupt, r.ID, err)
	}
	r.Created, r.Started, r.Ended = timeOf(created), timeOf(started), timeOf(ended)
	switch r.State {
	case runner.Queued:
		r.Due = timeOf(due)
	case runner.TimedOut, runner.Cancelled, runner.Interrupted:
		r.Reason = r.State
	default:
	}
	return r, nil
}

// micros returns a time as the database has it: microseconds since 1970, or 0 for the zero time. A time after the
// year 9999 becomes the end of that year.
func micros(t time.Time) int64 {
	const last = 253402300799 // of the year 9999, in seconds
	switch {
	case t.IsZero():
		return 0
	case t.Unix() > last:
		return last * 1e6
	}
	return t.UnixMicro()
}

func timeOf(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}
