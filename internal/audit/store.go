package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// ConfirmingStore is a store that asks before it commits an admission.
type ConfirmingStore interface {
	runner.Store
	// AdmitIf is Admit, except that it calls allow with the admission before it commits. If allow returns an error,
	// nothing is recorded, and AdmitIf returns an error.
	AdmitIf(
		ctx context.Context, r runner.Run, c runner.Claim, p hook.Policy, in runner.Feed,
		allow func(runner.Admission) error,
	) (runner.Admission, error)
}

// Store returns a store that writes each start, join, cancellation, pause and resumption to the audit log first:
// without its line, nothing is started, joined, cancelled, paused or resumed. A line about what was then not done is
// followed by a line Void.
func Store(s ConfirmingStore, l *Log) runner.Store { return &audited{s, l} }

type audited struct {
	ConfirmingStore

	log *Log
}

// Admit records a run that was allowed. Every run starts here, whether it was requested or repeats a run that was
// interrupted. Only the transaction of the store finds out which runs the run joins or replaces, so the lines about
// those are written before it commits.
func (s *audited) Admit(
	ctx context.Context, r runner.Run, c runner.Claim, p hook.Policy, in runner.Feed,
) (runner.Admission, error) {
	line := Line{Reason: "on_interrupted: rerun"}
	if r.Attempt == 0 {
		line = requestLine(ctx)
	}
	line.Decision, line.Action = Allowed, "start"
	line.Caller, line.Hook, line.Params, line.Run, line.RerunOf = r.Caller, r.Hook, Digest(r.Params), r.ID, r.RerunOf
	written, failed := s.writeAllowed(ctx, line)
	if failed != nil {
		return runner.Admission{}, failed
	}
	a, err := s.AdmitIf(ctx, r, c, p, in, func(a runner.Admission) error {
		var others []Line
		others, failed = s.writeAllowed(ctx, linesForOthers(line, a)...)
		written = append(written, others...)
		if failed != nil {
			return errNoLine // the store can record, and the operations that share the transaction do not fail
		}
		return nil
	})
	switch {
	case failed != nil:
		err = failed
		s.writeVoid(err.Error(), written...)
	case errors.Is(err, runner.ErrUncertain): // it may have been recorded
	case err != nil:
		s.writeVoid(err.Error(), written...)
	case a.Run.ID != r.ID:
		s.writeVoid("joined run "+a.Run.ID, line)
	}
	return a, err
}

var errNoLine = errors.New("a line of the audit log cannot be written")

// linesForOthers returns the lines about the other runs that an admission changes: the one that it joins, and those
// that it replaces. start is the line about its own run.
func linesForOthers(start Line, a runner.Admission) (lines []Line) {
	if a.Joined {
		join := start
		join.Action, join.Run, join.RerunOf, join.Reason = "join", a.Run.ID, "", "joined by run "+start.Run
		lines = append(lines, join)
	}
	replaced := a.Superseded
	if a.Stop != nil {
		replaced = append([]runner.Run{*a.Stop}, replaced...)
	}
	for _, old := range replaced {
		cancel := start
		cancel.Action, cancel.Hook, cancel.Run, cancel.RerunOf = "cancel", old.Hook, old.ID, ""
		cancel.Params, cancel.Reason = Digest(old.Params), "replaced by run "+start.Run
		lines = append(lines, cancel)
	}
	return lines
}

// Cancel cancels a queued or running run. Every cancellation that is requested starts here.
func (s *audited) Cancel(ctx context.Context, id string) (runner.Run, bool, error) {
	line := requestLine(ctx)
	line.Decision, line.Action, line.Run = Allowed, "cancel", id
	if _, err := s.writeAllowed(ctx, line); err != nil {
		return runner.Run{}, false, err
	}
	run, cancelled, err := s.ConfirmingStore.Cancel(ctx, id)
	switch {
	case errors.Is(err, runner.ErrUncertain): // it may have been recorded
	case err != nil:
		s.writeVoid(err.Error(), line)
	case !cancelled && run.State.Ended():
		s.writeVoid("the run had ended as "+string(run.State), line)
	}
	return run, cancelled, err
}

