package runner_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

func exit(code int) runner.End { return runner.End{Ended: time.Now(), ExitCode: &code} }

func TestRecover_EndedMeanwhile(t *testing.T) {
	h := region(t)
	b := newBench(t, h)
	before, after := b.start(t, of(h, "before")), b.start(t, of(h, "after"))
	killed := b.start(t, of(h, "killed"))
	b.crash(t)
	b.end(before.ID, exit(3))
	b.end(killed.ID, runner.End{Ended: b.now(), Signal: "SIGKILL", Reason: runner.TimedOut})
	b.recover(t)
	_, err := b.Start(of(h, "after"))
	busy(t, err, after)
	if run := b.ended(t, before); run.State != runner.Failed || *run.ExitCode != 3 {
		t.Errorf("got %+v", run)
	}
	if run := b.ended(t, killed); run.State != runner.TimedOut || run.Signal != "SIGKILL" {
		t.Errorf("got %+v", run)
	}
	if run := b.finish(t, after, 0); run.State != runner.Succeeded || *run.ExitCode != 0 {
		t.Errorf("got %+v", run)
	}
	b.start(t, of(h, "before"))
	if b.twice > 0 {
		t.Error("a run was started twice")
	}
}

// TestCancel_AdoptedRun checks that a run of an earlier server can be cancelled.
func TestCancel_AdoptedRun(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	run := b.start(t, of(h, ""))
	b.crash(t)
	b.recover(t)
	if _, err := b.Cancel(t.Context(), run.ID); err != nil {
		t.Fatal(err)
	}
	if want := []stop{{run.ID, runner.Cancelled, -1}}; !slices.Equal(b.stopped(), want) {
		t.Errorf("got %v", b.stopped())
	}
}

func TestRecover_NeverStarted(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	id := b.admit(t, h, "v", runner.Feed{Trace: "00-1"})
	b.crash(t)
	b.recover(t)
	if o := b.flies(t, id); o.Values["x"] != "v" || o.Trace != "00-1" || o.Caller != "ci" {
		t.Errorf("got %+v", o)
	}
	b.crash(t)
	b.recover(t)
	b.queue(t, of(h, "w"))
	if b.count() != 1 {
		t.Errorf("%d starts", b.count())
	}
}

// rewrite changes the database of a server that has ended, and starts another server.
func (b *bench) rewrite(t *testing.T, statement string) {
	t.Helper()
	b.close(t)
	db, err := sql.Open("sqlite", filepath.Join(b.dir, "state.db"))
	if err == nil {
		_, err = db.ExecContext(t.Context(), statement)
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	b.open(t)
}

// TestRecover_AfterReboot: a run that the supervisor does not know may have run before the reboot, because its folder
// may be lost.
func TestRecover_AfterReboot(t *testing.T) {
	h, again := policy(t, queueOf(5)), policy(t, func(s *hook.Spec) { s.OnInterrupted = "rerun" })
	again.Name = "again"
	b := newBench(t, h, again)
	running, queued, rerun := b.admit(t, h, "1", runner.Feed{}), b.admit(t, h, "2", runner.Feed{}), b.admit(t, again, "3", runner.Feed{})
	b.rewrite(t, `UPDATE runs SET boot = 'another' WHERE boot <> ''`)
	b.recover(t)
	for _, id := range []string{running, rerun} {
		if run := b.ended(t, runner.Run{ID: id}); run.State != runner.Interrupted || run.Ended.IsZero() {
			t.Errorf("got %+v", run)
		}
	}
	b.flies(t, queued)
	all, _, err := b.Runner.List(t.Context(), runner.Filter{Hooks: []string{"again"}})
	if err != nil || len(all) != 2 || all[0].RerunOf != rerun {
		t.Fatalf("got %+v, %v", all, err)
	}
	b.flies(t, all[0].ID)
	if b.count() != 2 {
		t.Errorf("%d starts", b.count())
	}
	b.crash(t) // the machine is not restarted this time
	b.recover(t)
	b.state(t, queued, runner.Running)
}

// TestCancel_ThenNextServer: a cancellation that was confirmed to the caller is carried out by the next server.
func TestCancel_ThenNextServer(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { s.Busy.Queue, s.OnInterrupted = 5, "rerun" })
	for what, started := range map[string]bool{"order lost": false, "order carried out late": true} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t, h)
			id := b.admit(t, h, "1", runner.Feed{})
			second := b.queue(t, of(h, "2"))
			if started { // the cancellation is recorded, and not answered: the supervisor is silent
				b.set(func() { b.claimed = true })
				cancel := b.Cancel
				go func() { _, _ = cancel(t.Context(), id) }()
				until(t, "the cancellation is recorded", func() bool { return b.record(t, id).Wish == runner.Cancelled })
			} else if run, err := b.Cancel(t.Context(), id); err != nil || run.State != runner.Running {
				t.Fatalf("got %+v, %v", run, err)
			}
			if started {
				if err := b.commands.Start(runner.Order{Run: id, Hook: h.Name, Values: hook.Values{"x": "1"}}); err != nil {
					t.Fatal(err)
				}
				b.set(func() { b.obey = true })
			}
			b.crash(t)
			b.recover(t)
			run := b.ended(t, runner.Run{ID: id})
			if run.State != runner.Cancelled || started != (run.Signal == "SIGTERM") {
				t.Errorf("got %+v", run)
			}
			b.flies(t, second.Run.ID)
		})
	}
}

