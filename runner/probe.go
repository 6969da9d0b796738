package runner

import (
	"context"
	"log/slog"
	"sync/atomic"

	"sallyport/internal/guard"
)

// probe asks the supervisor whether it answers. One question at a time is in progress, for any number of callers.
type probe struct {
	procs Processes
	log   *slog.Logger
	asked atomic.Pointer[question] // in progress
}

// question is a question to the supervisor. Its answer is err once done is closed.
type question struct {
	done chan struct{}
	err  error
}

// answers reports whether the supervisor answers before ctx is done.
func (p *probe) answers(ctx context.Context) bool {
	q := p.askSupervisor()
	select {
	case <-q.done:
		return q.err == nil
	case <-ctx.Done():
		return false
	}
}

// askSupervisor returns the question in progress, or asks a new one.
func (p *probe) askSupervisor() *question {
	q := &question{done: make(chan struct{})}
	for !p.asked.CompareAndSwap(nil, q) {
		if other := p.asked.Load(); other != nil {
			return other
		}
	}
	go func() {
		_, q.err = guard.Call(p.log, p.procs.List)
		p.asked.Store(nil)
		close(q.done)
	}()
	return q
}
