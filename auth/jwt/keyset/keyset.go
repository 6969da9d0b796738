// Package keyset keeps the public keys of token issuers: it reads key sets, and
// fetches those that issuers publish, before they are needed and when a token
// names a key that is not there.
//
// An issuer's set is fetched over https and nothing else, from the address in
// the configuration or the one that the issuer's discovery document names. What
// is not fit for verifying signatures is left out, key by key. A fetch that
// fails leaves the keys standing that there are, but not for ever.
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
	fetchInterval     = 5 * time.Minute  // between fetches; a key that is withdrawn is good for so long
	firstRetry        = 2 * time.Second  // after a fetch that failed, and twice as long each time
	demandInterval    = 20 * time.Second // between fetches for unknown keys, which a flood of forged tokens cannot shorten
	keyLifetime       = 24 * time.Hour   // so long without a fetch that succeeds, keys are good
	maxWait           = 25 * time.Second // of a delivery, for a fetch: longer than demandInterval, for the first tokens by a new key
	maxWaiting        = 64               // deliveries; the others are refused at once
	maxWaitingPerSite = 32               // of them, those from one site
)

// ErrNoKey says that the set has no key for a token, which a newer set may have.
var ErrNoKey = errors.New("no such key")

// Source says where a set is fetched from. What is equal is the same set.
type Source struct {
	Issuer  string // whose discovery document names the address
	Address string // of the set itself; then without Issuer
	CA      string // CAs in PEM to trust instead of the system's
}

// String returns the address that the set is known by.
func (s Source) String() string { return s.Issuer + s.Address }

// Set is the key set of one issuer. It has no keys until a Keeper keeps it, and
// is safe for use by many at once.
type Set struct {
	source Source
	client *http.Client
	keys   *jwkset.MemoryJWKSet
	lookup keyfunc.Keyfunc
	wake   chan struct{} // asks keep for a fetch now

	mu      sync.Mutex
	kept    bool
	pending chan struct{} // closed at the end of the fetch that is queued or in progress; nil if there is none
	queued  *time.Timer   // wakes keep when it is time for a fetch that a token asked for
	waiting int           // deliveries, for pending
	from    map[netip.Addr]int
	asked   time.Time // when a token last led to a fetch, or will
	status  Status
}

// Status is how keeping a set goes.
type Status struct {
	Keys    []string // their kids
	LeftOut []string // what was fetched too, and is not fit to verify a signature
	Fetches int      // since the start, and how many of them
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
		wake: make(chan struct{}, 1), from: map[netip.Addr]int{},
	}, nil
}

// Status tells how keeping the set goes.
func (s *Set) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Keyfunc finds the key of a token by its kid, which the token must have, and
// refuses one whose alg is not the key's. It opens no connection. An ErrNoKey
// is worth an Await.
func (s *Set) Keyfunc(now time.Time) jwt.Keyfunc {
	return func(t *jwt.Token) (any, error) {
		status := s.Status()
		switch {
		case status.Fetched.IsZero() && status.Err == nil:
			return nil, fmt.Errorf("%w: the keys of %s have not been fetched yet", ErrNoKey, s.source)
		case status.Fetched.IsZero():
			return nil, fmt.Errorf("%w: the keys of %s could not be fetched yet: %w", ErrNoKey, s.source, status.Err)
		case status.Fetched.Before(now.Add(-keyLifetime)) || status.Fetched.After(now.Add(keyLifetime)):
			return nil, fmt.Errorf("%w: the keys of %s are too old, fetched %s: %w", ErrNoKey, s.source, status.Fetched.Format(time.RFC3339), status.Err)
		}
		if _, named := t.Header[jwkset.HeaderKID]; !named { // keyfunc would try every key
			return nil, errors.New("the token has no kid, by which the keys of an issuer are found")
		}
		key, err := s.lookup.Keyfunc(t)
		if errors.Is(err, jwkset.ErrKeyNotFound) {
			return nil, fmt.Errorf("%w: %s has none of the token's kid", ErrNoKey, s.source)
		}
		return key, err
	}
}

// Await waits for the end of the fetch that is queued or in progress, and queues
// one if there is none: for now, or for when the last that was asked for is long
// enough ago. It reports whether the set may have changed. How long a delivery from
// a site waits, and how many wait at once, is bounded.
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

// requestFetch returns what is closed at the end of a fetch, or nil for a delivery that
// may not wait. The fetch is queued in any case, so that it is not a matter of who
// asks next.
func (s *Set) requestFetch(site netip.Addr) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.kept {
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
			default: // it is awake
			}
		})
	}
	if s.waiting == maxWaiting || s.from[site] == maxWaitingPerSite {
		return nil
	}
	s.waiting++
	s.from[site]++
	return s.pending
}

// stopWaiting gives up the place of a delivery that waits.
func (s *Set) stopWaiting(site netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
	if s.from[site]--; s.from[site] == 0 {
		delete(s.from, site)
	}
}