// TestCancel_ThenReboot: a run that was requested to be cancelled is not repeated as an interrupted one.
func TestCancel_ThenReboot(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { s.OnInterrupted = "rerun" })
	b := newBench(t, h)
	id := b.admit(t, h, "1", runner.Feed{})
	if _, err := b.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	b.rewrite(t, `UPDATE runs SET boot = 'another'`)
	b.recover(t)
	if run := b.ended(t, runner.Run{ID: id}); run.State != runner.Cancelled {
		t.Errorf("got %+v", run)
	}
	if all, _, err := b.Runner.List(t.Context(), runner.Filter{}); err != nil || len(all) != 1 || b.count() > 0 {
		t.Errorf("%d runs, %v, %d starts", len(all), err, b.count())
	}
}

// TestRecover_BootUnknown: a run that was recorded by a version without boot ids may have run.
func TestRecover_BootUnknown(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	id := b.admit(t, h, "", runner.Feed{})
	b.rewrite(t, `UPDATE runs SET boot = ''`)
	b.recover(t)
	b.ended(t, runner.Run{ID: id})
	b.state(t, id, runner.Interrupted)
}

// TestHookMissing_ComesBack: a configuration file that is being replaced may lack a hook for some seconds.
func TestHookMissing_ComesBack(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.admit(t, h, "1", runner.Feed{})
	second := b.admit(t, h, "2", runner.Feed{})
	b.crash(t)
	b.use()
	b.recover(t)
	until(t, "it is queued again", func() bool { return b.record(t, first).State == runner.Queued })
	b.use(h)
	for _, id := range []string{first, second} {
		b.flies(t, id)
		b.finish(t, runner.Run{ID: id}, 0)
	}
	if b.count() != 2 {
		t.Errorf("%d starts", b.count())
	}
}

// TestHookMissing_Removed: a run that was accepted long ago does not start because another hook gets the same name.
func TestHookMissing_Removed(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.admit(t, h, "1", runner.Feed{})
	second := b.admit(t, h, "2", runner.Feed{})
	b.crash(t)
	b.use()
	b.recover(t)
	until(t, "it is queued again", func() bool { return b.record(t, first).State == runner.Queued })
	b.pass(2 * time.Hour)
	b.ended(t, runner.Run{ID: first})
	until(t, "the next is queued again", func() bool { return b.record(t, second).State == runner.Queued })
	b.pass(2 * time.Hour)
	for _, id := range []string{first, second} {
		if run := b.ended(t, runner.Run{ID: id}); run.State != runner.Failed {
			t.Errorf("got %+v", run)
		}
	}
	if b.count() > 0 {
		t.Error("started without a hook")
	}
}

