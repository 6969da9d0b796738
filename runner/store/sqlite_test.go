package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// clock is a time that advances by a second with every read.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time {
	return time.Unix(1_800_000_000+c.at.Add(1), 123_456_789).UTC()
}

func openStore(t testing.TB) *store.SQLite {
	t.Helper()
	return openIn(t, filepath.Join(t.TempDir(), "state"))
}

func openIn(t testing.TB, dir string) *store.SQLite {
	t.Helper()
	s, err := store.Open(t.Context(), dir, new(clock).now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newRun(t testing.TB, hook, flight string) runner.Run {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return runner.Run{
		ID: id.String(), Hook: hook, Caller: "ci", Flight: flight, Params: map[string]string{"ref": "<main> é"},
		Created: time.Now(),
	}
}

func admitRun(t testing.TB, s *store.SQLite, r runner.Run, p hook.Policy) runner.Admission {
	t.Helper()
	a, err := s.Admit(t.Context(), r, runner.Claim{Key: r.ID}, p, runner.Feed{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func finishRun(t testing.TB, s *store.SQLite, id string) *runner.Run {
	t.Helper()
	zero := 0
	_, next, err := s.Finish(t.Context(), id, runner.Succeeded, runner.End{Ended: time.Now(), ExitCode: &zero},
		runner.KeepClaims, runner.PromoteNext)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func checkState(t testing.TB, s *store.SQLite, id string, want runner.State) runner.Run {
	t.Helper()
	r, err := s.Get(t.Context(), id)
	if err != nil || r.State != want {
		t.Fatalf("run %s is %q (%v), not %s", id, r.State, err, want)
	}
	return r
}

// TestReject_NamesTheRun rejects a delivery while a run is in progress: the error names that run, and nothing is
// recorded.
func TestReject_NamesTheRun(t *testing.T) {
	s := openStore(t)
	first := admitRun(t, s, newRun(t, "build", "build"), hook.Policy{Kind: hook.Reject})
	if first.Run.State != runner.Running || first.Run.Started.IsZero() {
		t.Fatalf("first run: %+v", first.Run)
	}
	second := newRun(t, "build", "build")
	_, err := s.Admit(t.Context(), second, runner.Claim{Key: "d2"}, hook.Policy{Kind: hook.Reject}, runner.Feed{})
	var busy *runner.Busy
	if !errors.As(err, &busy) || busy.Run.ID != first.Run.ID {
		t.Fatalf("second: %v", err)
	}
	if _, err := s.Get(t.Context(), second.ID); !errors.Is(err, runner.ErrUnknown) {
		t.Fatalf("the refused run is recorded: %v", err)
	}
	if _, err := s.Find(t.Context(), "build", runner.Claim{Key: "d2"}); !errors.Is(err, runner.ErrUnknown) {
		t.Fatalf("the refused delivery is claimed: %v", err)
	}
	admitRun(t, s, newRun(t, "build", "build/other"), hook.Policy{Kind: hook.Reject})
	if next := finishRun(t, s, first.Run.ID); next != nil {
		t.Fatalf("something waits: %+v", next)
	}
	if a := admitRun(t, s, second, hook.Policy{Kind: hook.Reject}); a.Run.State != runner.Running {
		t.Fatalf("free flight: %+v", a)
	}
}

// TestQueue_BoundedInOrder queues runs up to the depth of the policy: they start in order.
func TestQueue_BoundedInOrder(t *testing.T) {
	s := openStore(t)
	policy := hook.Policy{Kind: hook.Queue, Depth: 2}
	first := admitRun(t, s, newRun(t, "build", "f"), policy)
	// The clock of the ids may go back; the run that came first is still first.
	older, newer := newRun(t, "build", "f"), newRun(t, "build", "f")
	second, third := admitRun(t, s, newer, policy), admitRun(t, s, older, policy)
	if second.Position != 1 || third.Position != 2 || third.Run.State != runner.Queued {
		t.Fatalf("positions %d and %d", second.Position, third.Position)
	}
	_, err := s.Admit(t.Context(), newRun(t, "build", "f"), runner.Claim{}, policy, runner.Feed{})
	var busy *runner.Busy
	if !errors.As(err, &busy) || busy.Run.ID != first.Run.ID {
		t.Fatalf("full queue: %v", err)
	}
	active, err := s.Active(t.Context())
	if err != nil || len(active) != 3 || active[0].ID != first.Run.ID || active[1].ID != newer.ID ||
		active[2].ID != older.ID {
		t.Fatalf("active: %v %+v", err, active)
	}
	next := finishRun(t, s, first.Run.ID)
	if next == nil || next.ID != newer.ID || next.State != runner.Running || next.Started.IsZero() {
		t.Fatalf("next: %+v", next)
	}
	if next = finishRun(t, s, next.ID); next == nil || next.ID != older.ID {
		t.Fatalf("last: %+v", next)
	}
	if next = finishRun(t, s, next.ID); next != nil {
		t.Fatalf("one too many: %+v", next)
	}
}

// TestJoin_NewestParameters joins deliveries: one queued run has the newest parameters and their caller.
func TestJoin_NewestParameters(t *testing.T) {
	s := openStore(t)
	policy := hook.Policy{Kind: hook.Join}
	first := admitRun(t, s, newRun(t, "build", "f"), policy)
	pending := admitRun(t, s, newRun(t, "build", "f"), policy)
	if pending.Joined || pending.Position != 1 || pending.Run.State != runner.Queued {
		t.Fatalf("pending: %+v", pending)
	}
	newest := newRun(t, "build", "f")
	newest.Caller, newest.Params = "ops", map[string]string{"ref": "newest"}
	in := runner.Feed{Trace: "00-1", Stdin: []byte("body")}
	joined, err := s.Admit(t.Context(), newest, runner.Claim{Key: "joined"}, policy, in)
	if err != nil || !joined.Joined || joined.Position != 1 || joined.Run.ID != pending.Run.ID {
		t.Fatalf("joined: %v %+v", err, joined)
	}
	got := checkState(t, s, pending.Run.ID, runner.Queued)
	if got.Params["ref"] != "newest" || got.Caller != "ops" {
		t.Fatalf("pending run: %+v", got)
	}
	if again, err := s.Find(t.Context(), "build", runner.Claim{Key: "joined"}); err != nil ||
		again.ID != pending.Run.ID {
		t.Fatalf("the joined delivery leads to %v %+v", err, again)
	}
	if got, err := s.Feed(t.Context(), pending.Run.ID); err != nil || got.Trace != in.Trace ||
		string(got.Stdin) != "body" {
		t.Fatalf("input: %v %+v", err, got)
	}
	if next := finishRun(t, s, first.Run.ID); next == nil || next.ID != pending.Run.ID || next.Params["ref"] != "newest" {
		t.Fatalf("next: %+v", next)
	}
	if next := finishRun(t, s, pending.Run.ID); next != nil {
		t.Fatalf("more than one more build: %+v", next)
	}
}

// TestJoin_KnownToAllCallers joins deliveries of several callers: each of them may see the run.
func TestJoin_KnownToAllCallers(t *testing.T) {
	s := openStore(t)
	policy := hook.Policy{Kind: hook.Join}
	first := admitRun(t, s, newRun(t, "build", "f"), policy)
	var pending runner.Run
	for _, c := range []struct {
		caller string
		others []string
	}{
		{"a_b", nil},
		{"axb", []string{"a_b"}},
		{"axb", []string{"a_b"}},
		{"ops", []string{"a_b", "axb"}},
		{"a_b", []string{"axb", "ops"}},
	} {
		r := newRun(t, "build", "f")
		r.Caller = c.caller
		pending = admitRun(t, s, r, policy).Run
		if pending.Caller != c.caller || !slices.Equal(pending.StandsFor, c.others) {
			t.Errorf("%s: %+v", c.caller, pending)
		}
	}
	for _, happens := range []func(){
		func() {},
		func() { finishRun(t, s, first.Run.ID) },
		func() { finishRun(t, s, pending.ID) },
	} {
		happens()
		for f, want := range map[*runner.Filter]bool{
			{Joined: "axb"}: true, {Joined: "axb", Before: pending.ID}: false,
			{Joined: "ops", Hooks: []string{"build"}}: true, {Joined: "ops", Hooks: []string{"other"}}: false,
			{Joined: "a_b"}: false, {Joined: "op"}: false, {Joined: "a%"}: false,
		} {
			runs, _, err := s.List(t.Context(), *f)
			if err != nil || (len(runs) == 1 && runs[0].ID == pending.ID) != want || !want && len(runs) > 0 {
				t.Errorf("%+v: %+v, %v", *f, runs, err)
			}
		}
	}
}

// TestJoin_RerunIsBusy reruns a run while a newer delivery is queued: the newer parameters stay.
func TestJoin_RerunIsBusy(t *testing.T) {
	s := openStore(t)
	policy := hook.Policy{Kind: hook.Join}
	first := admitRun(t, s, newRun(t, "build", "f"), policy)
	rerun := newRun(t, "build", "f")
	rerun.RerunOf, rerun.Attempt = "an older run", 1
	if a := admitRun(t, s, rerun, policy); a.Joined || a.Run.RerunOf == "" { // no run is queued
		t.Fatalf("%+v", a)
	}
	push := newRun(t, "build", "f")
	push.Params = map[string]string{"ref": "pushed"}
	if a := admitRun(t, s, push, policy); !a.Joined || a.Run.ID != rerun.ID {
		t.Fatalf("%+v", a)
	}
	pending := checkState(t, s, rerun.ID, runner.Queued)
	if pending.RerunOf != "" || pending.Attempt != 0 || pending.Params["ref"] != "pushed" {
		t.Errorf("what was pushed has become %+v", pending)
	}
	again := newRun(t, "build", "f")
	again.RerunOf = "an older run"
	var busy *runner.Busy
	if a, err := s.Admit(t.Context(), again, runner.Claim{Key: again.ID}, policy,
		runner.Feed{}); !errors.As(err, &busy) || busy.Run.ID != first.Run.ID {
		t.Errorf("%+v %v", a, err)
	}
	if now := checkState(t, s, rerun.ID, runner.Queued); now.Params["ref"] != "pushed" {
		t.Errorf("what was pushed has become %+v", now)
	}
}

// TestRequeue_First requeues a run: it is the first of its flight, before all that come later.
func TestRequeue_First(t *testing.T) {
	s := openStore(t)
	policy := hook.Policy{Kind: hook.Queue, Depth: 9}
	requeue := func(id string) {
		t.Helper()
		if _, err := s.Requeue(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	first := admitRun(t, s, newRun(t, "build", "f"), policy)
	requeue(first.Run.ID)
	if r := checkState(t, s, first.Run.ID, runner.Queued); !r.Started.IsZero() {
		t.Errorf("it has started: %+v", r)
	}
	second := admitRun(t, s, newRun(t, "build", "f"), policy)
	if second.Run.State != runner.Queued || second.Position != 2 {
		t.Errorf("second: %+v", second)
	}
	for range 2 {
		promoted, err := s.Promote(t.Context())
		if err != nil || len(promoted) != 1 || promoted[0].ID != first.Run.ID || promoted[0].Started.IsZero() {
			t.Fatalf("promoted: %+v, %v", promoted, err)
		}
		requeue(first.Run.ID)
		requeue(first.Run.ID) // once more changes nothing
	}
	_, err := s.Admit(t.Context(), newRun(t, "build", "f"), runner.Claim{}, hook.Policy{Kind: hook.Reject},
		runner.Feed{})
	if b := new(runner.Busy); !errors.As(err, &b) || b.Run.ID != first.Run.ID {
		t.Errorf("reject: %v", err)
	}
	third := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{Kind: hook.Replace})
	if third.Stop != nil || len(third.Superseded) != 2 || third.Position != 1 || third.Run.State != runner.Queued {
		t.Errorf("replace: %+v", third)
	}
	if promoted, err := s.Promote(t.Context()); err != nil || len(promoted) != 1 || promoted[0].ID != third.Run.ID {
		t.Errorf("promoted: %+v, %v", promoted, err)
	}
	finishRun(t, s, third.Run.ID)
	requeue(third.Run.ID) // a run that has ended is not changed
	checkState(t, s, third.Run.ID, runner.Succeeded)
}

// TestReplace_StopsAndDrops replaces runs: the running run is to be stopped, and queued ones end.
func TestReplace_StopsAndDrops(t *testing.T) {
	s := openStore(t)
	first := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{Kind: hook.Replace})
	if first.Stop != nil || first.Run.State != runner.Running {
		t.Fatalf("first: %+v", first)
	}
	second := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{Kind: hook.Replace})
	third := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{Kind: hook.Replace})
	if second.Stop == nil || second.Stop.ID != first.Run.ID || len(second.Superseded) != 0 {
		t.Fatalf("second: %+v", second)
	}
	if third.Stop == nil || third.Stop.ID != first.Run.ID || third.Position != 1 ||
		len(third.Superseded) != 1 || third.Superseded[0].ID != second.Run.ID {
		t.Fatalf("third: %+v", third)
	}
	dropped := checkState(t, s, second.Run.ID, runner.Cancelled)
	if dropped.Reason != runner.Cancelled || dropped.Ended.IsZero() || !strings.Contains(dropped.Error, third.Run.ID) {
		t.Fatalf("dropped: %+v", dropped)
	}
	_, next, err := s.Finish(t.Context(), first.Run.ID, runner.Cancelled,
		runner.End{Ended: time.Now(), Signal: "SIGTERM"}, runner.KeepClaims, runner.PromoteNext)
	if err != nil || next == nil || next.ID != third.Run.ID {
		t.Fatalf("next: %v %+v", err, next)
	}
}

// TestAdmit_UnknownPolicy refuses an unknown policy and records nothing.
func TestAdmit_UnknownPolicy(t *testing.T) {
	s := openStore(t)
	admitRun(t, s, newRun(t, "build", "f"), hook.Policy{})
	r := newRun(t, "build", "f")
	if _, err := s.Admit(t.Context(), r, runner.Claim{Key: "x"}, hook.Policy{Kind: "later"},
		runner.Feed{}); err == nil {
		t.Fatal("admitted")
	}
	if _, err := s.Get(t.Context(), r.ID); !errors.Is(err, runner.ErrUnknown) {
		t.Fatal(err)
	}
}

// TestClaim_OneRun sends a delivery again at every stage of its run: it never starts another.
func TestClaim_OneRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := openIn(t, dir)
	c := runner.Claim{Key: "d1", Body: [32]byte{1}, OneBody: true}
	first, err := s.Admit(t.Context(), newRun(t, "build", "f"), c, hook.Policy{}, runner.Feed{})
	if err != nil {
		t.Fatal(err)
	}
	finishRun(t, s, first.Run.ID)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openIn(t, dir)
	again := func(c runner.Claim) error {
		_, err := s.Admit(t.Context(), newRun(t, "build", "f"), c, hook.Policy{}, runner.Feed{})
		return err
	}
	var replayed *runner.Replayed
	if err := again(c); !errors.As(err, &replayed) || replayed.Run.ID != first.Run.ID ||
		replayed.Run.State != runner.Succeeded {
		t.Errorf("the same delivery: %v", err)
	}
	other := c
	other.Body = [32]byte{2}
	if err := again(other); !errors.Is(err, runner.ErrReused) {
		t.Errorf("another body: %v", err)
	}
	if _, err := s.Admit(t.Context(), newRun(t, "deploy", "g"), other, hook.Policy{},
		runner.Feed{}); !errors.Is(err, runner.ErrReused) {
		t.Errorf("a one-time credential at another hook: %v", err)
	}
	covering := runner.Claim{Key: "covers the body"}
	if err := again(covering); err != nil && !errors.As(err, new(*runner.Busy)) {
		t.Errorf("a key that covers the body: %v", err)
	}
	if _, err := s.Admit(t.Context(), newRun(t, "deploy", "h"), covering, hook.Policy{}, runner.Feed{}); err != nil {
		t.Errorf("another hook: %v", err)
	}
	for range 2 {
		if err := again(runner.Claim{}); err != nil && !errors.As(err, new(*runner.Busy)) {
			t.Errorf("repetition that is legitimate: %v", err)
		}
	}
}

func TestClaim_IsKnownByEachOfItsKeys(t *testing.T) {
	s := openStore(t)
	first := admitWith(t, s, runner.Claim{Key: "name", Also: []string{"key", "signature"}, Body: [32]byte{1}})
	for _, c := range []runner.Claim{
		{Key: "name"},
		{Key: "signature", Body: [32]byte{1}, Named: true},
		{Key: "new name", Also: []string{"new key", "key"}},
	} {
		var replayed *runner.Replayed
		_, err := s.Admit(t.Context(), newRun(t, "build", "f"), c, hook.Policy{}, runner.Feed{})
		if !errors.As(err, &replayed) || replayed.Run.ID != first {
			t.Errorf("%v: %v", c, err)
		}
		if run, err := s.Find(t.Context(), "build", c); err != nil || run.ID != first {
			t.Errorf("%v: found %v, %v", c, run, err)
		}
	}
	named := runner.Claim{Key: "new name", Also: []string{"key"}, Body: [32]byte{2}, Named: true}
	if _, err := s.Admit(t.Context(), newRun(t, "build", "f"), named, hook.Policy{},
		runner.Feed{}); !errors.Is(err, runner.ErrOtherBody) {
		t.Errorf("the same id with another body: %v", err)
	}
	// A claim is removed under all of its keys.
	if _, _, err := s.Finish(t.Context(), first, runner.Failed, runner.End{Ended: time.Now()},
		runner.RemoveClaims, runner.PromoteNext); err != nil {
		t.Fatal(err)
	}
	admitWith(t, s, named)
	admitWith(t, s, runner.Claim{Key: "name", Also: []string{"signature"}})
}

// admitWith starts a run of the hook build, in a separate flight, and returns its id.
func admitWith(t *testing.T, s *store.SQLite, c runner.Claim) string {
	t.Helper()
	r := newRun(t, "build", fmt.Sprint(rand.Uint64()))
	if _, err := s.Admit(t.Context(), r, c, hook.Policy{}, runner.Feed{}); err != nil {
		t.Fatal(err)
	}
	return r.ID
}

// TestClaim_ManyAtOnce sends equal deliveries at once: one of them starts a run.
func TestClaim_ManyAtOnce(t *testing.T) {
	s := openStore(t)
	var started atomic.Int32
	var all sync.WaitGroup
	for i := range 32 {
		r := newRun(t, "build", fmt.Sprint("flight ", i))
		all.Go(func() {
			_, err := s.Admit(t.Context(), r, runner.Claim{Key: "same"}, hook.Policy{}, runner.Feed{})
			switch {
			case err == nil:
				started.Add(1)
			case !errors.As(err, new(*runner.Replayed)):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := started.Load(); n != 1 {
		t.Fatalf("%d runs for one delivery", n)
	}
}

// TestClaim_GivenBack removes a claim: the delivery may be sent again.
func TestClaim_GivenBack(t *testing.T) {
	s := openStore(t)
	c := runner.Claim{Key: "d1"}
	a, err := s.Admit(t.Context(), newRun(t, "build", "f"), c, hook.Policy{}, runner.Feed{})
	if err != nil {
		t.Fatal(err)
	}
	end := runner.End{Ended: time.Now(), Error: "the command could not be started"}
	if _, _, err := s.Finish(t.Context(), a.Run.ID, runner.Failed, end,
		runner.RemoveClaims, runner.PromoteNext); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admit(t.Context(), newRun(t, "build", "f"), c, hook.Policy{}, runner.Feed{}); err != nil {
		t.Fatal(err)
	}
	if got := checkState(t, s, a.Run.ID, runner.Failed); got.Error != end.Error {
		t.Fatalf("%+v", got)
	}
}

// TestFinish_KeepsTheFirstEnd finishes a run twice: the first end stays, with everything in it.
func TestFinish_KeepsTheFirstEnd(t *testing.T) {
	s := openStore(t)
	r := newRun(t, "build", "f")
	a := admitRun(t, s, r, hook.Policy{})
	waiting := admitRun(t, s, newRun(t, "build", "f"), hook.Policy{Kind: hook.Queue, Depth: 1})
	code := 3
	end := runner.End{
		Ended: time.UnixMicro(1_800_000_000_000_001).UTC(), ExitCode: &code, Signal: "SIGKILL",
		Reason: runner.TimedOut, Error: "why",
		Output: runner.Output{Bytes: 1 << 40, Dropped: 7}, LeftBehind: 3,
	}
	ended, next, err := s.Finish(t.Context(), r.ID, runner.TimedOut, end, runner.KeepClaims, runner.PromoteNext)
	if err != nil || next == nil || next.ID != waiting.Run.ID {
		t.Fatalf("next: %v %+v", err, next)
	}
	want := a.Run
	want.State, want.End = runner.TimedOut, end
	for name, got := range map[string]runner.Run{"returned": ended, "read": checkState(t, s, r.ID, runner.TimedOut)} {
		if got.Output != want.Output || *got.ExitCode != code ||
			got.Signal != end.Signal || got.Reason != end.Reason || got.Error != end.Error ||
			!got.Ended.Equal(end.Ended) ||
			!got.Created.Equal(want.Created) || !got.Started.Equal(want.Started) ||
			got.Params["ref"] != want.Params["ref"] {
			t.Errorf("%s: %+v, not %+v", name, got, want)
		}
	}
	again, next, err := s.Finish(t.Context(), r.ID, runner.Succeeded, runner.End{Ended: time.Now()},
		runner.RemoveClaims, runner.PromoteNext)
	if err != nil || next != nil || again.State != runner.TimedOut {
		t.Fatalf("again: %v %+v %+v", err, next, again)
	}
	if _, err := s.Find(t.Context(), "build", runner.Claim{Key: r.ID}); err != nil {
		t.Fatalf("the second end gave the delivery back: %v", err)
	}
	if _, _, err := s.Finish(t.Context(), "no such", runner.Failed, runner.End{},
		runner.KeepClaims, runner.PromoteNext); !errors.Is(err, runner.ErrUnknown) {
		t.Fatalf("unknown: %v", err)
	}
	if _, _, err := s.Finish(t.Context(), waiting.Run.ID, runner.Running, runner.End{},
		runner.KeepClaims, runner.PromoteNext); err == nil {
		t.Fatal("running was accepted as an end")
	}
}

// TestFeed_KeptIfInterrupted ends runs: the input is removed with the end, except that of an interrupted run.
func TestFeed_KeptIfInterrupted(t *testing.T) {
	s := openStore(t)
	for _, end := range []runner.State{runner.Succeeded, runner.Interrupted} {
		r := newRun(t, "build", "f")
		if _, err := s.Admit(t.Context(), r, runner.Claim{}, hook.Policy{},
			runner.Feed{Stdin: []byte("secret")}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Finish(t.Context(), r.ID, end, runner.End{Ended: time.Now()},
			runner.KeepClaims, runner.PromoteNext); err != nil {
			t.Fatal(err)
		}
		in, err := s.Feed(t.Context(), r.ID)
		if kept := len(in.Stdin) > 0; err != nil || kept != (end == runner.Interrupted) {
			t.Errorf("%s: %v %q", end, err, in.Stdin)
		}
	}
	if _, err := s.Feed(t.Context(), "no such"); !errors.Is(err, runner.ErrUnknown) {
		t.Error(err)
	}
}

// TestCancel_OnlyQueued cancels and expires runs in every state: only queued ones end at once.
func TestCancel_OnlyQueued(t *testing.T) {
	s := openStore(t)
	policy := hook.Policy{Kind: hook.Queue, Depth: 9}
	running := admitRun(t, s, newRun(t, "build", "f"), policy)
	one, two, late := newRun(t, "build", "f"), newRun(t, "build", "f"), newRun(t, "build", "f")
	up := setUptime(s)
	admitRun(t, s, one, policy)
	admitRun(t, s, two, policy)
	up.pass(time.Hour)
	admitRun(t, s, late, policy)
	if r, done, err := s.Cancel(t.Context(), running.Run.ID); err != nil || done || r.State != runner.Running {
		t.Fatalf("running: %v %v %+v", err, done, r)
	}
	if r, done, err := s.Cancel(t.Context(), one.ID); err != nil || !done || r.State != runner.Cancelled {
		t.Fatalf("queued: %v %v %+v", err, done, r)
	}
	if _, _, err := s.Cancel(t.Context(), "no such"); !errors.Is(err, runner.ErrUnknown) {
		t.Fatal(err)
	}
	if other, err := s.ExpireQueued(t.Context(), "deploy", 0); err != nil || len(other) != 0 {
		t.Fatalf("of another hook: %v %+v", err, other)
	}
	expired, err := s.ExpireQueued(t.Context(), "build", 59*time.Minute)
	if err != nil || len(expired) != 1 || expired[0].ID != two.ID || expired[0].State != runner.TimedOut {
		t.Fatalf("expired: %v %+v", err, expired)
	}
	if next := finishRun(t, s, running.Run.ID); next == nil || next.ID != late.ID {
		t.Fatalf("next: %+v", next)
	}
}

// TestExpireQueued_AfterJoin joins a queued run that is about to expire: it waits as long as its newest delivery may.
func TestExpireQueued_AfterJoin(t *testing.T) {
	s := openStore(t)
	policy := hook.Policy{Kind: hook.Join}
	admitRun(t, s, newRun(t, "build", "f"), policy)
	pending, late := newRun(t, "build", "f"), newRun(t, "build", "f")
	up := setUptime(s)
	admitRun(t, s, pending, policy)
	up.pass(time.Hour)
	if a := admitRun(t, s, late, policy); a.Run.ID != pending.ID {
		t.Fatalf("%+v", a)
	}
	for want := range 2 {
		expired, err := s.ExpireQueued(t.Context(), "build", 30*time.Second)
		if err != nil || len(expired) != want {
			t.Errorf("after %d minutes: %v %+v", want, err, expired)
		}
		up.pass(time.Minute)
	}
	checkState(t, s, pending.ID, runner.TimedOut)
}

// fillStore records ended runs of a few hooks and callers, in all states, at times
// a minute apart, and returns them newest first.
func fillStore(t testing.TB, s *store.SQLite, n int) []runner.Run {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	ends := []runner.State{runner.Succeeded, runner.Failed, runner.TimedOut, runner.Cancelled, runner.Interrupted}
	var runs []runner.Run
	for i := range n {
		r := newRun(t, fmt.Sprint("hook", rng.IntN(4)), fmt.Sprint("flight", i))
		at := time.UnixMilli(1_700_000_000_000).Add(time.Duration(i) * time.Minute)
		r.ID = idAt(at, i)
		r.Caller, r.Created = fmt.Sprint("caller", rng.IntN(3)), at
		a := admitRun(t, s, r, hook.Policy{})
		if i%10 != 0 {
			ended, _, err := s.Finish(t.Context(), r.ID, ends[rng.IntN(len(ends))],
				runner.End{Ended: at.Add(time.Second)}, runner.KeepClaims, runner.PromoteNext)
			if err != nil {
				t.Fatal(err)
			}
			a.Run = ended
		}
		runs = append(runs, a.Run)
	}
	slices.Reverse(runs)
	return runs
}

func idAt(at time.Time, i int) string {
	ms := at.UnixMilli()
	return fmt.Sprintf("%08x-%04x-7000-8000-%012x", ms>>16, ms&0xffff, i)
}

// TestList_Filters lists runs by every filter, newest first and page by page.
func TestList_Filters(t *testing.T) {
	s := openStore(t)
	all := fillStore(t, s, 300)
	rng := rand.New(rand.NewPCG(3, 4))
	pick := func(from []string) (some []string) {
		for _, x := range from {
			if rng.IntN(3) == 0 {
				some = append(some, x)
			}
		}
		return some
	}
	for range 60 {
		f := runner.Filter{
			Hooks: pick([]string{"hook0", "hook1", "hook2", "hook0", "none"}), Callers: pick([]string{
				"caller0",
				"caller1",
			}),
			Limit: 1 + rng.IntN(40),
		}
		for _, x := range pick([]string{"running", "succeeded", "failed", "cancelled"}) {
			f.States = append(f.States, runner.State(x))
		}
		if rng.IntN(2) == 0 {
			f.Since = all[len(all)-1-rng.IntN(100)].Created
		}
		if rng.IntN(2) == 0 {
			f.Until = all[rng.IntN(100)].Created
		}
		var want []string
		for _, r := range all {
			if (len(f.Hooks) == 0 || slices.Contains(f.Hooks, r.Hook)) &&
				(len(f.Callers) == 0 || slices.Contains(f.Callers, r.Caller)) &&
				(len(f.States) == 0 || slices.Contains(f.States, r.State)) &&
				!r.Created.Before(f.Since) && (f.Until.IsZero() || r.Created.Before(f.Until)) {
				want = append(want, r.ID)
			}
		}
		if got := listPages(t, s, f); !slices.Equal(got, want) {
			t.Fatalf("%+v\n yields %d runs %v\n    not %d %v", f, len(got), got, len(want), want)
		}
	}
	for _, limit := range []int{-1, 1001} {
		if _, _, err := s.List(t.Context(), runner.Filter{Limit: limit}); err == nil {
			t.Errorf("limit %d", limit)
		}
	}
}

func listPages(t testing.TB, s *store.SQLite, f runner.Filter) (ids []string) {
	t.Helper()
	for {
		page, next, err := s.List(t.Context(), f)
		if err != nil || len(page) > f.Limit {
			t.Fatalf("%d runs, %v", len(page), err)
		}
		for _, r := range page {
			ids = append(ids, r.ID)
		}
		if next == "" {
			return ids
		}
		f.Before = next
	}
}

// TestStatements_UseIndexes reads the query plan of each statement: all find their rows by an index.
func TestStatements_UseIndexes(t *testing.T) {
	s := openStore(t)
	plans, err := s.Plans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for query, steps := range plans {
		list := strings.Contains(query, "LIMIT $3") && strings.Contains(query, "json_each")
		for _, step := range steps {
			// The index of active runs is a short one.
			active := strings.HasPrefix(step, "SCAN runs USING INDEX runs_active") ||
				strings.Contains(step, "INDEX runs_active (id>")
			if strings.HasPrefix(step, "SCAN") && !active && step != "SCAN CONSTANT ROW" && step != "SCAN key_uses" && step != "SCAN pauses" &&
				!strings.HasPrefix(step, "SCAN json_each") {
				t.Errorf("%s\n\t%s", query, step)
			}
			// Of the rows that are sorted, only the active ones are not limited to a page. A list sorts what is left
			// of each combination of hook, caller and state.
			if strings.Contains(step, "B-TREE FOR ORDER BY") && !strings.Contains(query, "ORDER BY state") && !list {
				t.Errorf("%s\n\t%s", query, step)
			}
			// The index must find all rows that a list asks for, the newest first.
			for _, column := range []string{"hook", "caller", "state"} {
				asked := strings.Contains(query, "AND "+column+" IN") && strings.HasPrefix(step, "SEARCH runs")
				if !active && list && asked &&
					!(strings.Contains(step, column+"=?") && strings.HasSuffix(step, "AND id>? AND id<?)")) {
					t.Errorf("%s\n\t%s", query, step)
				}
			}
			if strings.Contains(query, "runs_joined") && strings.HasPrefix(step, "SEARCH runs") &&
				!strings.Contains(step, "COVERING INDEX") {
				t.Errorf("it reads whole rows: %s\n\t%s", query, step)
			}
		}
	}
}

// TestPrune_Keeps prunes: the newest and the young runs, the active ones and the claims stay.
func TestPrune_Keeps(t *testing.T) {
	s := openStore(t) // its clock is long after the ends of all these runs
	all := fillStore(t, s, 300)
	r := store.Retention{
		Default: store.KeepRule{Count: 20},
		Hooks: map[string]store.KeepRule{
			"hook1": {}, "hook2": {Age: time.Since(time.Time{}), Count: 3},
			"hook3": {Age: time.Hour},
		},
		Claims: 100 * 365 * 24 * time.Hour, Batch: 7,
	}
	var removed []string
	for {
		some, more, err := s.Prune(t.Context(), r)
		if err != nil || len(some) > r.Batch {
			t.Fatalf("%d removed, %v", len(some), err)
		}
		removed = append(removed, some...)
		if !more {
			break
		}
	}
	// If one more run ends, there is one too many again.
	late := newRun(t, "hook0", "late")
	admitRun(t, s, late, hook.Policy{})
	finishRun(t, s, late.ID)
	some, _, err := s.Prune(t.Context(), r)
	if err != nil || len(some) != 1 {
		t.Fatalf("one too many: %v %v", err, some)
	}
	removed = append(removed, some...)
	kept := map[string]int{"hook0": 1}
	for _, run := range all {
		keep := !run.State.Ended()
		if run.State.Ended() {
			kept[run.Hook]++
			n := kept[run.Hook]
			keep = run.Hook == "hook0" && n <= 20 || run.Hook == "hook1" || run.Hook == "hook2" && n <= 3
		}
		_, err := s.Get(t.Context(), run.ID)
		if keep != (err == nil) || keep == slices.Contains(removed, run.ID) {
			t.Errorf("%s %s %s number %d: %v", run.ID, run.Hook, run.State, kept[run.Hook], err)
		}
		first, err := s.Find(t.Context(), run.Hook, runner.Claim{Key: run.ID})
		if err != nil || first.ID != run.ID || first.Hook != run.Hook {
			t.Errorf("the claim of %s: %v", run.ID, err)
		}
	}
}

// TestPrune_Claims prunes claims that cannot refuse a delivery any more.
func TestPrune_Claims(t *testing.T) {
	s := openStore(t)
	now := new(clock).now()
	for key, c := range map[string]struct{ until, created time.Time }{
		"stale by itself":          {until: now.Add(-time.Hour), created: now.Add(-2 * time.Hour)},
		"fresh":                    {until: now.Add(time.Hour), created: now.Add(-999 * 24 * time.Hour)},
		"old, without a time":      {created: now.Add(-366 * 24 * time.Hour)},
		"young, without a time":    {created: now.Add(-364 * 24 * time.Hour)},
		"an end far in the future": {until: time.Unix(1<<60, 0), created: now.Add(-999 * 24 * time.Hour)},
	} {
		r := newRun(t, "build", key)
		r.Created = c.created
		if _, err := s.Admit(t.Context(), r, runner.Claim{Key: key, Until: c.until}, hook.Policy{},
			runner.Feed{}); err != nil {
			t.Fatal(err)
		}
	}
	for batch := range 2 { // each step removes one of each kind, so a step that removed one may have left some
		if _, more, err := s.Prune(t.Context(), store.Retention{Batch: batch + 1}); err != nil || more == (batch > 0) {
			t.Fatal(more, err)
		}
	}
	for key, want := range map[string]error{
		"stale by itself": runner.ErrUnknown, "old, without a time": runner.ErrUnknown,
		"fresh": nil, "young, without a time": nil, "an end far in the future": nil,
	} {
		if _, err := s.Find(t.Context(), "build", runner.Claim{Key: key}); !errors.Is(err, want) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// TestAdmit_CancelledContext calls Admit with a context that is cancelled: an operation is recorded whole or not at
// all, and the caller knows which.
func TestAdmit_CancelledContext(t *testing.T) {
	s := openStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		r := newRun(t, "build", "f")
		_, err := s.Admit(ctx, r, runner.Claim{}, hook.Policy{}, runner.Feed{})
		_, got := s.Get(t.Context(), r.ID)
		if (err == nil) != (got == nil) {
			t.Fatalf("Admit: %v, Get: %v", err, got)
		}
		if err == nil {
			finishRun(t, s, r.ID)
		}
	}
}

// TestCancel_RunningKeepsTheWish cancels a running run: it keeps that wish, and is not queued again, even if its
// start failed.
func TestCancel_RunningKeepsTheWish(t *testing.T) {
	s := openStore(t)
	for name, cancel := range map[string]func(flight, run string) error{
		"cancelled": func(_, run string) error { _, _, err := s.Cancel(t.Context(), run); return err },
		"replaced": func(flight, run string) error {
			a := admitRun(t, s, newRun(t, "build", flight), hook.Policy{Kind: hook.Replace})
			if a.Stop == nil || a.Stop.ID != run || a.Stop.Wish != runner.Cancelled {
				return fmt.Errorf("got %+v", a)
			}
			return nil
		},
	} {
		run := admitRun(t, s, newRun(t, "build", name), hook.Policy{}).Run
		if err := cancel(name, run.ID); err != nil {
			t.Fatal(name, err)
		}
		if now := checkState(t, s, run.ID, runner.Running); now.Wish != runner.Cancelled {
			t.Errorf("%s: the wish is %q", name, now.Wish)
		}
		if now, err := s.Requeue(t.Context(), run.ID); err != nil || now.State != runner.Cancelled ||
			!now.Started.IsZero() || now.Ended.IsZero() {
			t.Errorf("%s: put back as %+v, %v", name, now, err)
		}
		if now, err := s.Requeue(t.Context(), run.ID); err != nil || now.State != runner.Cancelled {
			t.Errorf("%s: put back again as %+v, %v", name, now, err)
		}
	}
}

// TestTooBig_FailsAlone records a value that the database does not take: that operation fails, and those in the same
// transaction do not.
func TestTooBig_FailsAlone(t *testing.T) {
	s := openStore(t)
	err := s.Do(t.Context(), `UPDATE runs SET stdin = zeroblob(1000000001)`)
	if err != nil {
		t.Errorf("with no rows: %v", err)
	}
	admitRun(t, s, newRun(t, "build", "f"), hook.Policy{})
	if err := s.Do(t.Context(), `UPDATE runs SET stdin = zeroblob(1000000001)`); err == nil ||
		errors.Is(err, store.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// TestUntilSuccess_NewerRunQueued: a delivery that is repeated after its run failed does not overwrite the parameters of
// a newer delivery that is queued, and a replaced run does not start again although it failed before it was stopped.
func TestUntilSuccess_NewerRunQueued(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	admit := func(ref, key string, kind hook.PolicyKind) (runner.Admission, error) {
		r := newRun(t, "build", "f")
		r.Params = map[string]string{"ref": ref}
		return s.Admit(t.Context(), r, runner.Claim{Key: key, UntilSuccess: true}, hook.Policy{Kind: kind}, runner.Feed{})
	}
	fail := func(id string) {
		if _, _, err := s.Finish(t.Context(), id, runner.Failed, runner.End{}, runner.KeepClaims, runner.PromoteNext); err != nil {
			t.Fatal(err)
		}
	}
	one, err := admit("1", "d1", hook.Join)
	_, err2 := admit("2", "d2", hook.Join)
	fail(one.Run.ID)
	three, err3 := admit("3", "d3", hook.Join)
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	if _, err := admit("1", "d1", hook.Join); !errors.As(err, new(*runner.Busy)) {
		t.Errorf("the older delivery: %v", err)
	}
	if run, err := s.Get(t.Context(), three.Run.ID); err != nil || run.Params["ref"] != "3" {
		t.Errorf("the newer run is %+v, %v", run, err)
	}
}

// TestUntilSuccess_Replaced: a run that a newer delivery replaced does not start again, although it failed by itself just
// before it was stopped.
func TestUntilSuccess_Replaced(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	admit := func(key string) (runner.Admission, error) {
		return s.Admit(t.Context(), newRun(t, "build", "f"), runner.Claim{Key: key, UntilSuccess: true},
			hook.Policy{Kind: hook.Replace}, runner.Feed{})
	}
	one, err := admit("d1")
	two, err2 := admit("d2")
	_, _, err3 := s.Finish(t.Context(), one.Run.ID, runner.Failed, runner.End{}, runner.KeepClaims, runner.PromoteNext)
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	if _, err := admit("d1"); !errors.As(err, new(*runner.Replayed)) {
		t.Errorf("the replaced delivery: %v", err)
	}
	checkState(t, s, two.Run.ID, runner.Running)
}

// TestPromote_NotCommitted: runs whose promotion was not committed are not returned, because they would be started.
func TestPromote_NotCommitted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	s := openIn(t, dir)
	pauseHook(t, s, "build", 0)
	admitRun(t, s, newRun(t, "build", "f"), hook.Policy{Kind: hook.Queue, Depth: 3})
	resumeHook(t, s, "build")
	file, away := filepath.Join(dir, "state.db"), filepath.Join(dir, "away")
	if err := os.Rename(file, away); err != nil {
		t.Fatal(err)
	}
	if runs, err := s.Promote(t.Context()); err == nil || len(runs) > 0 {
		t.Errorf("%d runs, %v", len(runs), err)
	}
	if err := os.Rename(away, file); err != nil {
		t.Fatal(err)
	}
	if runs, err := s.Promote(t.Context()); err != nil || len(runs) != 1 {
		t.Errorf("%d runs, %v", len(runs), err)
	}
}
