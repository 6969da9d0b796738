package runner

import (
	"context"
	"log/slog"
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

// Pauses pauses hooks and ends their pauses. It knows the pauses as this server last recorded or read them: the store
// decides whether a run starts, and they spare it the deliveries that it would refuse.
type Pauses struct {
	store    Store
	promoter *promoter
	log      *slog.Logger
	reading  sync.Mutex // from the store, so that an older list does not replace a newer one
	byHook   atomic.Pointer[map[string]Pause]
}

func (p *Pauses) replace(list []Pause) {
	byHook := make(map[string]Pause, len(list))
	for _, one := range list {
		byHook[one.Hook] = one
	}
	p.byHook.Store(&byHook)
}

// find returns the pause of a hook that has not ended.
func (p *Pauses) find(name string) (Pause, bool) {
	byHook := p.byHook.Load()
	if byHook == nil {
		return Pause{}, false
	}
	one, ok := (*byHook)[name]
	return one, ok && (one.Length == 0 || one.EndsUp > boot.Uptime())
}

// findAll returns the pauses that have not ended.
func (p *Pauses) findAll() (all []Pause) {
	for name := range p.PausedHooks() {
		if one, paused := p.find(name); paused {
			all = append(all, one)
		}
	}
	return all
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
func (p *Pauses) refusePaused(h *hook.Hook) error {
	if one, paused := p.find(h.Name); paused && h.Busy.Kind == hook.Reject {
		return newPaused(one)
	}
	return nil
}

// List returns the pauses that have not ended, by the names of their hooks.
func (p *Pauses) List(ctx context.Context) ([]Pause, error) { return p.store.Pauses(ctx) }

// PausedHooks returns the hooks that this server last knew as paused.
func (p *Pauses) PausedHooks() map[string]bool {
	paused := map[string]bool{}
	if byHook := p.byHook.Load(); byHook != nil {
		for name := range *byHook {
			_, paused[name] = p.find(name)
		}
	}
	return paused
}

// PauseHook pauses a hook, or replaces its pause. After it returned without an error, no run of the hook starts.
func (p *Pauses) PauseHook(ctx context.Context, one Pause) (Pause, error) {
	ctx = context.WithoutCancel(ctx)
	return awaitRecord(p.log, func() (Pause, error) {
		one, err := p.store.Pause(ctx, one)
		if err != nil {
			return one, err
		}
		p.log.Warn("hook paused", "hook", one.Hook, "by", one.By, "for", one.Length.String(), "reason", one.Reason)
		// The pause that it replaces may have just ended, with runs of other hooks behind those of this hook.
		p.applyChange(ctx)
		return one, nil
	})
}

// ResumeHook ends the pause of a hook, and starts its queued runs in their turn. It reports whether there was one.
func (p *Pauses) ResumeHook(ctx context.Context, name string) (bool, error) {
	ctx = context.WithoutCancel(ctx)
	return awaitRecord(p.log, func() (bool, error) {
		paused, err := p.store.Resume(ctx, name)
		if err != nil {
			return false, err
		}
		if paused {
			p.log.Info("hook resumed", "hook", name)
		}
		p.applyChange(ctx) // also without a pause: an earlier attempt may have failed half-way
		return paused, nil
	})
}

// EndPauses ends the pauses whose time is over, and starts the queued runs of their hooks in their turn.
func (p *Pauses) EndPauses(ctx context.Context) error {
	ended, err := p.store.EndPauses(ctx)
	if err != nil || len(ended) == 0 {
		return err
	}
	for _, name := range ended {
		p.log.Info("hook resumed: the time of its pause is over", "hook", name)
	}
	p.promoter.promoteLater(ctx, allFlights, 0)
	return p.readPauses(ctx)
}

// applyChange starts the queued runs that may start after a change, and reads the pauses. The change is recorded
// whether or not they can be read.
func (p *Pauses) applyChange(ctx context.Context) {
	p.promoter.promoteLater(ctx, allFlights, 0)
	if err := p.readPauses(ctx); err != nil {
		p.log.Error("pauses not read", "error", err)
	}
}

func (p *Pauses) readPauses(ctx context.Context) error {
	p.reading.Lock()
	defer p.reading.Unlock()
	list, err := p.store.Pauses(ctx)
	if err == nil {
		p.replace(list)
	}
	return err
}

// recoverPauses reads the pauses that an earlier server recorded.
func (p *Pauses) recoverPauses(ctx context.Context) error {
	if err := p.readPauses(ctx); err != nil {
		return err
	}
	for _, one := range *p.byHook.Load() {
		p.log.Warn("hook is paused",
			"hook", one.Hook, "by", one.By, "since", one.Since, "until", one.Until, "reason", one.Reason)
	}
	return nil
}

// Pauses returns the pauses of hooks.
func (r *Runner) Pauses() *Pauses { return r.pauses }

// Active returns the runs that are queued or running.
func (r *Runner) Active(ctx context.Context) ([]Run, error) { return r.store.Active(ctx) }
