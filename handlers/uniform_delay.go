package handlers

import (
	"context"
	"net/http"
	"sync"
	"time"

	"sallyport/auth"
	"sallyport/runner"
)

// The time to check a credential depends on what is wrong with it: without a signature nothing is computed, with a
// wrong signature of a known caller the body is hashed, perhaps for many keys. Two measures hide this from an
// outsider. Package auth does the same work for each refusal. And a refusal is answered at a time that depends only
// on the hook and the length of the body: at the first multiple of a delay that is longer than the check of any
// credential.
const (
	minDelay     = 5 * time.Millisecond // enough for a few keys
	maxDelay     = 4 * time.Second      // less than the time for the last answers when the server ends
	delayPerByte = 10 * time.Nanosecond // for each byte hashed: 100 MB/s, a fraction of what a slow processor does

	// beat is the interval at which all delayed refusals are checked, so that the time of an answer depends only on
	// when its body had arrived.
	beat = time.Millisecond
)

// uniformDelay delays the answers to refused credentials until a time that does not depend on what is wrong with them.
type uniformDelay struct {
	callers *auth.Callers
	runner  *runner.Runner
	beats   *beats
	now     func() time.Time
}

// delaySpan returns a delay that depends only on the length of the body and the hooks. A nil endpoint is the run API.
func (d *uniformDelay) delaySpan(length int, at *endpoint) time.Duration {
	var callers []string
	if at != nil {
		callers = at.callers
	}
	return min(minDelay+time.Duration(d.callers.MaxVerifyCost(callers, length))*delayPerByte, maxDelay)
}

// waitUniformly waits until a request without a valid credential may be answered. arrived is when its body was
// complete. It returns early when the sender disconnects, and when the server begins to drain. The body must have
// been released.
func (d *uniformDelay) waitUniformly(r *http.Request, length int, at *endpoint, arrived time.Time) {
	span := d.delaySpan(length, at)
	took := d.now().Sub(arrived)
	going := d.runner.Going()
	if d.runner.Draining() { // those that arrive during the drain wait like all others
		going = nil
	}
	d.beats.waitForBeat(r.Context(), going, span-took%span)
}

// beats wakes all goroutines that wait for the same beat at once.
type beats struct {
	begin time.Time

	mu      sync.Mutex
	at      map[int64]chan struct{} // by the number of the beat since begin
	running bool
}

func newBeats() *beats { return &beats{begin: time.Now(), at: map[int64]chan struct{}{}} }

// waitForBeat returns at the first beat that is at least d from now.
func (b *beats) waitForBeat(ctx context.Context, going <-chan struct{}, d time.Duration) {
	n := int64((time.Since(b.begin)+d)/beat) + 1
	b.mu.Lock()
	ch, ok := b.at[n]
	if !ok {
		ch = make(chan struct{})
		b.at[n] = ch
	}
	if !b.running {
		b.running = true
		go b.runBeats()
	}
	b.mu.Unlock()
	select {
	case <-ch:
	case <-ctx.Done():
	case <-going:
	}
}

// runBeats wakes the delayed refusals, and returns when none is left.
func (b *beats) runBeats() {
	next, stop := newTicks(beat)
	defer stop()
	for more := true; more; {
		next()
		now := int64(time.Since(b.begin) / beat)
		b.mu.Lock()
		for n, ch := range b.at {
			if n <= now {
				close(ch)
				delete(b.at, n)
			}
		}
		more = len(b.at) > 0
		b.running = more
		b.mu.Unlock()
	}
}

func newTicker(every time.Duration) (next, stop func()) {
	t := time.NewTicker(every)
	return func() { <-t.C }, t.Stop
}
