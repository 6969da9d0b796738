package supervisor

import (
	"fmt"
	"slices"
	"sync"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// hookFile has the hooks of the configuration file.
type hookFile struct {
	load func() (map[string]*hook.Hook, error)

	mu     sync.Mutex // held while the file is read, so that an order waits for its hook
	hooks  map[string]*hook.Hook
	before map[string]*hook.Hook // the hooks that the server used at the last reload, and may still use
}

// loadAhead reads the hooks before the first order needs them.
func (f *hookFile) loadAhead() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read()
}

func (f *hookFile) read() error {
	hooks, err := f.load()
	if err == nil {
		f.hooks = hooks
	}
	return err
}

// reload reads the hooks again, before the server uses them. The server may never use them: until then it uses the
// hooks with the hook.Digest inForce, however often it fails to load the new ones.
func (f *hookFile) reload(inForce string) (digest string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.hooks
	if f.before != nil && hook.Digest(f.before) == inForce {
		before = f.before
	}
	if err := f.read(); err != nil {
		return "", err
	}
	f.before = before
	return hook.Digest(f.hooks), nil
}

// findHook returns the hook of an order. If the server knows another version of the hook, the file is read again,
// because one of the two may have read it earlier than the other.
func (f *hookFile) findHook(o *runner.Order) (*hook.Hook, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for again := false; ; again = true {
		h := f.hooks[o.Hook]
		if old := f.before[o.Hook]; old != nil && old.Digest() == o.Digest {
			h = old
		}
		switch {
		case h != nil && h.Digest() == o.Digest:
			if !h.Unauthenticated && !slices.Contains(h.Callers, o.Caller) {
				return nil, fmt.Errorf("%w: the file does not allow the caller %q to start the hook %q",
					runner.ErrRefused, o.Caller, o.Hook)
			}
			return h, nil
		case again && h == nil:
			return nil, fmt.Errorf("%w: the file has no hook %q", runner.ErrNotNow, o.Hook)
		case again:
			return nil, fmt.Errorf("%w: the hook %q has changed in the file since the server read it", runner.ErrNotNow,
				o.Hook)
		}
		if err := f.read(); err != nil {
			return nil, fmt.Errorf("%w: reading the hooks: %w", runner.ErrNotNow, err)
		}
	}
}
