package keyset

import (
	"context"
	"log/slog"
	"slices"
	"time"
)

// Keeper fetches the sets of the configuration in force, again and again.
type Keeper struct {
	log  *slog.Logger
	kept map[*Set]context.CancelFunc
}

// NewKeeper returns a Keeper without sets.
func NewKeeper(log *slog.Logger) *Keeper {
	return &Keeper{log: log, kept: map[*Set]context.CancelFunc{}}
}

// Keep fetches the sets that are new until ctx is done, and stops fetching those that are not among them. Calls
// must not overlap.
func (k *Keeper) Keep(ctx context.Context, sets map[Source]*Set) {
	for _, s := range sets {
		if _, ok := k.kept[s]; !ok {
			ctx, cancel := context.WithCancel(ctx)
			k.kept[s] = cancel
			s.beginKeeping()
			go s.keepFetching(ctx, k.log)
		}
	}
	for s, cancel := range k.kept {
		if sets[s.source] != s {
			cancel()
			delete(k.kept, s)
		}
	}
}

// keepFetching fetches the set until ctx is done.
func (s *Set) keepFetching(ctx context.Context, log *slog.Logger) {
	defer s.releaseWaiting()
	log = log.With("issuer", s.source.String())
	for retry := firstRetry; ; s.beginFetch() {
		got, err := s.fetchKeys(ctx)
		if ctx.Err() != nil {
			return
		}
		before, pause := s.Status(), fetchInterval
		if err == nil {
			err = s.keys.KeyReplaceAll(ctx, got.keys)
		}
		switch {
		case err != nil:
			pause, retry = retry, min(2*retry, fetchInterval)
			log.Warn("keys not fetched", "error", err, "retry_s", pause.Seconds(), "keys", before.Keys)
		case before.Err != nil || !slices.Equal(got.kids, before.Keys) || !slices.Equal(got.leftOut, before.LeftOut):
			retry = firstRetry
			level := slog.LevelInfo
			if len(got.leftOut) > 0 {
				level = slog.LevelWarn
			}
			log.Log(ctx, level, "keys fetched", "keys", got.kids, "left_out", got.leftOut)
		}
		s.endFetch(got, err, pause)
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-time.After(pause):
		}
	}
}

// beginKeeping records that a keeper begins with its first fetch. An earlier one may not have ended yet.
func (s *Set) beginKeeping() {
	s.mu.Lock()
	s.keepers++
	s.mu.Unlock()
	s.beginFetch()
}

// beginFetch records that a fetch begins.
func (s *Set) beginFetch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Fetches++
	if s.pending == nil {
		s.pending = make(chan struct{})
	}
	if s.queued != nil {
		s.queued.Stop()
	}
	select { // this fetch also serves the requests of the meantime
	case <-s.wake:
	default:
	}
}

// endFetch records the result of a fetch, and when the next one is due.
func (s *Set) endFetch(got *fetched, err error, pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Tried, s.status.Err = time.Now().Round(0), err // wall clock, because a machine may sleep
	s.status.Next = s.status.Tried.Add(pause)
	if err == nil {
		s.status.Keys, s.status.LeftOut, s.status.Fetched = got.kids, got.leftOut, s.status.Tried
	} else {
		s.status.Failed++
	}
	if s.pending != nil { // else another keeper has released those that waited
		close(s.pending)
		s.pending = nil
	}
}

// releaseWaiting ends the waiting of deliveries, because no fetch of this keeper follows.
func (s *Set) releaseWaiting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keepers--
	if s.queued != nil {
		s.queued.Stop()
	}
	if s.pending != nil {
		close(s.pending)
		s.pending = nil
	}
}
