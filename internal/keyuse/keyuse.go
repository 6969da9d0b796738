// Package keyuse records when each key was last used. It shows which keys can be removed after a rotation.
//
// A [Table] has the uses in memory, for a bounded number of keys, and saves them to a [Store] once a minute and at the
// end. A server that is killed loses the uses of its last minute.
package keyuse

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"sallyport/internal/logging"
)

// Use is the last use of a key of a caller.
type Use struct {
	Caller string
	Kind   string // of the credential
	Key    string
	At     time.Time
}

// Store has the uses that were saved.
type Store interface {
	// SaveKeyUses saves uses. For each key, the latest one stays.
	SaveKeyUses(ctx context.Context, uses []Use) error
	// KeyUses returns all uses that were saved.
	KeyUses(ctx context.Context) ([]Use, error)
}

// Table has the uses that this process knows. Its zero value is empty and ready, and a nil one records nothing. Its
// methods may be called concurrently.
type Table struct {
	mu      sync.Mutex
	last    map[name]time.Time
	changed map[name]bool // since the last save
	failing logging.Repeated
}

type name struct{ caller, kind, key string }

const (
	maxKeys   = 10_000 // a sender may choose any key id; beyond this number, new keys are not recorded
	saveEvery = time.Minute
)

// Note records a use, unless a later one is known.
func (t *Table) Note(u Use) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.noteLocked(u); n != (name{}) {
		t.changed[n] = true
	}
}

func (t *Table) noteLocked(u Use) name {
	if t.last == nil {
		t.last, t.changed = map[name]time.Time{}, map[name]bool{}
	}
	n := name{u.Caller, u.Kind, u.Key}
	if last, known := t.last[n]; known && !u.At.After(last) || !known && len(t.last) >= maxKeys {
		return name{}
	}
	t.last[n] = u.At
	return n
}

// List returns all uses, ordered by caller, kind and key.
func (t *Table) List() []Use {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	uses := make([]Use, 0, len(t.last))
	for n, at := range t.last {
		uses = append(uses, Use{n.caller, n.kind, n.key, at})
	}
	SortUses(uses)
	return uses
}

// SortUses orders uses by caller, kind and key.
func SortUses(uses []Use) {
	slices.SortFunc(uses, func(a, b Use) int {
		return cmp.Or(cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
}

// Load adds the uses that an earlier server saved.
func (t *Table) Load(ctx context.Context, from Store) error {
	uses, err := from.KeyUses(ctx)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range uses {
		t.noteLocked(u)
	}
	return nil
}

// SaveRegularly saves changes once a minute, until ctx is done.
func (t *Table) SaveRegularly(ctx context.Context, in Store, log *slog.Logger) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.Save(ctx, in, log)
		}
	}
}

// Save saves the changes since the last time. If it fails, it logs the error, and the
// changes are saved the next time.
func (t *Table) Save(ctx context.Context, in Store, log *slog.Logger) {
	t.mu.Lock()
	var uses []Use
	for n := range t.changed {
		uses = append(uses, Use{n.caller, n.kind, n.key, t.last[n]})
	}
	t.changed = map[name]bool{}
	t.mu.Unlock()
	if len(uses) == 0 {
		return
	}
	SortUses(uses)
	err := in.SaveKeyUses(ctx, uses)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		if n := t.failing.Over(); n > 0 {
			log.Info("last uses of keys are saved again", "failures", n)
		}
		return
	}
	if t.failing.IsNew(err) {
		log.Error("last uses of keys not saved", "error", err)
	}
	for _, u := range uses {
		t.changed[name{u.Caller, u.Kind, u.Key}] = true
	}
}