// Pause pauses a hook.
func (s *audited) Pause(ctx context.Context, p runner.Pause) (runner.Pause, error) {
	line := requestLine(ctx)
	line.Decision, line.Action, line.Hook, line.Reason = Allowed, "pause", p.Hook, p.Reason
	if _, err := s.writeAllowed(ctx, line); err != nil {
		return p, err
	}
	p, err := s.ConfirmingStore.Pause(ctx, p)
	if err != nil && !errors.Is(err, runner.ErrUncertain) {
		s.writeVoid(err.Error(), line)
	}
	return p, err
}

// Resume ends the pause of a hook.
func (s *audited) Resume(ctx context.Context, name string) (bool, error) {
	line := requestLine(ctx)
	line.Decision, line.Action, line.Hook = Allowed, "resume", name
	if _, err := s.writeAllowed(ctx, line); err != nil {
		return false, err
	}
	paused, err := s.ConfirmingStore.Resume(ctx, name)
	switch {
	case errors.Is(err, runner.ErrUncertain): // it may have been recorded
	case err != nil:
		s.writeVoid(err.Error(), line)
	case !paused:
		s.writeVoid("the hook was not paused", line)
	}
	return paused, err
}

// Finish records the end of a run. A run that was to be cancelled may have ended before.
func (s *audited) Finish(
	ctx context.Context, id string, state runner.State, e runner.End, c runner.AfterClaims, q runner.AfterQueue,
) (ended runner.Run, next *runner.Run, err error) {
	ended, next, err = s.ConfirmingStore.Finish(ctx, id, state, e, c, q)
	s.voidCancel(ended)
	return ended, next, err
}

// voidCancel voids the cancellation of a run that had ended in another way. It does nothing for the zero run.
func (s *audited) voidCancel(ended runner.Run) {
	if ended.Wish != "" && ended.State != ended.Wish {
		s.writeVoid("the run had ended as "+string(ended.State), Line{Action: "cancel", Hook: ended.Hook, Run: ended.ID})
	}
}

// FinishAndRetry records that a run failed, and queues the next attempt at it. The attempt starts without a request.
func (s *audited) FinishAndRetry(
	ctx context.Context, run runner.Run, e runner.End, again runner.Attempt, q runner.AfterQueue,
) (ended runner.Run, next *runner.Run, err error) {
	line := Line{
		Decision: Allowed, Action: "start", Caller: run.Caller, Hook: run.Hook, Params: Digest(run.Params),
		Run: again.ID, RerunOf: run.ID, Reason: "retry",
	}
	if _, err := s.writeAllowed(ctx, line); err != nil {
		return runner.Run{}, nil, err
	}
	ended, next, err = s.ConfirmingStore.FinishAndRetry(ctx, run, e, again, q)
	switch {
	case errors.Is(err, runner.ErrUncertain): // it may have been recorded
	case err != nil:
		s.writeVoid(err.Error(), line)
	case ended.Again != again.ID:
		s.writeVoid("the run had ended as "+string(ended.State), line)
	}
	s.voidCancel(ended)
	return ended, next, err
}

// writeAllowed returns once the lines are on the disk. After an error, it returns those that are.
func (s *audited) writeAllowed(ctx context.Context, lines ...Line) (written []Line, err error) {
	errs := make([]error, len(lines))
	var all sync.WaitGroup
	for i, line := range lines { // at once, so that they share a sync
		all.Go(func() { errs[i] = s.log.Write(ctx, line) })
	}
	all.Wait()
	for i, line := range lines {
		if errs[i] == nil {
			written = append(written, line)
		}
	}
	if err := cmp.Or(errs...); err != nil {
		return written, fmt.Errorf("%w: writing the audit log: %w", runner.ErrUnavailable, err)
	}
	return written, nil
}

// writeVoid records that what the lines allowed is not done. It does not wait for the write, because nothing depends
// on it.
func (s *audited) writeVoid(reason string, lines ...Line) {
	for _, line := range lines {
		line.Decision, line.Reason = Void, reason
		s.log.decisions.queue.Send(entry{line: line})
	}
}

type requestKey struct{}

// WithRequest returns a context for the changes that a request asks for. what returns the
// line that describes the request, as far as it is known when it is called.
func WithRequest(ctx context.Context, what func() Line) context.Context {
	return context.WithValue(ctx, requestKey{}, what)
}

func requestLine(ctx context.Context) Line {
	if what, ok := ctx.Value(requestKey{}).(func() Line); ok {
		return what()
	}
	return Line{}
}
