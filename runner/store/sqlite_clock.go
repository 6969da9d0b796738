package store

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"
	"time"

	"sallyport/internal/boot"
)

const (
	sqlOpened       = `SELECT up, wall FROM opened WHERE boot = $1`
	sqlForgetOpened = `DELETE FROM opened`
	sqlSetOpened    = `INSERT INTO opened (boot, up, wall) VALUES ($1, $2, $3)`
	sqlNewestID     = `SELECT COALESCE(MAX(id), '') FROM runs`
	sqlRestartWaits = `UPDATE runs SET accepted_up = $1,
		due_up = CASE WHEN due_up > 0 THEN $1 + due_after ELSE 0 END,
		due = CASE WHEN due_up > 0 THEN $3 + due_after ELSE 0 END
		WHERE ended = 0 AND id <= $2`
	sqlDropExpired = sqlEndQueued + `
		WHERE hook = $1 AND ended = 0 AND state = 'queued' AND accepted_up < $5 AND due_up < $5 RETURNING ` + runColumns
)

// clocks are the clocks that the store uses.
type clocks struct {
	// Uptime is the clock that measures how long runs are queued. Changes of the wall clock do not affect it. Only
	// tests set it.
	Uptime func() time.Duration

	now    func() time.Time
	boot   string // boot.ID
	opened opening
	noted  atomic.Bool // whether opened is recorded
}

// opening has the values of the clocks when the file was opened.
type opening struct {
	boot     string // start of the machine; empty if the time since then is not known
	up, wall int64  // in microseconds
	first    bool   // no server opened the file before since the machine started
	newest   string // if first: the newest run in the file
	stepped  time.Duration
}

// readClocks compares the clocks with their values when a server last opened the file. It writes nothing, because a
// server must start on a full disk too.
func (c *clocks) readClocks(ctx context.Context, db *sql.DB) error {
	o := opening{boot: c.boot}
	if c.Uptime = boot.Uptime; boot.Uptime() == 0 { // this system does not give the time since its start
		opened := time.Now()
		o.boot, c.Uptime = "", func() time.Duration { return time.Since(opened) }
	}
	o.up, o.wall = c.Uptime().Microseconds(), micros(c.now())
	var up, wall int64
	switch err := db.QueryRowContext(ctx, sqlOpened, o.boot).Scan(&up, &wall); {
	case errors.Is(err, sql.ErrNoRows), err == nil && o.boot == "":
		o.first = true
		if err := db.QueryRowContext(ctx, sqlNewestID).Scan(&o.newest); err != nil {
			return unavailable("reading the newest run", err)
		}
	case err != nil:
		return unavailable("reading when the file was opened", err)
	default:
		o.stepped = time.Duration(o.wall-wall-(o.up-up)) * time.Microsecond
	}
	c.opened = o
	return nil
}

// noteOpening records the values of the clocks, once. It is not known reliably how long the machine was off. So after
// a restart of the machine, the waiting time of queued runs starts again, and so do the time until a run is due and the
// time of a pause.
func (c *clocks) noteOpening(ctx context.Context, w *writer) error {
	if c.noted.Load() {
		return nil
	}
	err := w.record(ctx, func(ctx context.Context, tx *statements) error {
		if c.opened.first {
			if _, err := tx.execute(ctx, sqlRestartWaits, c.opened.up, c.opened.newest,
				c.opened.wall); err != nil {
				return err
			}
			if _, err := tx.execute(ctx, sqlRestartPauses, c.opened.up); err != nil {
				return err
			}
		}
		if _, err := tx.execute(ctx, sqlForgetOpened); err != nil {
			return err
		}
		_, err := tx.execute(ctx, sqlSetOpened, c.opened.boot, c.opened.up, c.opened.wall)
		return err
	})
	if err == nil {
		c.noted.Store(true)
	}
	return err
}

// noteRestart records the opening if the machine was restarted since the one before. Until then, the times of waits and
// pauses are those of the earlier start, and nothing may be started by them.
func (c *clocks) noteRestart(ctx context.Context, w *writer) error {
	if !c.opened.first { // later, because an opening that is noted hides a step of the wall clock
		return nil
	}
	return c.noteOpening(ctx, w)
}

// record is [writer.record] for operations that may start a run.
func (s *SQLite) record(ctx context.Context, do func(context.Context, *statements) error) error {
	if err := s.noteRestart(ctx, s.writer); err != nil {
		return err
	}
	return s.writer.record(ctx, do)
}

// Stepped returns by how much the wall clock was set since a server last opened the file, or zero if the machine was
// restarted in between.
func (c *clocks) Stepped() time.Duration { return c.opened.stepped }