func TestRecover_QueueOrder(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second, third := b.queue(t, of(h, "2")), b.queue(t, of(h, "3"))
	b.crash(t)
	b.recover(t)
	b.state(t, second.Run.ID, runner.Queued) // the first run continues
	b.crash(t)
	b.end(first.ID, exit(0))
	b.recover(t)
	b.flies(t, second.Run.ID)
	b.finish(t, second.Run, 0)
	b.flies(t, third.Run.ID)
	if b.overlaps > 0 || b.count() != 3 {
		t.Errorf("%d overlaps, %d runs", b.overlaps, b.count())
	}
}

func TestReplace_StopLostInCrash(t *testing.T) {
	h := policy(t, replace)
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second := b.admit(t, h, "2", runner.Feed{})
	b.crash(t)
	b.recover(t)
	if want := []stop{{first.ID, runner.Cancelled, -1}}; !slices.Equal(b.stopped(), want) {
		t.Errorf("got %v", b.stopped())
	}
	b.end(first.ID, runner.End{Ended: b.now(), Reason: runner.Cancelled})
	b.flies(t, second)
}

func TestRerun_AfterInterruption(t *testing.T) {
	rerun := func(s *hook.Spec) { s.OnInterrupted = "rerun" }
	h := policy(t, rerun)
	b := newBench(t, h)
	run := b.start(t, claimed(of(h, "v"), "k"))
	first := run
	for attempt := 1; attempt <= 3; attempt++ {
		b.end(run.ID, runner.End{Ended: b.now(), Reason: runner.Interrupted})
		b.ended(t, run)
		all, _, err := b.Runner.List(t.Context(), runner.Filter{})
		if err != nil || len(all) != attempt+1 {
			t.Fatalf("%d runs, %v", len(all), err)
		}
		if all[0].RerunOf != run.ID || all[0].Attempt != attempt || all[0].Caller != "ci" || all[0].Params["x"] != "v" {
			t.Errorf("got %+v", all[0])
		}
		run = all[0]
		b.flies(t, run.ID)
	}
	b.end(run.ID, runner.End{Ended: b.now(), Reason: runner.Interrupted})
	b.ended(t, run)
	b.start(t, of(h, "w")) // no run is queued
	if b.count() != 5 || b.overlaps > 0 {
		t.Errorf("%d runs, %d overlaps", b.count(), b.overlaps)
	}
	_, err := b.Start(claimed(of(h, "v"), "k")) // the command did run
	replayed(t, err, first)
}

// TestRerun_HookMissing: an interrupted run is queued again as its hook had it, although the hook is missing while its
// file is replaced. It starts once the hook is back.
func TestRerun_HookMissing(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { s.OnInterrupted = "rerun" })
	b := newBench(t, h)
	run := b.start(t, of(h, "v"))
	b.use()
	b.end(run.ID, runner.End{Ended: b.now(), Reason: runner.Interrupted})
	b.ended(t, run)
	all, _, err := b.Runner.List(t.Context(), runner.Filter{})
	if err != nil || len(all) != 2 || all[0].RerunOf != run.ID || all[0].Params["x"] != "v" {
		t.Fatalf("got %+v, %v", all, err)
	}
	b.use(h)
	b.flies(t, all[0].ID)
	never := policy(t, func(*hook.Spec) {})
	b.use(never) // the rule in force counts where there is one
	b.end(all[0].ID, runner.End{Ended: b.now(), Reason: runner.Interrupted})
	b.ended(t, all[0])
	if all, _, err = b.Runner.List(t.Context(), runner.Filter{}); err != nil || len(all) != 2 {
		t.Errorf("%d runs, %v", len(all), err)
	}
}

