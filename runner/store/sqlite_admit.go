package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// Admit records a run and the claim of its delivery, both or neither, and decides the state of the run: Running if no
// run of its flight is running or queued, otherwise by the policy. The state and start in run are ignored. For a
// delivery that was claimed before, the error is *runner.Replayed, runner.ErrReused or runner.ErrOtherBody. For a
// busy flight it is *runner.Busy, without RetryAfter, and for a paused hook *runner.Paused; nothing is recorded. The caller must start nothing on any
// error.
func (s *SQLite) Admit(
	ctx context.Context, run runner.Run, c runner.Claim, p hook.Policy, in runner.Feed,
) (runner.Admission, error) {
	return s.AdmitIf(ctx, run, c, p, in, func(runner.Admission) error { return nil })
}

// AdmitIf is [SQLite.Admit] with a condition: before it commits, it calls allow with the admission, and if that
// returns an error, nothing is recorded and AdmitIf returns the error. While allow runs, nothing else is recorded.
func (s *SQLite) AdmitIf(
	ctx context.Context, run runner.Run, c runner.Claim, p hook.Policy, in runner.Feed,
	allow func(runner.Admission) error,
) (runner.Admission, error) {
	var a runner.Admission
	err := s.writer.record(ctx, func(ctx context.Context, tx *statements) (err error) {
		if a, err = s.admitRun(ctx, tx, run, c, p, in); err != nil {
			return err
		}
		return allow(a)
	})
	if err != nil {
		return runner.Admission{}, err
	}
	if len(a.Superseded) > 0 {
		s.pruner.forgetHook(run.Hook)
	}
	return a, nil
}

func (s *SQLite) admitRun(
	ctx context.Context, tx *statements, run runner.Run, c runner.Claim, p hook.Policy, in runner.Feed,
) (runner.Admission, error) {
	switch first, err := findClaimed(ctx, tx, run.Hook, c); {
	case err == nil:
		return runner.Admission{}, &runner.Replayed{Run: first}
	case !errors.Is(err, runner.ErrUnknown):
		return runner.Admission{}, err
	}
	p, err := policyOfRepeated(ctx, tx, run.Hook, c, p)
	if err != nil {
		return runner.Admission{}, err
	}
	return s.admitNew(ctx, tx, run, c, p, in)
}

// policyOfRepeated returns the policy for a delivery: p, unless it was claimed before and may start another run. A
// queued or newer run then has newer parameters, which the older delivery must neither overwrite nor replace.
func policyOfRepeated(
	ctx context.Context, tx *statements, hookName string, c runner.Claim, p hook.Policy,
) (hook.Policy, error) {
	if !c.UntilSuccess || p.Kind != hook.Join && p.Kind != hook.Replace {
		return p, nil
	}
	for i, key := range claimKeys(c) {
		var id string
		var body []byte
		err := tx.scanRow(ctx, []any{&id, &body}, sqlClaim, claimScope(hookName, c, i), key)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		return hook.Policy{Kind: hook.Queue, Depth: 1}, err
	}
	return p, nil
}

// admitNew records a run of a delivery that was not accepted before, or whose run did not succeed.
func (s *SQLite) admitNew(
	ctx context.Context, tx *statements, run runner.Run, c runner.Claim, p hook.Policy, in runner.Feed,
) (runner.Admission, error) {
	run.Created, run.Started, run.Boot, run.End = timeOf(micros(run.Created)), timeOf(0), "", runner.End{}
	pause, err := s.readPauses(ctx, tx, sqlPause, s.Uptime().Microseconds(), run.Hook)
	if err != nil {
		return runner.Admission{}, err
	}
	current, err := tx.readRun(ctx, sqlInFlight, run.Flight)
	if errors.Is(err, runner.ErrUnknown) { // a run that is queued behind an escaped process is first
		current, err = tx.readRun(ctx, sqlFirst, run.Flight, s.Uptime().Microseconds())
	}
	var a runner.Admission
	switch {
	case len(pause) > 0 && (err == nil || errors.Is(err, runner.ErrUnknown)):
		run.State = runner.Queued
		a, err = s.queuePaused(ctx, tx, pause[0], run, p, in)
	case errors.Is(err, runner.ErrUnknown):
		run.State, run.Started, run.Boot = runner.Running, timeOf(micros(s.now())), s.boot
		a, err = runner.Admission{Run: run}, s.insertRun(ctx, tx, run, 0, in)
	case err == nil:
		run.State = runner.Queued
		a, err = s.queueRun(ctx, tx, current, run, p, in)
	}
	if err != nil {
		return runner.Admission{}, err
	}
	return a, insertClaims(ctx, tx, a.Run, c)
}

