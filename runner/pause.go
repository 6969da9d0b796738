package runner

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/internal/boot"
	"sallyport/runner/hook"
)

// Pause keeps a hook from starting runs. Its runs in progress continue. A hook that queues its deliveries queues them
// meanwhile, and others are refused.
type Pause struct {
	Hook   string        `json:"hook"`
	Reason string        `json:"reason"`
	By     string        `json:"by"`
	Since  time.Time     `json:"since"`
	Until  time.Time     `json:"until,omitzero"` // by the wall clock as it is now; zero: until the hook is resumed
	Length time.Duration `json:"-"`              // zero: until the hook is resumed
	EndsUp time.Duration `json:"-"`              // with a length: the uptime of the machine at its end
}

// HookState is a hook as local administrators see it.
type HookState struct {
	Name    string   `json:"name"`
	Path    string   `json:"path,omitempty"` // empty if the configuration does not have the hook any more
	Callers []string `json:"callers"`
	Busy    string   `json:"busy,omitempty"` // the policy
	Paused  *Pause   `json:"paused,omitempty"`
	Running []string `json:"running"` // ids of runs
	Queued  []string `json:"queued"`
}

// Paused says that a delivery was refused because its hook is paused.
type Paused struct {
	Pause

	Left time.Duration // until the pause ends; zero: not known
}

func (e *Paused) Error() string { return "the hook " + e.Hook + " is paused: " + e.Reason }

// pauses are the hooks that are paused, as this server last recorded or read them. The store decides whether a run
// starts; these spare it the deliveries that it would refuse.
type pauses struct {
	reading sync.Mutex // from the store, so that an older list does not replace a newer one
	byHook  atomic.Pointer[map[string]Pause]
}

func (p *pauses) replace(list []Pause) {
	byHook := make(map[string]Pause, len(list))
	for _, one := range list {
		byHook[one.Hook] = one
	}
	p.byHook.Store(&byHook)
}

// find returns the pause of a hook that has not ended.
func (p *pauses) find(name string) (Pause, bool) {
	byHook := p.byHook.Load()
	if byHook == nil {
		return Pause{}, false
	}
	one, ok := (*byHook)[name]
	return one, ok && (one.Length == 0 || one.EndsUp > boot.Uptime())
}

// newPaused returns the refusal of a delivery to a paused hook.
func newPaused(p Pause) *Paused {
	e := &Paused{Pause: p}
	if p.Length > 0 {
		e.Left = max(p.EndsUp-boot.Uptime(), 0)
	}
	return e
}

// refusePaused returns *Paused if a hook is paused and queues nothing.
func (p *pauses) refusePaused(h *hook.Hook) error {
	if one, paused := p.find(h.Name); paused && h.Busy.Kind == hook.Reject {
		return newPaused(one)
	}
	return nil
}

// Pauses returns the hooks that are paused, by name.
func (r *Runner) Pauses(ctx context.Context) ([]Pause, error) { return r.store.Pauses(ctx) }

// PausedHooks returns the hooks that this server last knew as paused.
func (r *Runner) PausedHooks() map[string]bool {
	paused := map[string]bool{}
	if byHook := r.pauses.byHook.Load(); byHook != nil {
		for name := range *byHook {
			_, paused[name] = r.pauses.find(name)
		}
	}
	return paused
}

// PauseHook pauses a hook, or replaces its pause. After it returned without an error, no run of the hook starts.
func (r *Runner) PauseHook(ctx context.Context, p Pause) (Pause, error) {
	ctx = context.WithoutCancel(ctx)
	return awaitRecord(r.log, func() (Pause, error) {
		p, err := r.store.Pause(ctx, p)
		if err != nil {
			return p, err
		}
		r.log.Warn("hook paused", "hook", p.Hook, "by", p.By, "for", p.Length.String(), "reason", p.Reason)
		// The pause that it replaces may have just ended, with runs of other hooks behind those of this hook.
		r.promoter.promoteLater(ctx, allFlights, 0)
		r.rereadPauses(ctx)
		return p, nil
	})
}

// ResumeHook ends the pause of a hook, and starts its queued runs in their turn. It reports whether there was one.
func (r *Runner) ResumeHook(ctx context.Context, name string) (bool, error) {
	ctx = context.WithoutCancel(ctx)
	return awaitRecord(r.log, func() (bool, error) {
		paused, err := r.store.Resume(ctx, name)
		if err != nil {
			return false, err
		}
		if paused {
			r.log.Info("hook resumed", "hook", name)
		}
		r.promoter.promoteLater(ctx, allFlights, 0) // also without a pause: an earlier attempt may have failed half-way
		r.rereadPauses(ctx)
		return paused, nil
	})
}

// EndPauses ends the pauses whose time is over, and starts the queued runs of their hooks in their turn.
func (r *Runner) EndPauses(ctx context.Context) error {
	ended, err := r.store.EndPauses(ctx)
	if err != nil || len(ended) == 0 {
		return err
	}
	for _, name := range ended {
		r.log.Info("hook resumed: the time of its pause is over", "hook", name)
	}
	r.promoter.promoteLater(ctx, allFlights, 0)
	return r.readPauses(ctx)
}

// rereadPauses reads the pauses after a change, which is recorded whether or not they can be read.
func (r *Runner) rereadPauses(ctx context.Context) {
	if err := r.readPauses(ctx); err != nil {
		r.log.Error("pauses not read", "error", err)
	}
}

func (r *Runner) readPauses(ctx context.Context) error {
	r.pauses.reading.Lock()
	defer r.pauses.reading.Unlock()
	list, err := r.store.Pauses(ctx)
	if err == nil {
		r.pauses.replace(list)
	}
	return err
}

// recoverPauses reads the pauses that an earlier server recorded.
func (r *Runner) recoverPauses(ctx context.Context) error {
	if err := r.readPauses(ctx); err != nil {
		return err
	}
	for _, p := range *r.pauses.byHook.Load() {
		r.log.Warn("hook is paused", "hook", p.Hook, "by", p.By, "since", p.Since, "until", p.Until, "reason", p.Reason)
	}
	return nil
}

// Active returns the runs that are queued or running.
func (r *Runner) Active(ctx context.Context) ([]Run, error) { return r.store.Active(ctx) }
