package runner_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// flown returns the runs whose commands are running, in order of their ids.
func (c *commands) flown() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.air))
}

// anyEnd returns a random end of a command.
func anyEnd() runner.End {
	e := runner.End{Ended: time.Now()}
	switch rand.IntN(6) {
	case 0:
		e.Signal = "SIGSEGV"
	case 1:
		e.Reason, e.Signal = runner.TimedOut, "SIGKILL"
	case 2:
		e.Reason = runner.Interrupted
	default:
		code := rand.IntN(2)
		e.ExitCode = &code
	}
	return e
}

// anyHooks returns hooks of every policy, some of which repeat interrupted runs.
func anyHooks(t *testing.T) []*hook.Hook {
	t.Helper()
	var hooks []*hook.Hook
	for i, change := range []func(*hook.Spec){func(*hook.Spec) {}, queueOf(3), join, replace} {
		for _, again := range []string{"", "rerun"} {
			h := policy(t, func(s *hook.Spec) { change(s); s.Flight.Key, s.OnInterrupted = "{x}", again })
			h.Name = fmt.Sprint("h", i, again)
			hooks = append(hooks, h)
		}
	}
	return hooks
}

// accepted has the runs that the answers to deliveries named.
type accepted struct {
	mu   sync.Mutex
	runs map[string]bool
}

func (a *accepted) deliver(t *testing.T, b *bench, hooks []*hook.Hook) {
	t.Helper()
	d := claimed(of(hooks[rand.IntN(len(hooks))], fmt.Sprint(rand.IntN(2))), fmt.Sprint(rand.IntN(1000)))
	run, err := b.Start(d)
	var r *runner.Replayed
	switch {
	case errors.As(err, &r):
		run = r.Run
	case errors.As(err, new(*runner.Busy)), errors.As(err, new(*runner.NotStarted)),
		errors.Is(err, runner.ErrDraining), errors.Is(err, runner.ErrUnavailable):
		return
	case err != nil:
		t.Error(err)
		return
	}
	a.mu.Lock()
	a.runs[run.ID] = true
	a.mu.Unlock()
	if rand.IntN(10) == 0 {
		if _, err := b.Cancel(t.Context(), run.ID); err != nil && !errors.Is(err, runner.ErrUnavailable) {
			t.Error(err)
		}
	}
}

func TestChaos_NoOverlapNoLoss(t *testing.T) {
	hooks := anyHooks(t)
	b := newBench(t, hooks...)
	b.obey = true
	all := accepted{runs: map[string]bool{}}
	for round := range 6 {
		b.recover(t)
		var senders, ending sync.WaitGroup
		done := make(chan struct{})
		for range 8 {
			senders.Go(func() {
				for range 25 {
					all.deliver(t, b, hooks)
				}
			})
		}
		ending.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				b.set(func() { b.refuse = nil })
				switch rand.IntN(16) {
				case 0:
					b.set(func() { b.refuse = errors.New("no such file") })
				case 1:
					b.set(func() { b.refuse = runner.ErrFlight })
				case 2:
					b.set(func() { b.refuse = runner.ErrNotNow })
				}
				if up := b.flown(); len(up) > 0 {
					b.end(up[rand.IntN(len(up))], anyEnd())
				}
			}
		})
		if round%2 == 0 {
			b.Leave() // while deliveries arrive
		}
		senders.Wait()
		close(done)
		ending.Wait()
		b.set(func() { b.refuse = nil })
		b.crash(t)
	}
	b.recover(t)
	until(t, "all runs end", func() bool {
		for _, id := range b.flown() {
			b.end(id, runner.End{Ended: time.Now(), ExitCode: new(0)})
		}
		active, err := b.disk.Active(t.Context())
		return err == nil && len(active) == 0
	})
	b.witness(t, &all)
}

// witness compares the store with what the commands observed.
func (b *bench) witness(t *testing.T, all *accepted) {
	t.Helper()
	if b.overlaps > 0 || b.twice > 0 {
		t.Errorf("of %d runs %d overlapped, %d were started twice", b.started, b.overlaps, b.twice)
	}
	var runs []runner.Run
	for cursor := ""; ; {
		page, next, err := b.Runner.List(t.Context(), runner.Filter{Before: cursor, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, page...)
		if cursor = next; next == "" {
			break
		}
	}
	states := map[runner.State]int{}
	for _, run := range runs {
		delete(all.runs, run.ID)
		states[run.State]++
		end, ran := b.ends[run.ID]
		unseen := end.State() == runner.Interrupted && run.State == run.Wish // the cause of its end is unknown
		switch {
		case ran && run.State != end.State() && !unseen:
			t.Errorf("run %s of %s is recorded as %s and ended %s", run.ID, run.Hook, run.State, end.State())
		case !ran && run.State != runner.Cancelled && run.State != runner.Failed:
			t.Errorf("run %s of %s is recorded as %s and never ran", run.ID, run.Hook, run.State)
		}
	}
	if len(all.runs) > 0 {
		t.Errorf("%d runs were accepted and lost", len(all.runs))
	}
	t.Logf("%d runs, %d commands: %v", len(runs), b.started, states)
}