func TestRerun_OnceAcrossCrash(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { s.OnInterrupted = "rerun" })
	b := newBench(t, h)
	run := b.start(t, of(h, "v"))
	b.disk.unfinished(true) // the run is queued again, and its end is not recorded
	b.end(run.ID, runner.End{Ended: b.now(), Reason: runner.Interrupted})
	until(t, "the end is tried", func() bool { return b.disk.refusals() > 0 })
	b.crash(t)
	b.recover(t)
	b.ended(t, run)
	all, _, err := b.Runner.List(t.Context(), runner.Filter{})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d runs, %v", len(all), err)
	}
	b.flies(t, all[0].ID)
}

func TestRerun_NewerRunQueued(t *testing.T) {
	for name, kind := range map[string]func(*hook.Spec){"join": join, "replace": replace} {
		t.Run(name, func(t *testing.T) {
			h := policy(t, func(s *hook.Spec) { kind(s); s.OnInterrupted = "rerun" })
			b := newBench(t, h)
			first := b.start(t, of(h, "old"))
			second := b.queue(t, of(h, "new"))
			b.end(first.ID, runner.End{Ended: b.now(), Reason: runner.Interrupted})
			b.ended(t, first)
			b.flies(t, second.Run.ID)
			b.finish(t, second.Run, 0)
			if active, err := b.disk.Active(t.Context()); err != nil || len(active) > 0 || b.count() != 2 {
				t.Errorf("active %v, %v; %d runs", active, err, b.count())
			}
		})
	}
}

func TestLeave_NextServerGoesOn(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second := b.queue(t, of(h, "2"))
	waiting := make(chan runner.Run)
	go func() { run, _ := b.Wait(t.Context(), first.ID); waiting <- run }()
	old := b.Runner
	old.Leave()
	if run := <-waiting; run.State != runner.Running {
		t.Errorf("got %+v", run)
	}
	if run, err := old.Wait(t.Context(), second.Run.ID); err != nil || run.State != runner.Queued { // a later call does not wait either
		t.Errorf("got %+v, %v", run, err)
	}
	if _, err := b.Start(of(h, "3")); !errors.Is(err, runner.ErrDraining) {
		t.Errorf("got %v", err)
	}
	b.end(first.ID, exit(0))
	until(t, "the end is recorded", func() bool { return b.record(t, first.ID).State == runner.Succeeded })
	b.state(t, second.Run.ID, runner.Queued)
	if b.count() != 1 || len(b.stopped()) > 0 {
		t.Errorf("%d starts, stopped %v", b.count(), b.stopped())
	}
	b.crash(t)
	b.recover(t)
	b.flies(t, second.Run.ID)
}

