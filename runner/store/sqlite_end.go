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
	if end.Ended.IsZero() { // every index contains the time of the end
		end.Ended = s.now()
	}
	err = s.record(ctx, func(ctx context.Context, tx *statements) error {
		ended, err = endRun(ctx, tx, id, state, end, claims)
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
func endRun(
	ctx context.Context, tx *statements, id string, state runner.State, end runner.End, claims runner.AfterClaims,
) (runner.Run, error) {
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

// promoteNext makes the first queued run of a flight Running, unless one is running. Runs of paused hooks stay queued.
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

// Promote makes the first queued run of each of the flights Running where none is
// running, and returns those runs. Without arguments, it does so for all flights.
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