// queueRun records a run behind the current one, by the policy. The policy is that of the hook, so it concerns the runs
// of the hook only: those of other hooks in the flight are waited for.
func (s *SQLite) queueRun(
	ctx context.Context, tx *statements, current, run runner.Run, p hook.Policy, in runner.Feed,
) (a runner.Admission, err error) {
	var waiting, last, own int
	if err := tx.scanRow(ctx, []any{&waiting, &last, &own}, sqlQueue, run.Flight, run.Hook); err != nil {
		return a, err
	}
	a = runner.Admission{Run: run, Position: waiting + 1}
	switch p.Kind {
	case hook.Reject, "":
		return a, &runner.Busy{Run: current}
	case hook.Queue:
		if own >= p.Depth {
			return a, &runner.Busy{Run: current}
		}
	case hook.Join:
		if own > 0 && run.RerunOf != "" { // its parameters are older than the queued ones
			return a, &runner.Busy{Run: current}
		}
		if own > 0 {
			a.Joined = true
			if a.Run, err = s.joinQueued(ctx, tx, run, in); err != nil {
				return a, err
			}
			return a, tx.scanRow(ctx, []any{&a.Position}, sqlPosition, run.Flight, a.Run.ID)
		}
	case hook.Replace:
		a.Position -= own
		if err := s.replaceOwn(ctx, tx, current, &a); err != nil {
			return a, err
		}
	default:
		return a, fmt.Errorf("%q is not a policy", p.Kind)
	}
	return a, s.insertRun(ctx, tx, run, last+1, in)
}

// replaceOwn ends the queued runs of the hook in the flight, and has its running run cancelled.
func (s *SQLite) replaceOwn(ctx context.Context, tx *statements, current runner.Run, a *runner.Admission) error {
	if current.State == runner.Running && current.Hook == a.Run.Hook {
		stop, err := tx.readRun(ctx, sqlWish, current.ID, runner.Cancelled)
		if err != nil {
			return err
		}
		a.Stop = &stop
	}
	var err error
	a.Superseded, err = tx.readRuns(ctx, sqlDropQueue, a.Run.Flight, runner.Cancelled, micros(s.now()),
		"replaced by run "+a.Run.ID, a.Run.Hook)
	return err
}

// joinQueued sets the parameters and the caller of run on the last queued run of its hook, and keeps the earlier caller
// in StandsFor. More than one run is queued only if the hook had another policy before, or if a run was requeued.
func (s *SQLite) joinQueued(ctx context.Context, tx *statements, run runner.Run, in runner.Feed) (runner.Run, error) {
	pending, err := tx.readRun(ctx, sqlLast, run.Flight, run.Hook)
	if err != nil {
		return runner.Run{}, err
	}
	params, err := json.Marshal(run.Params)
	if err != nil {
		return runner.Run{}, fmt.Errorf("writing the parameters: %w", err)
	}
	standsFor := distinct(append(pending.StandsFor, pending.Caller))
	standsFor = slices.DeleteFunc(standsFor, func(caller string) bool { return caller == run.Caller })
	names, err := json.Marshal(append([]string{}, standsFor...))
	if err != nil {
		return runner.Run{}, fmt.Errorf("writing the callers: %w", err)
	}
	return tx.readRun(ctx, sqlJoin, pending.ID, run.Caller, string(params), in.Trace, in.Stdin, string(names),
		s.Uptime().Microseconds(), run.OnInterrupted)
}

