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
// busy flight it is *runner.Busy, without RetryAfter, and for a paused hook *runner.Paused; nothing is recorded. The
// caller must start nothing on any error.
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
	err := s.record(ctx, func(ctx context.Context, tx *statements) (err error) {
		one := admission{clocks: &s.clocks, tx: tx, claim: c, policy: p, feed: in}
		if a, err = one.admitRun(ctx, run); err != nil {
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

// admission records one run in a transaction.
type admission struct {
	*clocks

	tx     *statements
	claim  runner.Claim
	policy hook.Policy
	feed   runner.Feed
}

func (o *admission) admitRun(ctx context.Context, run runner.Run) (runner.Admission, error) {
	switch first, err := findClaimed(ctx, o.tx, run.Hook, o.claim); {
	case err == nil:
		return runner.Admission{}, &runner.Replayed{Run: first}
	case errors.Is(err, errStartsAgain) && (o.policy.Kind == hook.Join || o.policy.Kind == hook.Replace):
		// A newer run of the hook has newer parameters, which the older delivery must neither overwrite nor replace.
		o.policy = hook.Policy{Kind: hook.Queue, Depth: 1}
	case !errors.Is(err, runner.ErrUnknown):
		return runner.Admission{}, err
	}
	a, err := o.recordRun(ctx, run)
	if err != nil {
		return runner.Admission{}, err
	}
	return a, insertClaims(ctx, o.tx, a.Run, o.claim)
}

// recordRun records a run, and decides its state.
func (o *admission) recordRun(ctx context.Context, run runner.Run) (runner.Admission, error) {
	run.Created, run.Started, run.Boot, run.End = timeOf(micros(run.Created)), timeOf(0), "", runner.End{}
	pause, err := o.readPauses(ctx, o.tx, sqlPause, o.Uptime().Microseconds(), run.Hook)
	if err != nil {
		return runner.Admission{}, err
	}
	current, err := o.tx.readRun(ctx, sqlInFlight, run.Flight)
	if errors.Is(err, runner.ErrUnknown) { // a run that is queued behind an escaped process is first
		current, err = o.tx.readRun(ctx, sqlFirst, run.Flight, o.Uptime().Microseconds(), run.Hook)
	}
	isFree := errors.Is(err, runner.ErrUnknown)
	switch {
	case err != nil && !isFree:
		return runner.Admission{}, err
	case len(pause) > 0:
		run.State = runner.Queued
		return o.queuePaused(ctx, pause[0], run)
	case isFree:
		run.State, run.Started, run.Boot = runner.Running, timeOf(micros(o.now())), o.boot
		return runner.Admission{Run: run}, o.insertRun(ctx, run, 0)
	}
	run.State = runner.Queued
	return o.queueRun(ctx, current, run)
}

// queueRun records a run behind the current one, by the policy. The policy is that of the hook, so it concerns the runs
// of the hook only: those of other hooks in the flight are waited for.
func (o *admission) queueRun(ctx context.Context, current, run runner.Run) (a runner.Admission, err error) {
	var waiting, last, own int
	if err := o.tx.scanRow(ctx, []any{&waiting, &last, &own}, sqlQueue, run.Flight, run.Hook,
		o.Uptime().Microseconds()); err != nil {
		return a, err
	}
	a = runner.Admission{Run: run, Position: waiting + 1}
	switch o.policy.Kind {
	case hook.Reject, "":
		return a, &runner.Busy{Run: current}
	case hook.Queue:
		if own >= o.policy.Depth {
			return a, &runner.Busy{Run: current}
		}
	case hook.Join:
		if own > 0 && run.RerunOf != "" { // its parameters are older than the queued ones
			return a, &runner.Busy{Run: current}
		}
		if own > 0 {
			a.Joined = true
			if a.Run, err = o.joinQueued(ctx, run); err != nil {
				return a, err
			}
			return a, o.tx.scanRow(ctx, []any{&a.Position}, sqlPosition, run.Flight, run.Hook, o.Uptime().Microseconds(),
				a.Run.ID)
		}
	case hook.Replace:
		a.Position -= own
		if err := o.replaceOwn(ctx, current, &a); err != nil {
			return a, err
		}
	default:
		return a, fmt.Errorf("%q is not a policy", o.policy.Kind)
	}
	return a, o.insertRun(ctx, run, last+1)
}

// replaceOwn ends the queued runs of the hook in the flight, and has its running run cancelled.
func (o *admission) replaceOwn(ctx context.Context, current runner.Run, a *runner.Admission) error {
	if current.State == runner.Running && current.Hook == a.Run.Hook {
		stop, err := o.tx.readRun(ctx, sqlWish, current.ID, runner.Cancelled)
		if err != nil {
			return err
		}
		a.Stop = &stop
	}
	var err error
	a.Superseded, err = o.tx.readRuns(ctx, sqlDropQueue, a.Run.Flight, runner.Cancelled, micros(o.now()),
		"replaced by run "+a.Run.ID, a.Run.Hook)
	return err
}

// joinQueued sets the parameters and the caller of run on the last queued run of its hook, and keeps the earlier caller
// in StandsFor. More than one run is queued only if the hook had another policy before, or if a run was requeued.
func (o *admission) joinQueued(ctx context.Context, run runner.Run) (runner.Run, error) {
	pending, err := o.tx.readRun(ctx, sqlLast, run.Flight, run.Hook)
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
	return o.tx.readRun(ctx, sqlJoin, pending.ID, run.Caller, string(params), o.feed.Trace, o.feed.Stdin, string(names),
		o.Uptime().Microseconds(), run.OnInterrupted, run.Title)
}

func (o *admission) insertRun(ctx context.Context, r runner.Run, place int) error {
	params, err := json.Marshal(r.Params)
	if err != nil {
		return fmt.Errorf("writing the parameters: %w", err)
	}
	_, err = o.tx.execute(ctx, sqlInsertRun, r.ID, r.Hook, r.Caller, r.Flight, r.State, place, string(params),
		micros(r.Created), micros(r.Started), o.feed.Trace, o.feed.Stdin, r.RerunOf, r.Attempt, r.Boot,
		o.Uptime().Microseconds(), r.OnInterrupted, r.Title, r.Retries)
	return err
}

// errStartsAgain is runner.ErrUnknown for a delivery that was claimed before and whose run did not succeed.
var errStartsAgain = fmt.Errorf("%w: its run did not succeed", runner.ErrUnknown)

// findClaimed returns the run that a delivery to the hook started, or runner.ErrReused or runner.ErrOtherBody, or
// runner.ErrUnknown if the delivery may start a run: errStartsAgain if it did before. If the run was pruned, only its
// id and hook are set.
func findClaimed(ctx context.Context, from *statements, hook string, c runner.Claim) (runner.Run, error) {
	unknown := runner.ErrUnknown
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
			unknown = errStartsAgain
			continue
		}
		return run, err
	}
	return runner.Run{}, unknown
}

// followReruns returns the latest run that was queued without a request because run failed or was interrupted, or run.
// If that one was pruned, only its id and hook are set.
func followReruns(ctx context.Context, from *statements, run runner.Run) (runner.Run, error) {
	for {
		next, err := findRerun(ctx, from, run)
		if next == "" || err != nil {
			return run, err
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
}

// findRerun returns the id of the run that was queued without a request because run failed or was interrupted, or "".
func findRerun(ctx context.Context, from *statements, run runner.Run) (next string, err error) {
	if run.Again != "" || run.State != runner.Interrupted {
		return run.Again, nil
	}
	err = from.scanRow(ctx, []any{&next, new([]byte)}, sqlClaim, run.Hook, runner.RerunKey(run.ID))
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return next, err
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
