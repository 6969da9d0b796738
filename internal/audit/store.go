package audit

import (
	"context"
	"errors"
	"fmt"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// Store returns a store that writes each start and cancellation to the audit log first:
// without its line, nothing is started or cancelled.
func Store(s runner.Store, l *Log) runner.Store { return &audited{s, l} }

type audited struct {
	runner.Store

	log *Log
}

// Admit records a run that was allowed. Every run starts here, whether it was requested
// or repeats a run that was interrupted.
func (s *audited) Admit(
	ctx context.Context, r runner.Run, c runner.Claim, p hook.Policy, in runner.Feed,
) (runner.Admission, error) {
	line := Line{Reason: "on_interrupted: rerun"}
	if r.Attempt == 0 {
		line = requestLine(ctx)
	}
	line.Decision, line.Action = Allowed, "start"
	line.Caller, line.Hook, line.Params, line.Run, line.RerunOf = r.Caller, r.Hook, Digest(r.Params), r.ID, r.RerunOf
	if err := s.writeAllowed(ctx, line); err != nil {
		return runner.Admission{}, err
	}
	a, err := s.Store.Admit(ctx, r, c, p, in)
	switch {
	case errors.Is(err, runner.ErrUncertain): // it may have been recorded
	case err != nil:
		s.writeVoid(line, err.Error())
	case a.Run.ID != r.ID:
		s.writeVoid(line, "joined run "+a.Run.ID)
	}
	for _, old := range a.Superseded { // the line above allowed it
		s.log.decisions.queue.Send(entry{lineForReplaced(line, old), kind{reason: "replaced", caller: line.Caller}})
	}
	if a.Stop != nil && s.writeAllowed(ctx, lineForReplaced(line, *a.Stop)) != nil {
		a.Stop = nil // it may end by itself; Log.Err returns why lines cannot be written
	}
	return a, err
}

// lineForReplaced returns the line about a run that is cancelled for the run of another line.
func lineForReplaced(by Line, old runner.Run) Line {
	by.Reason = "replaced by run " + by.Run
	by.Action, by.Run, by.RerunOf, by.Params = "cancel", old.ID, "", Digest(old.Params)
	return by
}

// Cancel cancels a queued or running run. Every cancellation starts here.
func (s *audited) Cancel(ctx context.Context, id string) (runner.Run, bool, error) {
	line := requestLine(ctx)
	line.Decision, line.Action, line.Run = Allowed, "cancel", id
	if err := s.writeAllowed(ctx, line); err != nil {
		return runner.Run{}, false, err
	}
	run, cancelled, err := s.Store.Cancel(ctx, id)
	if err != nil && !errors.Is(err, runner.ErrUncertain) { // else it may have been recorded
		s.writeVoid(line, err.Error())
	}
	return run, cancelled, err
}

func (s *audited) writeAllowed(ctx context.Context, line Line) error {
	if err := s.log.Write(ctx, line); err != nil {
		return fmt.Errorf("%w: writing the audit log: %w", runner.ErrUnavailable, err)
	}
	return nil
}

// writeVoid records that what was allowed is not done. It does not wait for the write,
// because nothing depends on it.
func (s *audited) writeVoid(line Line, reason string) {
	line.Decision, line.Reason = Void, reason
	s.log.decisions.queue.Send(entry{line, kind{reason: "void", caller: line.Caller}})
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
