package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"sallyport/internal/audit"
	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// auditedStore is a store with an audit log, and what happens before and after the store asks whether it may commit.
type auditedStore struct {
	*store.SQLite

	t             *testing.T
	state         string
	log           *audit.Log
	audited       runner.Store
	before, after func() error
}

func newAuditedStore(t *testing.T) *auditedStore {
	t.Helper()
	s := &auditedStore{t: t, state: t.TempDir()}
	check(t, os.Chmod(s.state, 0o700))
	var err error
	s.SQLite, err = store.Open(t.Context(), s.state, time.Now, slog.New(slog.DiscardHandler))
	check(t, err)
	t.Cleanup(func() { _ = s.SQLite.Close() })
	s.log = openCheckpoint(t, s.state, 8<<20)
	s.audited = audit.Store(s, s.log)
	s.atCommit(nil, nil)
	return s
}

// atCommit sets what happens before and after the store asks whether it may commit.
func (s *auditedStore) atCommit(before, after func() error) {
	nothing := func() error { return nil }
	if s.before = before; before == nil {
		s.before = nothing
	}
	if s.after = after; after == nil {
		s.after = nothing
	}
}

// AdmitIf implements audit.ConfirmingStore.
func (s *auditedStore) AdmitIf(
	ctx context.Context, r runner.Run, c runner.Claim, p hook.Policy, in runner.Feed,
	allow func(runner.Admission) error,
) (runner.Admission, error) {
	return s.SQLite.AdmitIf(ctx, r, c, p, in, func(a runner.Admission) error {
		for _, do := range []func() error{s.before, func() error { return allow(a) }, s.after} {
			if err := do(); err != nil {
				return err
			}
		}
		return nil
	})
}

// admit records a run of the hook build for a request.
func (s *auditedStore) admit(policy hook.PolicyKind) (runner.Admission, error) {
	s.t.Helper()
	r := runner.Run{
		ID: uuid.Must(uuid.NewV7()).String(), Hook: "build", Flight: "build", Caller: "ci", Created: time.Now(),
		Params: hook.Values{"at": fmt.Sprint(time.Now().UnixNano())},
	}
	ctx := audit.WithRequest(s.t.Context(), func() audit.Line { return audit.Line{Request: "to start " + r.ID} })
	return s.audited.Admit(ctx, r, runner.Claim{}, hook.Policy{Kind: policy}, runner.Feed{})
}

func (s *auditedStore) mustAdmit(policy hook.PolicyKind) runner.Admission {
	s.t.Helper()
	a, err := s.admit(policy)
	check(s.t, err)
	return a
}

// hideLog moves the audit log away, so that no line can be written until showLog.
func (s *auditedStore) hideLog() error { return os.Rename(s.state+"/audit", s.state+"/away") }

// showLog moves the audit log back, and waits until lines can be written.
func (s *auditedStore) showLog() {
	s.t.Helper()
	check(s.t, os.Rename(s.state+"/away", s.state+"/audit"))
	testenv.WaitUntil(s.t, "the audit log to find its folder", func() bool { return s.log.Probe(s.t.Context()) == nil })
}

// decisions returns the lines about a run with this decision and action.
func (s *auditedStore) decisions(run string, d audit.Decision, action string) (found []audit.Line) {
	s.t.Helper()
	for _, line := range readLines(s.t, s.state) {
		if line.Run == run && line.Decision == d && line.Action == action {
			found = append(found, line)
		}
	}
	return found
}

// checkLine checks that one line about a run has this decision and action, and its reason.
func (s *auditedStore) checkLine(run string, d audit.Decision, action, reason string) audit.Line {
	s.t.Helper()
	found := s.decisions(run, d, action)
	if len(found) != 1 || found[0].Reason != reason {
		s.t.Errorf("%s %s of run %s: got %+v, want reason %q", d, action, run, found, reason)
		return audit.Line{}
	}
	return found[0]
}

// checkUnchanged checks that a run is as it was before.
func (s *auditedStore) checkUnchanged(before runner.Run) {
	s.t.Helper()
	now, err := s.Get(s.t.Context(), before.ID)
	if err != nil || now.State != before.State || now.Wish != "" || now.Params["at"] != before.Params["at"] {
		s.t.Errorf("got %+v %v, want %+v", now, err, before)
	}
}

// startAndQueue records a running run and a queued one.
func (s *auditedStore) startAndQueue() (running, queued runner.Run) {
	s.t.Helper()
	return s.mustAdmit(hook.Join).Run, s.mustAdmit(hook.Join).Run
}

// TestStore_ReplacedRuns replaces a running and a queued run: their lines are on the disk before the store changes
// them.
func TestStore_ReplacedRuns(t *testing.T) {
	t.Parallel()
	s := newAuditedStore(t)
	running, queued := s.startAndQueue()
	s.atCommit(nil, func() error {
		for _, run := range []runner.Run{running, queued} {
			s.checkUnchanged(run)
			if len(s.decisions(run.ID, audit.Allowed, "cancel")) != 1 {
				t.Errorf("no line says that run %s is cancelled", run.ID)
			}
		}
		return nil
	})
	a := s.mustAdmit(hook.Replace)
	if a.Stop == nil || a.Stop.ID != running.ID || len(a.Superseded) != 1 || a.Superseded[0].ID != queued.ID {
		t.Errorf("got %+v", a)
	}
	closeLog(t, s.log)
	for _, run := range []runner.Run{running, queued} {
		line := s.checkLine(run.ID, audit.Allowed, "cancel", "replaced by run "+a.Run.ID)
		if line.Request != "to start "+a.Run.ID || line.Hook != "build" || line.Params != audit.Digest(run.Params) {
			t.Errorf("got %+v", line)
		}
	}
}