func (b *bench) record(t *testing.T, id string) runner.Run {
	t.Helper()
	run, err := b.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func TestLeave_RunGoesOn(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	run := b.start(t, of(h, ""))
	until(t, "the run is followed", func() bool {
		b.commands.mu.Lock()
		defer b.commands.mu.Unlock()
		return len(b.follow[run.ID]) == 1
	})
	b.Leave()
	b.disconnect()
	b.Drain(t.Context()) // returns when the follower has ended
	b.Kill()             // of what runs here, and it is the next server's
	b.state(t, run.ID, runner.Running)
	if len(b.stopped()) > 0 {
		t.Errorf("stopped %v", b.stopped())
	}
	b.crash(t)
	b.recover(t)
	if run := b.finish(t, run, 0); run.State != runner.Succeeded {
		t.Errorf("got %+v", run)
	}
}

func TestLeave_AwaitsOrders(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	b.gateStarts()
	started := make(chan runner.Run)
	go func() { run, _ := b.Start(of(h, "")); started <- run }()
	id := <-b.entered
	left := make(chan struct{})
	go func() { b.Leave(); close(left) }()
	until(t, "no more deliveries", b.Draining)
	select {
	case <-left:
		t.Error("the next server would start this run, too")
	default:
	}
	close(b.gate)
	<-left
	if run := <-started; run.ID != id || b.count() != 1 {
		t.Errorf("got %+v, %d starts", run, b.count())
	}
}

func TestLeave_AdmittedBefore(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	b.disk.admitted = func() { b.Leave() }
	run := b.start(t, of(h, ""))
	if b.count() > 0 {
		t.Error("started after Leave")
	}
	b.crash(t)
	b.recover(t)
	b.flies(t, run.ID)
}

func TestDrain_LeavesQueue(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second, third := b.queue(t, of(h, "2")), b.queue(t, of(h, "3"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.set(func() { b.obey = true })
	b.Drain(ctx)
	b.state(t, first.ID, runner.Cancelled)
	b.state(t, second.Run.ID, runner.Queued)
	b.state(t, third.Run.ID, runner.Queued)
	if b.count() != 1 {
		t.Errorf("%d starts", b.count())
	}
	b.crash(t)
	b.recover(t)
	b.flies(t, second.Run.ID)
	b.state(t, third.Run.ID, runner.Queued)
}

func TestKill_BeforePromotedRunStarts(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second := b.queue(t, of(h, "2"))
	b.disk.finished = func() { b.Kill() }
	b.finish(t, first, 0)
	b.Drain(t.Context())
	if b.count() != 1 {
		t.Errorf("%d starts", b.count())
	}
	b.crash(t)
	b.recover(t)
	b.flies(t, second.Run.ID)
}

func TestFinish_StoreUnavailable(t *testing.T) {
	h := policy(t, func(s *hook.Spec) { s.Busy.Queue, s.OnInterrupted = 5, "rerun" })
	b := newBench(t, h)
	first := b.start(t, of(h, "1"))
	second := b.queue(t, of(h, "2"))
	b.disk.full(true)
	b.end(first.ID, runner.End{Ended: b.now(), Reason: runner.Interrupted})
	until(t, "the end is tried", func() bool { return b.disk.refusals() > 0 })
	if _, err := b.Start(of(h, "3")); !errors.Is(err, runner.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if b.count() != 1 {
		t.Errorf("%d starts", b.count())
	}
	b.disk.full(false)
	if run := b.ended(t, first); run.State != runner.Interrupted {
		t.Errorf("got %+v", run)
	}
	b.flies(t, second.Run.ID)
	active, err := b.disk.Active(t.Context())
	if err != nil || len(active) != 2 || active[1].RerunOf != first.ID {
		t.Errorf("active %+v, %v", active, err)
	}
}

func TestNotStarted_StoreUnavailable(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	b.set(func() { b.refuse = errors.New("gone") })
	b.disk.unfinished(true)
	_, err := b.Start(claimed(of(h, ""), "k"))
	var failed *runner.NotStarted
	if !errors.As(err, &failed) || failed.Run.State != runner.Failed {
		t.Fatalf("got %v", err)
	}
	b.disk.unfinished(false)
	b.ended(t, failed.Run)
	b.set(func() { b.refuse = nil })
	b.start(t, claimed(of(h, ""), "k"))
}

func TestRecover_StoreCannotRecord(t *testing.T) {
	h, other := policy(t, queueOf(5)), alone(t)
	other.Name = "other"
	b := newBench(t, h, other)
	goesOn := b.start(t, of(other, ""))
	first := b.admit(t, h, "1", runner.Feed{})
	second := b.admit(t, h, "2", runner.Feed{})
	if _, _, err := b.disk.SQLite.Finish(t.Context(), first, runner.Succeeded, runner.End{},
		runner.KeepClaims, runner.LeaveQueued); err != nil {
		t.Fatal(err)
	}
	b.crash(t)
	b.disk.unfinished(true)
	b.recover(t)
	until(t, "what waits is tried again", func() bool { return b.disk.refusals() > 1 })
	if _, err := b.Start(of(other, "")); err == nil {
		t.Error("what goes on was forgotten")
	}
	b.disk.unfinished(false)
	b.flies(t, second)
	b.finish(t, goesOn, 0)
}

func TestRetry_NoSpace(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	first, second := b.start(t, of(h, "1")), b.queue(t, of(h, "2")).Run
	b.set(func() { b.refuse = runner.ErrFull })
	b.finish(t, first, 0)
	refused := func() bool { b.commands.mu.Lock(); defer b.commands.mu.Unlock(); return b.refused > 1 }
	until(t, "it is tried again", refused)
	if run, err := b.Get(t.Context(), second.ID); err != nil || run.State.Ended() { // its start is being tried, or it is queued
		t.Errorf("run is %s, %v", run.State, err)
	}
	b.set(func() { b.refuse, b.refused = nil, 0 })
	b.flies(t, second.ID)
	// A server that drains at that time does not end the run either.
	third := b.queue(t, of(h, "3")).Run
	b.set(func() { b.refuse = runner.ErrFull })
	b.finish(t, second, 0)
	until(t, "it is tried again", refused)
	b.Drain(t.Context())
	b.crash(t)
	b.set(func() { b.refuse = nil })
	b.recover(t)
	b.flies(t, third.ID)
	b.finish(t, third, 0)
	// The sender gets an answer, and may send the delivery again.
	b.set(func() { b.refuse = runner.ErrFull })
	if _, err := b.Start(claimed(of(h, "4"), "k")); !errors.Is(err, runner.ErrFull) {
		t.Errorf("got %v", err)
	}
	b.set(func() { b.refuse = nil })
	b.start(t, claimed(of(h, "4"), "k"))
}

func TestDrain_StoreCannotRecord(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	run := b.start(t, of(h, ""))
	b.disk.full(true)
	b.set(func() { b.obey = true })
	b.Kill()
	b.Drain(t.Context())
	b.crash(t)
	b.state(t, run.ID, runner.Running)
	b.recover(t) // the end is still known
	if run := b.ended(t, run); run.State != runner.Cancelled || run.Signal != "SIGTERM" {
		t.Errorf("got %+v", run)
	}
}

func TestWait_ReadFailsForOne(t *testing.T) {
	h := alone(t)
	b := newBench(t, h)
	run := b.start(t, of(h, ""))
	ended := make(chan runner.Run)
	const waiters = 5
	for range waiters {
		go func() { run, _ := b.Wait(t.Context(), run.ID); ended <- run }()
	}
	until(t, "all have looked", func() bool { return b.disk.looks() >= waiters })
	b.disk.full(true)
	if _, err := b.Wait(t.Context(), run.ID); !errors.Is(err, runner.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	b.disk.full(false)
	b.finish(t, run, 0)
	for range waiters {
		if run := <-ended; run.State != runner.Succeeded {
			t.Errorf("got %+v", run)
		}
	}
}

// unanswered fails to look up runs while it is set.
type unanswered struct {
	*commands

	failing atomic.Bool
}

// Known implements runner.Processes.
func (u *unanswered) Known(run string) (bool, error) {
	if u.failing.Load() {
		return false, runner.ErrNotNow
	}
	return u.commands.Known(run)
}

// TestRecover_CancelledMeanwhile cancels a run while the next server cannot resume it yet: its command never starts.
func TestRecover_CancelledMeanwhile(t *testing.T) {
	t.Parallel()
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	id := b.admit(t, h, "1", runner.Feed{})
	b.crash(t)
	procs := &unanswered{commands: b.commands}
	procs.failing.Store(true)
	b.Runner = runner.New(b.disk, procs, b.hook, b.now, slog.New(b.log))
	b.recover(t)
	if _, _, err := b.disk.Cancel(t.Context(), id); err != nil { // recorded, and not known to the runner
		t.Fatal(err)
	}
	procs.failing.Store(false)
	until(t, "the run ends", func() bool { return b.record(t, id).State.Ended() })
	if run := b.record(t, id); run.State != runner.Cancelled || b.count() > 0 {
		t.Errorf("got %+v after %d starts", run, b.count())
	}
}
