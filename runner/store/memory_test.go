package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/store"
)

type bench struct {
	*testing.T
	*store.Memory
	clock time.Time
	n     int
}

func newBench(t *testing.T, limit int) *bench {
	t.Helper()
	b := &bench{T: t, clock: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)}
	b.Memory = store.NewMemory(limit, func() time.Time { return b.clock })
	return b
}

// begin begins a run of hook h.
func (b *bench) begin(c runner.Claim, params ...string) (string, error) {
	b.n++
	r := runner.Run{ID: fmt.Sprint(b.n), Hook: "h", State: runner.Running, Created: b.clock, Params: map[string]string{}}
	for i, p := range params {
		r.Params[fmt.Sprint(i)] = p
	}
	return r.ID, b.Begin(r, c)
}

func (b *bench) allow(c runner.Claim, params ...string) string {
	b.Helper()
	id, err := b.begin(c, params...)
	if err != nil {
		b.Fatalf("begin: %v", err)
	}
	return id
}

func (b *bench) full(c runner.Claim, params ...string) {
	b.Helper()
	if _, err := b.begin(c, params...); !errors.Is(err, runner.ErrFull) {
		b.Fatalf("want full, got %v", err)
	}
}

func (b *bench) finish(id string, giveBack bool) {
	b.Helper()
	if r, err := b.Finish(id, runner.Succeeded, runner.End{Ended: b.clock}, giveBack); err != nil || r.State != runner.Succeeded {
		b.Fatalf("finish: %+v, %v", r, err)
	}
}

func (b *bench) known(id string, want bool) {
	b.Helper()
	if _, err := b.Get(id); (err == nil) != want || err != nil && !errors.Is(err, runner.ErrUnknown) {
		b.Fatalf("run %s known is not %v: %v", id, want, err)
	}
}

func TestAFullStoreForgetsNoClaimThatStillHolds(t *testing.T) {
	b := newBench(t, 3)
	claim := func(key string, hours int) runner.Claim {
		c := runner.Claim{Key: key}
		if hours > 0 {
			c.Until = b.clock.Add(time.Duration(hours) * time.Hour)
		}
		return c
	}
	long, short, never := b.allow(claim("long", 3)), b.allow(claim("short", 1)), b.allow(claim("never", 0))
	b.full(runner.Claim{}) // all run
	b.finish(long, false)
	b.finish(short, false)
	b.finish(never, false)
	b.full(runner.Claim{}) // all ended, and each claim holds
	b.clock = b.clock.Add(time.Hour - 1)
	b.full(claim("x", 1))
	b.clock = b.clock.Add(1)
	b.finish(b.allow(runner.Claim{}), false) // for the one that a replay is too old for now
	b.known(short, false)
	b.known(long, true)
	running := b.allow(runner.Claim{}) // for one that recognises nothing
	b.full(runner.Claim{})
	b.clock = b.clock.Add(2 * time.Hour)
	b.allow(runner.Claim{})
	b.known(long, false)
	b.clock = b.clock.Add(21*time.Hour - 1)
	b.full(runner.Claim{})
	b.known(never, true)
	b.clock = b.clock.Add(1) // 24 hours in all
	b.allow(runner.Claim{})
	b.known(never, false)
	b.known(running, true)
	b.clock = b.clock.Add(1000 * time.Hour)
	b.full(runner.Claim{}) // what runs is never forgotten
}

func TestClaims(t *testing.T) {
	b := newBench(t, 10)
	c := runner.Claim{Key: "k", Body: [32]byte{1}}
	if _, err := b.Find("h", c); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("got %v", err)
	}
	first := b.allow(c)
	var again *runner.Replayed
	if _, err := b.begin(c); !errors.As(err, &again) || again.Run.ID != first {
		t.Errorf("got %v", err)
	}
	if r, err := b.Find("h", c); err != nil || r.ID != first {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := b.Find("other", c); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("another hook knows it: %v", err)
	}
	other := runner.Claim{Key: "k", Body: [32]byte{2}, OneBody: true}
	if _, err := b.Find("h", other); !errors.Is(err, runner.ErrReused) {
		t.Errorf("got %v", err)
	}
	if _, err := b.begin(other); !errors.Is(err, runner.ErrReused) {
		t.Errorf("got %v", err)
	}
	b.allow(runner.Claim{})
	b.allow(runner.Claim{}) // without a key nothing repeats
	if _, err := b.Find("h", runner.Claim{}); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

func TestAClaimGivenBackBelongsToTheNextRun(t *testing.T) {
	b := newBench(t, 2)
	c := runner.Claim{Key: "k", Until: b.clock.Add(time.Hour)}
	first := b.allow(c)
	b.finish(first, true)
	b.known(first, true)
	second := b.allow(c)
	b.finish(second, false)
	b.allow(runner.Claim{}) // forgets the first, and must leave the second's claim
	b.known(first, false)
	if r, err := b.Find("h", c); err != nil || r.ID != second {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestAnEndStands(t *testing.T) {
	b := newBench(t, 2)
	id := b.allow(runner.Claim{Key: "k"})
	b.finish(id, false)
	r, err := b.Finish(id, runner.Failed, runner.End{}, true)
	if err != nil || r.State != runner.Succeeded {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := b.Finish("x", runner.Failed, runner.End{}, false); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

func TestWhatSendersChooseIsBoundedInBytes(t *testing.T) {
	b := newBench(t, 1<<14)
	big := strings.Repeat("v", 8<<20)
	var ids []string
	for range 6 {
		ids = append(ids, b.allow(runner.Claim{}, big))
	}
	b.full(runner.Claim{}, big, big)
	b.finish(ids[3], false)
	b.allow(runner.Claim{}, big, big)
	b.known(ids[3], false)
	for _, id := range ids[:3] {
		b.known(id, true)
	}
}

func TestNoRoomIsNoRoom(t *testing.T) {
	newBench(t, 0).full(runner.Claim{})
}
