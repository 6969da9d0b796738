package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"sallyport/runner"
)

const (
	pauseColumns = `hook, reason, paused_by, since, length, ends_up`

	sqlPauses   = `SELECT ` + pauseColumns + ` FROM pauses WHERE length = 0 OR ends_up > $1 ORDER BY hook`
	sqlPause    = `SELECT ` + pauseColumns + ` FROM pauses WHERE hook = $2 AND (length = 0 OR ends_up > $1)`
	sqlSetPause = `INSERT INTO pauses (` + pauseColumns + `) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (hook) DO UPDATE SET reason = excluded.reason, paused_by = excluded.paused_by,
		since = excluded.since, length = excluded.length, ends_up = excluded.ends_up`
	sqlResume        = `DELETE FROM pauses WHERE hook = $1`
	sqlEndPauses     = `DELETE FROM pauses WHERE length > 0 AND ends_up <= $1 RETURNING hook`
	sqlTimedPauses   = `SELECT COUNT(*) FROM pauses WHERE length > 0`
	sqlRestartPauses = `UPDATE pauses SET ends_up = $1 + length WHERE length > 0`
)

// Pause records the pause of a hook, in place of an earlier one, and returns it with its begin and end.
func (s *SQLite) Pause(ctx context.Context, p runner.Pause) (runner.Pause, error) {
	if err := s.noteOpening(ctx, s.writer); err != nil {
		return p, err
	}
	err := s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		p.Since, p.EndsUp = timeOf(micros(s.now())), 0
		if p.Length > 0 {
			p.EndsUp = s.Uptime() + p.Length
			p.Until = p.Since.Add(p.Length)
		}
		_, err := tx.execute(ctx, sqlSetPause, p.Hook, p.Reason, p.By, micros(p.Since), p.Length.Microseconds(),
			p.EndsUp.Microseconds())
		return err
	})
	return p, err
}

// Resume removes the pause of a hook, and reports whether there was one.
func (s *SQLite) Resume(ctx context.Context, name string) (paused bool, err error) {
	err = s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		n, err := tx.execute(ctx, sqlResume, name)
		paused = n > 0
		return err
	})
	return paused, err
}

// EndPauses removes the pauses whose time is over, and returns their hooks. The time while the machine was off does
// not count: after a restart of the machine, the time of a pause begins again.
func (s *SQLite) EndPauses(ctx context.Context) (ended []string, err error) {
	var timed int
	err = withDeadline(ctx, workTime, func(ctx context.Context) error {
		return s.prepared.scanRow(ctx, []any{&timed}, sqlTimedPauses)
	})
	if err != nil || timed == 0 {
		return nil, err
	}
	if err := s.noteOpening(ctx, s.writer); err != nil {
		return nil, err
	}
	err = s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		ended = nil
		return tx.eachRow(ctx, func(rows *sql.Rows) error {
			var name string
			err := rows.Scan(&name)
			ended = append(ended, name)
			return err
		}, sqlEndPauses, s.Uptime().Microseconds())
	})
	return ended, err
}

// Pauses returns the pauses that have not ended, by the names of their hooks.
func (s *SQLite) Pauses(ctx context.Context) (list []runner.Pause, err error) {
	err = withDeadline(ctx, workTime, func(ctx context.Context) error {
		from := s.Uptime().Microseconds()
		if s.opened.first && !s.noted.Load() {
			from = -1 // the times of all pauses begin again
		}
		list, err = s.readPauses(ctx, s.prepared, sqlPauses, from)
		return err
	})
	return list, err
}

func (c *clocks) readPauses(ctx context.Context, from *statements, query string, args ...any) (
	list []runner.Pause, err error,
) {
	err = from.eachRow(ctx, func(rows *sql.Rows) error {
		var p runner.Pause
		var since, length, ends int64
		if err := rows.Scan(&p.Hook, &p.Reason, &p.By, &since, &length, &ends); err != nil {
			return err
		}
		p.Since, p.Length = timeOf(since), time.Duration(length)*time.Microsecond
		p.EndsUp = time.Duration(ends) * time.Microsecond
		if length > 0 && c.opened.first && !c.noted.Load() { // as noteOpening will record it
			p.EndsUp = time.Duration(c.opened.up)*time.Microsecond + p.Length
		}
		if length > 0 {
			p.Until = timeOf(micros(c.now().Add(p.EndsUp - c.Uptime())))
		}
		list = append(list, p)
		return nil
	}, query, args...)
	return list, err
}

// queuePaused records a run of a paused hook behind the others, by the policy. A hook that queues nothing refuses it
// with *runner.Paused, and so does a full queue. The run in progress is not stopped: it would end for nothing. A run
// that repeats an interrupted one is queued by every hook.
func (o *admission) queuePaused(ctx context.Context, pause runner.Pause, run runner.Run) (runner.Admission, error) {
	a, err := o.queueRun(ctx, runner.Run{}, run)
	var full *runner.Busy
	if errors.As(err, &full) && run.Attempt == 0 {
		return a, &runner.Paused{Pause: pause, Left: max(pause.EndsUp-o.Uptime(), 0)}
	}
	return a, err
}
