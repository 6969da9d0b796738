package runner

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"sallyport/internal/guard"
	"sallyport/internal/logging"
	"sallyport/runner/hook"
)

// followRun records the end of the run once its command has ended.
func (d *driver) followRun(ctx context.Context) {
	end, seen := d.awaitEnd()
	if !seen {
		return
	}
	d.estimates.addDuration(d.run.Hook, end.Ended.Sub(d.run.Started))
	d.finishRun(ctx, end.State(), end, KeepClaims)
}

// awaitEnd waits for the end of a run, and reports false if the next server records the end. A command that was
// started and that the supervisor does not know is stopped, and its run is interrupted. Its claim is not removed,
// because the command did run.
func (d *driver) awaitEnd() (end End, seen bool) {
	for logged := false; ; logged = true {
		ends, err := d.procs.Follow(d.run.ID)
		if err == nil {
			end, seen = <-ends
			return end, seen
		}
		if d.runs.hasLeft() || errors.Is(err, ErrLeft) {
			return End{}, false
		}
		if !logged {
			d.log.Error("run not followed", "run", d.run.ID, "hook", d.run.Hook, "error", err)
		}
		if errors.Is(err, ErrUnknown) {
			d.stopper.stopCommand(d.run.ID, stopping{Interrupted, 0})
			return End{Ended: d.now(), Reason: Interrupted}, true
		}
		if d.runs.isStopping() { // the next server learns the end
			return End{}, false
		}
		<-time.After(recordRetryPause)
	}
}

// finishRun records the end of the run, however long the store takes to accept it, and has the next run of the flight
// driven. The flight is free only after that, so the store never shows two runs of a flight in progress.
func (d *driver) finishRun(ctx context.Context, s State, e End, c AfterClaims) Run {
	d.runs.advancePhase(d.run, ending)
	ended, next := d.recordEnd(ctx, s, e, c)
	d.runs.advancePhase(d.run, idle)
	if c == KeepClaims {
		d.logEnd(ctx, ended.State, e)
	}
	if ended.Retries > 0 && ended.State == Failed && ended.Again == "" {
		d.log.Warn("run given up: its last attempt failed", "run", d.run.ID, "hook", d.run.Hook,
			"caller", d.run.Caller, "attempt", ended.Attempt)
	}
	d.runs.releaseWaiters(d.run.ID)
	if next != nil {
		driveStored(ctx, d.Runner, *next)
	}
	return ended
}

func (d *driver) recordEnd(ctx context.Context, s State, e End, c AfterClaims) (ended Run, next *Run) {
	faulty := false
	for failing := new(logging.Repeated); ; {
		err := guard.Do(d.log, func() (err error) {
			ended, next, err = d.recordEndOnce(ctx, s, e, c)
			return err
		})
		if err == nil && faulty && next == nil {
			d.gate.goWork(func() { resumePromoted(ctx, d.Runner, d.run.Flight) })
		}
		if err == nil {
			return ended, next
		}
		faulty = faulty || errors.Is(err, guard.ErrFault)
		if failing.IsNew(err) {
			d.log.Error("run not recorded", "run", d.run.ID, "hook", d.run.Hook, "state", s, "error", err)
		}
		// the next server reads the end from the folder of the run
		if errors.Is(err, ErrUnknown) || d.runs.isStopping() {
			ended = d.run
			ended.State, ended.End = s, e
			return ended, nil
		}
		<-time.After(recordRetryPause) // the command has ended; only the store does not have the end yet
	}
}

// recordEndOnce queues an interrupted run again before it records its end, so that an accepted run is not lost if the
// server ends between the two.
func (d *driver) recordEndOnce(ctx context.Context, s State, e End, c AfterClaims) (ended Run, next *Run, err error) {
	if s == Interrupted {
		run, err := d.store.Get(ctx, d.run.ID)
		if err != nil {
			return Run{}, nil, err
		}
		if run.Wish != "" { // the request to end it may be why it ended
			s = run.Wish
		} else if err := d.rerunInterrupted(ctx, run); err != nil {
			return Run{}, nil, err
		}
	}
	queue := PromoteNext
	if d.Draining() {
		queue = LeaveQueued
	}
	if rule, ok := d.findRetry(s, e); ok {
		return d.finishAndRetry(ctx, e, rule, queue)
	}
	return d.store.Finish(ctx, d.run.ID, s, e, c, queue)
}

