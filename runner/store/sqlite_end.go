package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"sallyport/runner"
)

// Finish records the end of a run. With runner.PromoteNext, it also makes the next run of its flight Running and
// returns it as next, for the caller to start, or nil without one. With runner.RemoveClaims, it removes the claims on
// the run. If an end was recorded before, Finish returns the run with that end and a nil next, so that it can be
// repeated after an error. Errors: runner.ErrUnknown, ErrUnavailable.
func (s *SQLite) Finish(
	ctx context.Context, id string, state runner.State, end runner.End, claims runner.AfterClaims,
	queue runner.AfterQueue,
) (ended runner.Run, next *runner.Run, err error) {
	if !state.Ended() {
		return runner.Run{}, nil, fmt.Errorf("finishing run %s: %q is not a final state", id, state)
	}
	return s.finishRun(ctx, id, queue, func(ctx context.Context, tx *statements) (runner.Run, error) {
		return s.endRun(ctx, tx, id, state, end, claims)
	})
}

// FinishAndRetry records that a run failed, and queues the next attempt at it in the same transaction, as the first of
// its flight. The attempt is Again of the run that it returns: there is none if the end of the run was requested. In all
// else it is like Finish.
func (s *SQLite) FinishAndRetry(
	ctx context.Context, run runner.Run, end runner.End, again runner.Attempt, queue runner.AfterQueue,
) (ended runner.Run, next *runner.Run, err error) {
	return s.finishRun(ctx, run.ID, queue, func(ctx context.Context, tx *statements) (runner.Run, error) {
		after, up := again.After.Microseconds(), s.Uptime().Microseconds()
		n, err := tx.execute(ctx, sqlRetry, run.ID, again.ID, micros(again.Created), up, micros(s.now())+after,
			up+after, after)
		if err != nil {
			return runner.Run{}, err
		}
		if n > 0 {
			if _, err := tx.execute(ctx, sqlSetAgain, run.ID, again.ID); err != nil {
				return runner.Run{}, err
			}
		}
		return s.endRun(ctx, tx, run.ID, runner.Failed, end, runner.KeepClaims)
	})
}

// finishRun ends a run by a function, and promotes the next one of its flight.
func (s *SQLite) finishRun(
	ctx context.Context, id string, queue runner.AfterQueue,
	end func(context.Context, *statements) (runner.Run, error),
) (ended runner.Run, next *runner.Run, err error) {
	err = s.record(ctx, func(ctx context.Context, tx *statements) error {
		ended, err = end(ctx, tx)
		if errors.Is(err, runner.ErrUnknown) { // the run is unknown, or ended before
			ended, err = tx.readRun(ctx, sqlRun, id)
			return err
		}
		if err != nil {
			return err
		}
		if queue == runner.PromoteNext {
			next, err = s.promoteNext(ctx, tx, ended.Flight)
		}
		return err
	})
	if err != nil {
		return runner.Run{}, nil, err
	}
	s.pruner.forgetHook(ended.Hook)
	return ended, next, nil
}

// endRun ends a running or queued run. runner.RemoveClaims is for a run that never started: if its end was requested,
// the run ends as requested, and its claims stay.
func (s *SQLite) endRun(
	ctx context.Context, tx *statements, id string, state runner.State, end runner.End, claims runner.AfterClaims,
) (runner.Run, error) {
	if end.Ended.IsZero() { // every index contains the time of the end
		end.Ended = s.now()
	}
	if claims == runner.RemoveClaims {
		run, err := tx.readRun(ctx, sqlEndWished, id, micros(end.Ended))
		if !errors.Is(err, runner.ErrUnknown) {
			return run, err
		}
	}
	run, err := tx.readRun(ctx, sqlEnd, id, state, micros(end.Ended), end.ExitCode, end.Signal, end.Error,
		end.Output.Bytes, end.Output.Dropped, end.LeftBehind, end.Detail)
	if err == nil && claims == runner.RemoveClaims {
		_, err = tx.execute(ctx, sqlUnclaim, id)
	}
	return run, err
}

// promoteNext makes the first queued run of a flight Running, unless one is running. Runs of paused hooks stay queued,
// and so do runs that are not due.
func (s *SQLite) promoteNext(ctx context.Context, tx *statements, flight string) (*runner.Run, error) {
	next, err := tx.readRun(ctx, sqlPromote, flight, micros(s.now()), s.boot, s.Uptime().Microseconds())
	switch {
	case errors.Is(err, runner.ErrUnknown):
		return nil, nil //nolint:nilnil // no run is queued
	case err != nil:
		return nil, err
	}
	return &next, nil
}