// TestStore_JoinedRun joins a queued run: a line with its new parameters is on the disk before the store has them.
func TestStore_JoinedRun(t *testing.T) {
	t.Parallel()
	s := newAuditedStore(t)
	_, queued := s.startAndQueue()
	s.atCommit(nil, func() error {
		s.checkUnchanged(queued)
		if len(s.decisions(queued.ID, audit.Allowed, "join")) != 1 {
			t.Error("no line says that the run is joined")
		}
		return nil
	})
	a := s.mustAdmit(hook.Join)
	closeLog(t, s.log)
	lines := s.decisions(queued.ID, audit.Allowed, "join")
	if !a.Joined || len(lines) != 1 || lines[0].Params != audit.Digest(a.Run.Params) {
		t.Fatalf("got %+v, and %+v in the audit log", a, lines)
	}
	s.checkLine(strings.TrimPrefix(lines[0].Reason, "joined by run "), audit.Void, "start", "joined run "+queued.ID)
}

// TestStore_OtherRunWithoutLine cannot write the lines about the runs that a run replaces or joins: nothing is
// recorded, not even for the next server.
func TestStore_OtherRunWithoutLine(t *testing.T) {
	t.Parallel()
	for _, policy := range []hook.PolicyKind{hook.Join, hook.Replace} {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			s := newAuditedStore(t)
			running, queued := s.startAndQueue()
			s.atCommit(s.hideLog, nil)
			if a, err := s.admit(policy); !errors.Is(err, runner.ErrUnavailable) {
				t.Errorf("got %+v %v", a, err)
			}
			s.checkUnchanged(running)
			s.checkUnchanged(queued)
			if runs, _, err := s.List(t.Context(), runner.Filter{}); err != nil || len(runs) != 2 {
				t.Errorf("got %+v %v", runs, err)
			}
			s.showLog()
			s.atCommit(nil, nil)
			next := s.mustAdmit(policy).Run
			closeLog(t, s.log)
			verifyState(t, s.state)
			starts, voids := 0, 0
			for _, line := range readLines(t, s.state) {
				switch {
				case line.Decision == audit.Allowed && line.Action == "start":
					starts++
				case line.Decision == audit.Void && line.Run != next.ID && line.Action == "start":
					voids++
				}
			}
			if joined := map[hook.PolicyKind]int{hook.Join: 1}[policy]; starts != 4 || voids != 1+joined {
				t.Errorf("%d starts were allowed, and %d were not done", starts, voids)
			}
		})
	}
}

// TestStore_ReplaceNotRecorded fails after the lines about replaced runs are written, while no line can be written: as
// soon as lines can be written, others say that none of it was done.
func TestStore_ReplaceNotRecorded(t *testing.T) {
	t.Parallel()
	s := newAuditedStore(t)
	running, queued := s.startAndQueue()
	full := errors.New("the disk is full")
	s.atCommit(nil, func() error { return errors.Join(full, s.hideLog()) })
	if a, err := s.admit(hook.Replace); !errors.Is(err, full) {
		t.Errorf("got %+v %v", a, err)
	}
	testenv.WaitUntil(t, "the audit log to miss its folder", func() bool { return s.log.Err() != nil })
	s.showLog()
	closeLog(t, s.log)
	verifyState(t, s.state)
	for _, run := range []runner.Run{running, queued} {
		s.checkUnchanged(run)
		if n := len(s.decisions(run.ID, audit.Allowed, "cancel")); n != 1 {
			t.Errorf("%d lines allow to cancel run %s", n, run.ID)
		}
		s.checkLine(run.ID, audit.Void, "cancel", full.Error())
	}
}

// TestStore_CancelledTooLate cancels runs that end by themselves before it or during it: a line says that they were not
// cancelled.
func TestStore_CancelledTooLate(t *testing.T) {
	t.Parallel()
	s := newAuditedStore(t)
	running, queued := s.startAndQueue()
	cancel := func(run runner.Run) {
		t.Helper()
		if _, _, err := s.audited.Cancel(t.Context(), run.ID); err != nil {
			t.Error(err)
		}
	}
	finish := func(run runner.Run, as runner.State) {
		t.Helper()
		if _, _, err := s.audited.Finish(t.Context(), run.ID, as, runner.End{}, runner.KeepClaims,
			runner.PromoteNext); err != nil {
			t.Error(err)
		}
	}
	cancel(running)
	finish(running, runner.Succeeded)
	finish(queued, runner.Failed)
	cancel(queued)
	cancelled := s.mustAdmit(hook.Join).Run
	cancel(cancelled)
	finish(cancelled, runner.Cancelled)
	closeLog(t, s.log)
	s.checkLine(running.ID, audit.Void, "cancel", "the run had ended as succeeded")
	s.checkLine(queued.ID, audit.Void, "cancel", "the run had ended as failed")
	if voids := s.decisions(cancelled.ID, audit.Void, "cancel"); len(voids) != 0 {
		t.Errorf("got %+v", voids)
	}
}
