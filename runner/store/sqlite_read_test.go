package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// TestReads_ManyAtOnceAfterOpen has 24 readers come at once to a store that has read nothing yet. Each must be
// answered.
func TestReads_ManyAtOnceAfterOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := openIn(t, dir)
	runs := fillStore(t, s, 60)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	reads := []func(context.Context, *store.SQLite) error{
		func(ctx context.Context, s *store.SQLite) error { _, err := s.Get(ctx, runs[0].ID); return err },
		func(ctx context.Context, s *store.SQLite) error {
			_, err := s.Find(ctx, runs[1].Hook, runner.Claim{Key: runs[1].ID})
			return err
		},
		func(ctx context.Context, s *store.SQLite) error { _, err := s.Feed(ctx, runs[2].ID); return err },
		func(ctx context.Context, s *store.SQLite) error { _, err := s.Active(ctx); return err },
		func(ctx context.Context, s *store.SQLite) error { _, err := s.KeyUses(ctx); return err },
		func(ctx context.Context, s *store.SQLite) error {
			_, _, err := s.Prune(ctx, store.Retention{
				Default: store.KeepRule{Count: 50},
				Claims:  100 * 365 * 24 * time.Hour,
			})
			return err
		},
	}
	for _, f := range []runner.Filter{
		{},
		{Hooks: []string{"hook1", "hook2"}},
		{Callers: []string{"caller1"}},
		{States: []runner.State{runner.Failed}},
		{Hooks: []string{"hook1"}, Callers: []string{"caller1"}},
		{Joined: "caller1"},
	} {
		for range 3 {
			reads = append(reads, func(ctx context.Context, s *store.SQLite) error {
				_, _,
					err := s.List(ctx, f)
				return err
			})
		}
	}
	for try := range testenv.AttackCount(25, 100) {
		s, err := store.Open(t.Context(), dir, new(clock).now, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var all sync.WaitGroup
		for _, read := range reads {
			all.Go(func() {
				if err := read(ctx, s); err != nil {
					t.Errorf("try %d: %v", try, err)
				}
			})
		}
		all.Wait()
		cancel()
		if err := s.Close(); err != nil || t.Failed() {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%v\n%s", err, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// TestReads_EndWithoutConnections shows that a read that cannot get a connection ends, and that lists do not depend
// on the connections of other reads.
func TestReads_EndWithoutConnections(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	run := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{}).Run
	release, err := s.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for what, read := range map[string]func() error{
		"get":  func() error { _, err := s.Get(t.Context(), run.ID); return err },
		"find": func() error { _, err := s.Find(t.Context(), "build", runner.Claim{Key: run.ID}); return err },
		"feed": func() error { _, err := s.Feed(t.Context(), run.ID); return err },
	} {
		all.Go(func() {
			if err := read(); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	if page, _, err := s.List(t.Context(), runner.Filter{Hooks: []string{"build"}}); err != nil || len(page) != 1 {
		t.Errorf("list: %d runs, %v", len(page), err)
	}
	all.Wait()
	if err := release(); err != nil {
		t.Fatal(err)
	}
	checkState(t, s, run.ID, runner.Running)
}

// TestWrites_EndWithoutTurn keeps the writer busy: a write ends after its time in the queue and is not recorded, and
// one that has its turn is.
func TestWrites_EndWithoutTurn(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	release := s.HoldTurn()
	const writes = store.MaxBatch + 1 // those of one transaction have their turn, and one at least does not
	results := make(chan error, writes)
	for i := range writes {
		r := newRun(t, "build", fmt.Sprint("flight", i))
		go func() {
			_, err := s.Admit(t.Context(), r, runner.Claim{Key: r.ID}, hook.Policy{}, runner.Feed{})
			results <- err
		}()
	}
	if err := <-results; !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("without a turn: %v", err)
	}
	release()
	recorded := 0
	for range writes - 1 {
		switch err := <-results; {
		case err == nil:
			recorded++
		case !errors.Is(err, store.ErrUnavailable):
			t.Error(err)
		}
	}
	if active, err := s.Active(t.Context()); err != nil || recorded == 0 || len(active) != recorded {
		t.Errorf("%d were recorded by their results, and %d in the store: %v", recorded, len(active), err)
	}
}

// TestList_CutsLongParametersAndPages records runs with a megabyte of parameters
// each.
func TestList_CutsLongParametersAndPages(t *testing.T) {
	s := openStore(t)
	long := strings.Repeat("é", 32<<10)
	var want []string
	for i := range 20 {
		r := newRun(t, "build", fmt.Sprint(i))
		r.Params = map[string]string{"short": "whole"}
		for n := range 16 {
			r.Params[fmt.Sprintf("p%02d", n)] = "x" + long[:len(long)-2]
		}
		admitRun(t, s, r, hook.Policy{})
		want = append([]string{r.ID}, want...)
	}
	f := runner.Filter{Hooks: []string{"build"}, Limit: 1000}
	page, next, err := s.List(t.Context(), f)
	if err != nil || len(page) == 0 || len(page) > 1 || next != page[len(page)-1].ID {
		t.Fatalf("%d runs, next %q, %v", len(page), next, err)
	}
	if p := page[0].Params["p00"]; len(p) > 260 || !strings.HasPrefix(p, "xéé") || !strings.HasSuffix(p, "é…") {
		t.Errorf("long: %q", p)
	}
	if len(page[0].Cut) != 16 || page[0].Cut[0] != "p00" || page[0].Params["short"] != "whole" {
		t.Errorf("cut: %v", page[0].Cut)
	}
	if got := listPages(t, s, f); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if whole := checkState(t, s, want[0], runner.Running); whole.Params["p00"] != "x"+long[:len(long)-2] ||
		whole.Cut != nil {
		t.Error("a single run is cut")
	}
}

// TestFinish_CancelledBeforeStart cancels a run that then cannot be started: it ends as cancelled, and its delivery does
// not start another.
func TestFinish_CancelledBeforeStart(t *testing.T) {
	s := openStore(t)
	r := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{}).Run
	if run, ended, err := s.Cancel(t.Context(), r.ID); err != nil || ended || run.Wish != runner.Cancelled {
		t.Fatal(run, ended, err)
	}
	next := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{Kind: hook.Queue, Depth: 1}).Run
	run, promoted, err := s.Finish(t.Context(), r.ID, runner.Failed, runner.End{Error: "no such file"},
		runner.RemoveClaims, runner.PromoteNext)
	if err != nil || run.State != runner.Cancelled || run.Ended.IsZero() || promoted == nil || promoted.ID != next.ID {
		t.Fatal(run, promoted, err)
	}
	checkState(t, s, r.ID, runner.Cancelled)
	if first, err := s.Find(t.Context(), "build", runner.Claim{Key: r.ID}); err != nil || first.ID != r.ID {
		t.Errorf("its delivery: %v, %v", first.ID, err)
	}
}

// TestFinish_KeepsTheDetail keeps the detail of an end. It is for local administrators; callers do not see it.
func TestFinish_KeepsTheDetail(t *testing.T) {
	s := openStore(t)
	r := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{}).Run
	end := runner.End{Ended: time.Now(), Error: "the command could not be started", Detail: "no such file"}
	if _, _, err := s.Finish(t.Context(), r.ID, runner.Failed, end,
		runner.RemoveClaims, runner.PromoteNext); err != nil {
		t.Fatal(err)
	}
	if got := checkState(t, s, r.ID, runner.Failed); got.Detail != end.Detail {
		t.Errorf("%+v", got)
	}
}
