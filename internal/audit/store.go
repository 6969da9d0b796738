package audit

import (
	"context"
	"errors"
	"fmt"

	"sallyport/runner"
)

// Store is a record of runs of which each change that somebody decides is
// written to the audit first: nothing is started or cancelled that is not there.
func Store(s runner.Store, l *Log) runner.Store { return &audited{s, l} }

type audited struct {
	runner.Store

	log *Log
}

// Admit records a run that was allowed. It is where every run begins, whether
// somebody asked for it or it repeats one that was interrupted.
func (s *audited) Admit(ctx context.Context, r runner.Run, c runner.Claim, p runner.Policy, in runner.Feed) (runner.Admission, error) {
	line := Line{Reason: "on_interrupted: rerun"}
	if r.Attempt == 0 {
		line = asking(ctx)
	}
	line.Decision, line.Action = Allowed, "start"
	line.Caller, line.Hook, line.Params, line.Run, line.RerunOf = r.Caller, r.Hook, Digest(r.Params), r.ID, r.RerunOf
	if err := s.write(ctx, line); err != nil {
		return runner.Admission{}, err
	}
	a, err := s.Store.Admit(ctx, r, c, p, in)
	switch {
	case errors.Is(err, runner.ErrUncertain): // it may be done yet
	case err != nil:
		s.void(line, err.Error())
	case a.Run.ID != r.ID:
		s.void(line, "joined run "+a.Run.ID)
	}
	for _, old := range a.Superseded { // that they end was decided above
		s.log.decisions.queue.Send(entry{replaced(line, old), kind{reason: "replaced", caller: line.Caller}})
	}
	if a.Stop != nil && s.write(ctx, replaced(line, *a.Stop)) != nil {
		a.Stop = nil // it may end by itself; the log says that nothing can be written
	}
	return a, err
}

// replaced says of a run that it is cancelled for the one that a line is about.
func replaced(by Line, old runner.Run) Line {
	by.Action, by.Run, by.RerunOf, by.Params, by.Reason = "cancel", old.ID, "", Digest(old.Params), "replaced by run "+by.Run
	return by
}

// Cancel is how every cancelling begins, of queued runs and of running ones.
func (s *audited) Cancel(ctx context.Context, id string) (runner.Run, bool, error) {
	line := asking(ctx)
	line.Decision, line.Action, line.Run = Allowed, "cancel", id
	if err := s.write(ctx, line); err != nil {
		return runner.Run{}, false, err
	}
	run, cancelled, err := s.Store.Cancel(ctx, id)
	if err != nil {
		s.void(line, err.Error())
	}
	return run, cancelled, err
}

func (s *audited) write(ctx context.Context, line Line) error {
	if err := s.log.Write(ctx, line); err != nil {
		return fmt.Errorf("%w: writing the audit: %w", runner.ErrUnavailable, err)
	}
	return nil
}

// void says that what was allowed is not done. Nothing hangs on it, so nobody
// waits for it.
func (s *audited) void(line Line, reason string) {
	line.Decision, line.Reason = Void, reason
	s.log.decisions.queue.Send(entry{line, kind{reason: "void", caller: line.Caller}})
}

type askingKey struct{}

// Asking returns a context for what a request asks for. what returns the line
// that describes the request, as far as it is known by then.
func Asking(ctx context.Context, what func() Line) context.Context {
	return context.WithValue(ctx, askingKey{}, what)
}

func asking(ctx context.Context) Line {
	if what, ok := ctx.Value(askingKey{}).(func() Line); ok {
		return what()
	}
	return Line{}
}
