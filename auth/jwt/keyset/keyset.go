// Package keyset has the public keys of token issuers: it reads key sets ([Parse]), and fetches those that
// issuers publish ([Set]), at the start, every few minutes, and when a token names an unknown key.
//
// A [Keeper] fetches the sets of the configuration in force. [Set.Keyfunc] finds a key without opening a
// connection; a delivery with an unknown key may [Set.Await] the next fetch, and forged tokens cannot make
// fetches more frequent. A set is fetched over https only, from the address in the configuration or the one in
// the issuer's discovery document, and redirects are not followed. Keys that cannot verify a signature are left
// out, one by one. After a fetch that fails, the keys of the last fetch are used for one day, and then none.
package keyset

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
)

const (
	fetchInterval     = 5 * time.Minute  // between fetches; a withdrawn key is valid until the next one
	firstRetry        = 2 * time.Second  // after a fetch that failed; twice as long each time
	demandInterval    = 20 * time.Second // between fetches for unknown keys; forged tokens cannot shorten it
	keyLifetime       = 24 * time.Hour   // of keys without another successful fetch
	maxWait           = 25 * time.Second // of a delivery for a fetch: above demandInterval, for tokens by a new key
	maxWaiting        = 64               // deliveries; others are refused at once
	maxWaitingPerSite = 32               // deliveries from one site
)

// ErrNoKey is the error of a token by a key that is not in the set, but may be in a newer one.
var ErrNoKey = errors.New("no such key")

// Source says where a set is fetched from. Equal sources share one set.
type Source struct {
	Issuer  string // its discovery document names the address
	Address string // of the set itself; then without Issuer
	CA      string // CAs in PEM to trust instead of the system's
}

// String returns the address that identifies the set in the log.
func (s Source) String() string { return s.Issuer + s.Address }

// Set is the key set of one issuer. It has no keys until a [Keeper] fetches it. Several goroutines may use it.
type Set struct {
	source Source
	client *http.Client
	keys   *jwkset.MemoryJWKSet
	lookup keyfunc.Keyfunc
	wake   chan struct{} // asks keepFetching for a fetch now

	mu      sync.Mutex
	keepers int
	pending chan struct{} // closed at the end of the fetch that is queued or in progress; nil without one
	queued  *time.Timer   // wakes keepFetching for a fetch that a token has asked for
	waiting waiting       // deliveries that wait for pending
	asked   time.Time     // when a token last led to a fetch, or will
	status  Status
}

// waiting counts deliveries that wait.
type waiting struct {
	total int
	from  map[netip.Addr]int // by site; only sites with some
}

// addDelivery counts a delivery, if it may wait.
func (w *waiting) addDelivery(site netip.Addr) bool {
	if w.total == maxWaiting || w.from[site] == maxWaitingPerSite {
		return false
	}
	w.total++
	w.from[site]++
	return true
}

func (w *waiting) removeDelivery(site netip.Addr) {
	w.total--
	if w.from[site]--; w.from[site] == 0 {
		delete(w.from, site)
	}
}

// Status is the state of a set and of its fetches.
type Status struct {
	Keys    []string // their kids
	LeftOut []string // that were fetched too, and cannot verify a signature
	Fetches int      // since the start, and those of them that failed
	Failed  int

	Fetched time.Time // when the keys were
	Tried   time.Time // when the last attempt ended
	Err     error     // why it failed; nil if it did not
	Next    time.Time // when the next is due
}

// New returns a set that has not been fetched. The error is about the CA.
func New(source Source) (*Set, error) {
	client, err := newHTTPClient(source.CA)
	if err != nil {
		return nil, err
	}
	keys := jwkset.NewMemoryStorage()
	lookup, err := keyfunc.New(keyfunc.Options{Storage: keys, UseWhitelist: []jwkset.USE{jwkset.UseSig}})
	if err != nil {
		return nil, err
	}
	return &Set{
		source: source, client: client, keys: keys, lookup: lookup,
		wake: make(chan struct{}, 1), waiting: waiting{from: map[netip.Addr]int{}},
	}, nil
}

// Status returns the state of the set.
func (s *Set) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Keyfunc finds the key of a token by its kid, which is required, and refuses a token with another alg than
// the key. It opens no connection. After an [ErrNoKey], the caller may [Set.Await] a newer set.
func (s *Set) Keyfunc(now time.Time) jwt.Keyfunc {
	return func(t *jwt.Token) (any, error) {
		status := s.Status()
		switch {
		case status.Fetched.IsZero() && status.Err == nil:
			return nil, fmt.Errorf("%w: the keys of %s have not been fetched yet", ErrNoKey, s.source)
		case status.Fetched.IsZero():
			return nil, fmt.Errorf("%w: the keys of %s could not be fetched yet: %w", ErrNoKey, s.source, status.Err)
		case status.Fetched.Before(now.Add(-keyLifetime)) || status.Fetched.After(now.Add(keyLifetime)):
			fetched := status.Fetched.Format(time.RFC3339)
			return nil, fmt.Errorf("%w: the keys of %s are too old, fetched %s: %w",
				ErrNoKey, s.source, fetched, status.Err)
		}
		if _, named := t.Header[jwkset.HeaderKID]; !named { // keyfunc would try every key
			return nil, errors.New("the token has no kid, by which the keys of an issuer are found")
		}
		key, err := s.lookup.Keyfunc(t)
		if errors.Is(err, jwkset.ErrKeyNotFound) {
			return nil, fmt.Errorf("%w: %s has no key with the kid of the token", ErrNoKey, s.source)
		}
		return key, err
	}
}

// Await waits for the end of the fetch that is queued or in progress. Without such a fetch, it queues one:
// for now, or for when the last one by demand is long enough ago. It reports whether the set may have changed.
// The time that a delivery waits, and the number of deliveries that wait, also from one site, are bounded.
func (s *Set) Await(ctx context.Context, site netip.Addr) bool {
	done := s.requestFetch(site)
	if done == nil {
		return false
	}
	defer s.stopWaiting(site)
	timeout := time.NewTimer(maxWait)
	defer timeout.Stop()
	select {
	case <-done:
		return true
	case <-timeout.C:
	case <-ctx.Done():
	}
	return false
}

// requestFetch queues a fetch, and returns a channel that is closed at its end, or nil for a delivery that may
// not wait. The fetch is queued in both cases, so that it does not depend on the next delivery.
func (s *Set) requestFetch(site netip.Addr) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keepers == 0 {
		return nil
	}
	if s.pending == nil {
		now := time.Now()
		pause := max(0, s.asked.Add(demandInterval).Sub(now))
		s.asked = now.Add(pause)
		s.pending = make(chan struct{})
		s.queued = time.AfterFunc(pause, func() {
			select {
			case s.wake <- struct{}{}:
			default: // it is awake already
			}
		})
	}
	if !s.waiting.addDelivery(site) {
		return nil
	}
	return s.pending
}

// stopWaiting frees the place of a delivery that waited.
func (s *Set) stopWaiting(site netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting.removeDelivery(site)
}
