package runner

import (
	"context"
	"sync"

	"sallyport/internal/guard"
)

// probe asks the supervisor whether it answers. One question at a time is in progress, for any number of callers.
type probe struct {
	mu    sync.Mutex
	asked *question // in progress
}

// question is a question to the supervisor. Its answer is err once done is closed.
type question struct {
	done chan struct{}
	err  error
}

// Answers reports whether the supervisor answers before ctx is done.
func (r *Runner) Answers(ctx context.Context) bool {
	q := r.askSupervisor()
	select {
	case <-q.done:
		return q.err == nil
	case <-ctx.Done():
		return false
	}
}

// askSupervisor returns the question in progress, or asks a new one.
func (r *Runner) askSupervisor() *question {
	r.probe.mu.Lock()
	defer r.probe.mu.Unlock()
	if r.probe.asked != nil {
		return r.probe.asked
	}
	q := &question{done: make(chan struct{})}
	r.probe.asked = q
	go func() {
		_, q.err = guard.Call(r.log, r.procs.List)
		r.probe.mu.Lock()
		r.probe.asked = nil
		r.probe.mu.Unlock()
		close(q.done)
	}()
	return q
}