// Promote makes the first queued run of each of the flights Running where none is running, and returns those runs.
// Without arguments, it does so for all flights.
func (s *SQLite) Promote(ctx context.Context, flights ...string) (promoted []runner.Run, err error) {
	err = s.record(ctx, func(ctx context.Context, tx *statements) error {
		promoted = nil
		if len(flights) == 0 {
			err := tx.eachRow(ctx, func(rows *sql.Rows) error {
				var flight string
				err := rows.Scan(&flight)
				flights = append(flights, flight)
				return err
			}, sqlWaiting)
			if err != nil {
				return err
			}
		}
		for _, flight := range flights {
			next, err := s.promoteNext(ctx, tx, flight)
			if err != nil {
				return err
			}
			if next != nil {
				promoted = append(promoted, *next)
			}
		}
		return nil
	})
	if err != nil { // what was promoted was not committed
		return nil, err
	}
	return promoted, nil
}

// NotDue returns how long it takes until the first run that is not due yet is due, for each of the flights that has one.
// Without arguments, it does so for all flights.
func (s *SQLite) NotDue(ctx context.Context, flights ...string) (waits map[string]time.Duration, err error) {
	waits = map[string]time.Duration{}
	up := s.Uptime()
	read := func(rows *sql.Rows) error {
		var flight string
		var due int64
		err := rows.Scan(&flight, &due)
		waits[flight] = time.Duration(due)*time.Microsecond - up
		return err
	}
	err = withDeadline(ctx, workTime, func(ctx context.Context) error {
		if len(flights) == 0 {
			return s.prepared.eachRow(ctx, read, sqlNotDue, up.Microseconds())
		}
		for _, flight := range flights {
			if err := s.prepared.eachRow(ctx, read, sqlNotDueIn, up.Microseconds(), flight); err != nil {
				return err
			}
		}
		return nil
	})
	return waits, err
}

// Requeue queues a running run again as the first of its flight, because its command was not started. If the end of the
// run was requested, the run ends. A run that is not running is not changed. Requeue returns the run as it is then.
func (s *SQLite) Requeue(ctx context.Context, id string) (run runner.Run, err error) {
	err = s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		run, err = tx.readRun(ctx, sqlEndWished, id, micros(s.now()))
		if errors.Is(err, runner.ErrUnknown) {
			run, err = tx.readRun(ctx, sqlRequeue, id)
		}
		if errors.Is(err, runner.ErrUnknown) {
			run, err = tx.readRun(ctx, sqlRun, id)
		}
		return err
	})
	if err != nil {
		return runner.Run{}, err
	}
	s.pruner.forgetHook(run.Hook)
	return run, nil
}

// Cancel ends a queued run as Cancelled and reports whether it did. For a running run, it records that the run should
// end as Cancelled. It returns the run as it is then. Errors: runner.ErrUnknown, ErrUnavailable.
func (s *SQLite) Cancel(ctx context.Context, id string) (run runner.Run, ended bool, err error) {
	err = s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		run, err = tx.readRun(ctx, sqlDropRun, id, runner.Cancelled, micros(s.now()), "")
		ended = err == nil
		if errors.Is(err, runner.ErrUnknown) {
			run, err = tx.readRun(ctx, sqlWish, id, runner.Cancelled)
		}
		if errors.Is(err, runner.ErrUnknown) {
			run, err = tx.readRun(ctx, sqlRun, id)
		}
		return err
	})
	if err != nil {
		return runner.Run{}, false, err
	}
	s.pruner.forgetHook(run.Hook)
	return run, ended, nil
}

// ExpireQueued ends the queued runs of a hook that have waited for longer than longest since their last delivery was
// accepted, as TimedOut, and returns them. The time while the machine was off does not count. Their claims stay.
func (s *SQLite) ExpireQueued(
	ctx context.Context, hook string, longest time.Duration,
) (expired []runner.Run, err error) {
	if err := s.noteOpening(ctx, s.writer); err != nil {
		return nil, err
	}
	err = s.writer.record(ctx, func(ctx context.Context, tx *statements) error {
		expired, err = tx.readRuns(ctx, sqlDropExpired, hook, runner.TimedOut, micros(s.now()),
			"queued for longer than queue_timeout", (s.Uptime() - longest).Microseconds())
		return err
	})
	if err != nil {
		return nil, err
	}
	s.pruner.forgetHook(hook)
	return expired, nil
}