func (s *SQLite) insertRun(ctx context.Context, tx *statements, r runner.Run, place int, in runner.Feed) error {
	params, err := json.Marshal(r.Params)
	if err != nil {
		return fmt.Errorf("writing the parameters: %w", err)
	}
	_, err = tx.execute(ctx, sqlInsertRun, r.ID, r.Hook, r.Caller, r.Flight, r.State, place, string(params),
		micros(r.Created), micros(r.Started), in.Trace, in.Stdin, r.RerunOf, r.Attempt, r.Boot,
		s.Uptime().Microseconds(), r.OnInterrupted)
	return err
}

// findClaimed returns the run that a delivery to the hook started, or runner.ErrReused or runner.ErrOtherBody, or
// runner.ErrUnknown if the delivery may start a run. If the run was pruned, only its id and hook are set.
func findClaimed(ctx context.Context, from *statements, hook string, c runner.Claim) (runner.Run, error) {
	for i, key := range claimKeys(c) {
		var id string
		var body []byte
		err := from.scanRow(ctx, []any{&id, &body}, sqlClaim, claimScope(hook, c, i), key)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			continue
		case err != nil:
			return runner.Run{}, err
		case c.OneBody && !bytes.Equal(c.Body[:], body):
			return runner.Run{}, runner.ErrReused
		case c.Named && !bytes.Equal(c.Body[:], body):
			return runner.Run{}, runner.ErrOtherBody
		}
		run, err := from.readRun(ctx, sqlRun, id)
		if errors.Is(err, runner.ErrUnknown) {
			return runner.Run{ID: id, Hook: hook}, nil
		}
		if err == nil && c.UntilSuccess {
			run, err = followReruns(ctx, from, run)
		}
		if err == nil && c.UntilSuccess && run.MayStartAgain() {
			continue
		}
		return run, err
	}
	return runner.Run{}, runner.ErrUnknown
}

// followReruns returns the latest run that was queued without a request because run was interrupted, or run. If that
// one was pruned, only its id and hook are set.
func followReruns(ctx context.Context, from *statements, run runner.Run) (runner.Run, error) {
	for run.State == runner.Interrupted {
		var next string
		var body []byte
		err := from.scanRow(ctx, []any{&next, &body}, sqlClaim, run.Hook, runner.RerunKey(run.ID))
		if errors.Is(err, sql.ErrNoRows) {
			return run, nil
		}
		if err != nil {
			return runner.Run{}, err
		}
		again, err := from.readRun(ctx, sqlRun, next)
		if errors.Is(err, runner.ErrUnknown) {
			return runner.Run{ID: next, Hook: run.Hook}, nil
		}
		if err != nil {
			return runner.Run{}, err
		}
		run = again
	}
	return run, nil
}

// claimKeys returns all keys of a claim. A delivery that may be repeated has no keys.
func claimKeys(c runner.Claim) []string {
	if c.Key == "" {
		return nil
	}
	return append([]string{c.Key}, c.Also...)
}

// claimScope returns the scope in which a key of a claim is unique: its hook, or empty for all hooks.
func claimScope(hook string, c runner.Claim, key int) string {
	if c.OneBody && key == 0 {
		return ""
	}
	return hook
}

// insertClaims records the claim of a run. Only a claim that may start another run replaces an earlier one.
func insertClaims(ctx context.Context, tx *statements, r runner.Run, c runner.Claim) error {
	query := sqlSetRun
	if c.UntilSuccess {
		query = sqlMoveClaim
	}
	for i, key := range claimKeys(c) {
		_, err := tx.execute(ctx, query, claimScope(r.Hook, c, i), key, r.ID, c.Body[:],
			micros(c.Until), micros(r.Created))
		if err != nil {
			return err
		}
	}
	return nil
}