// findRetry returns how the hook, as the file has it now, repeats a run with this end. A command that could not be
// started is not repeated: it was tried before for as long as that can help.
func (d *driver) findRetry(s State, e End) (rule hook.RetrySpec, ok bool) {
	if s != Failed || e.Error != "" {
		return rule, false
	}
	h, ok := d.hook(d.run.Hook)
	if !ok || d.run.Retries >= h.Retry.Times {
		return rule, false
	}
	rule = h.Retry
	return rule, rule.Codes == nil || e.ExitCode != nil && slices.Contains(rule.Codes, *e.ExitCode)
}

// finishAndRetry records the end of the run and queues its next attempt, both or neither.
func (d *driver) finishAndRetry(ctx context.Context, e End, rule hook.RetrySpec, queue AfterQueue) (
	ended Run, next *Run, err error,
) {
	id, err := d.ids.nextID()
	if err != nil {
		return Run{}, nil, err
	}
	again := Attempt{ID: id, Created: d.now(), After: rule.After}
	ended, next, err = d.store.FinishAndRetry(ctx, d.run, e, again, queue)
	if err == nil && ended.Again != "" {
		d.log.Info("failed run queued again",
			"run", d.run.ID, "as", ended.Again, "attempt", d.run.Attempt+1, "after", rule.After.String())
		d.promoter.promoteLater(ctx, d.run.Flight, rule.After)
	}
	return ended, next, err
}

// logEnd logs the end of the run. It is called after the end is recorded and before callers of Wait continue, so
// that the flight is free when a reader sees the line.
func (d *driver) logEnd(ctx context.Context, state State, end End) {
	attrs := withTitle(d.run.Title,
		"run", d.run.ID, "hook", d.run.Hook, "caller", d.run.Caller, "state", state,
		"took_ms", end.Ended.Sub(d.run.Started).Milliseconds(),
		"output_bytes", end.Output.Bytes, "output_dropped", end.Output.Dropped,
	)
	if end.ExitCode != nil {
		attrs = append(attrs, "exit_code", *end.ExitCode)
	}
	if end.Signal != "" {
		attrs = append(attrs, "signal", end.Signal)
	}
	if end.LeftBehind > 0 {
		attrs = append(attrs, "left_behind", end.LeftBehind)
	}
	level := slog.LevelWarn
	if state == Succeeded || state == Cancelled {
		level = slog.LevelInfo
	}
	d.log.Log(ctx, level, "run ended", attrs...)
}

// maxReruns is how often an interrupted run is repeated automatically. The limit ends the repetition if the command
// itself crashes the machine.
const maxReruns = 3

// ruleOfHook returns whether an interrupted run of a hook is queued again.
func ruleOfHook(h *hook.Hook) Rerun {
	switch {
	case !h.RerunInterrupted:
		return NoRerun
	case h.Busy.Kind == hook.Join || h.Busy.Kind == hook.Replace:
		return NewestRerun
	}
	return AlwaysRerun
}

// RerunKey returns the key of the claim that names the run that repeats an interrupted one. The keys of deliveries are
// digests, so no delivery can have this key.
func RerunKey(interrupted string) string { return "interrupted " + interrupted }

// rerunInterrupted queues an interrupted run again if its hook says that this is safe. It may be called more than
// once: the claim ensures that a run is queued again only once, also by another server.
func (d *driver) rerunInterrupted(ctx context.Context, run Run) error {
	rule := run.OnInterrupted
	if h, ok := d.hook(run.Hook); ok { // otherwise the hook may come back, as while its file is replaced
		rule = ruleOfHook(h)
	}
	if rule == NoRerun || run.Attempt >= maxReruns {
		return nil
	}
	in, err := d.store.Feed(ctx, run.ID)
	if err != nil {
		return err
	}
	id, err := d.ids.nextID()
	if err != nil {
		return err
	}
	again := Run{
		ID: id, Hook: run.Hook, Caller: run.Caller, Flight: run.Flight, Title: run.Title, Params: run.Params,
		Created: d.now(),
		RerunOf: run.ID, Attempt: run.Attempt + 1, OnInterrupted: rule,
	}
	p := hook.Policy{Kind: hook.Queue, Depth: hook.MaxQueue * 2}
	if rule == NewestRerun {
		p.Depth = 1
	}
	_, err = d.store.Admit(ctx, again, Claim{Key: RerunKey(run.ID)}, p, in)
	var done *Replayed
	var newer *Busy
	switch {
	case errors.As(err, &done):
		return nil
	case errors.As(err, &newer):
		d.log.Info("interrupted run not queued again: other runs are queued", "run", run.ID)
		return nil
	case err == nil:
		d.log.Info("interrupted run queued again", "run", run.ID, "as", again.ID, "attempt", again.Attempt)
	}
	return err
}
