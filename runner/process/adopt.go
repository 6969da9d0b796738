package process

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"sallyport/internal/pathsafe"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
	"sallyport/runner/process/proctree"
	"sallyport/runner/process/rundir"
)

// adoptRuns takes over the runs that were in progress when another supervisor ended, or when this one replaced
// itself. The children of this process are adopted with their exit codes, the other runs by their locks. It is called
// once, before any run is started.
func (l *Local) adoptRuns() error {
	if err := l.ends.loadUnwritten(); err != nil {
		l.log.Error("taking over the ends of runs that are not on disk yet", "error", err)
	}
	runs, err := l.runs.Locks.MayBeActive()
	if err != nil {
		return fmt.Errorf("adopting runs: %w", err)
	}
	var adopted []*active
	for _, run := range runs {
		if a := l.adoptRun(run); a != nil {
			adopted = append(adopted, a)
		}
	}
	// All runs are registered before one is followed: the end of a run reaps all children that belong to no known
	// run.
	for _, a := range adopted {
		l.active.addRun(a)
	}
	for _, a := range adopted {
		go a.followToEnd()
	}
	l.parent.Cgroups.Sweep(l.isOver)
	return nil
}

// isOver reports whether a run that has its folder here is not in progress.
func (l *Local) isOver(run string) bool {
	if l.active.findRun(run) != nil || !l.runs.Exists(run) {
		return false
	}
	s, err := l.runs.ReadStatus(run)
	return err != nil || !l.runs.IsCopied(s)
}

// describeLock describes the lock of a run, which its processes inherit.
func describeLock(r *rundir.Runs, run string) proctree.Run {
	return proctree.Run{ID: run, LockPath: r.LockPath(run), IsLocked: func() bool { return r.Locks.IsHeld(run) }}
}

// adoptRun returns the run if it still has to be followed, or nil.
func (l *Local) adoptRun(run string) *active {
	flight, err := l.runs.Locks.ReadFlight(run)
	if err != nil {
		l.log.Error("reading the flight of a run", "run", run, "error", err)
	}
	s, err := l.ends.statusOf(run)
	if err != nil {
		s = &rundir.Status{Started: time.Now(), Bounds: rundir.Bounds{Timeout: time.Hour, Head: 1 << 40, Tail: 1 << 40}}
	}
	flight = cmp.Or(flight, s.Flight)
	l.ends.adoptFlight(run, cmp.Or(s.Hook, hook.FlightHook(flight)), flight, s.Values)
	switch {
	case errors.Is(err, runner.ErrUnknown):
		// The command never started; or the run was removed, and one of its processes escaped.
		if !l.runs.Locks.IsHeld(run) {
			err = l.runs.RemoveUnstarted(run)
		}
		if err != nil && !errors.Is(err, runner.ErrUnknown) {
			l.log.Warn("removing a run that never started", "run", run, "error", err)
		}
		l.ends.freeFlight(run, flight)
		return nil
	case err != nil:
		l.log.Error("adopting a run without a readable status", "run", run, "error", err)
	case !s.Ended.IsZero():
		l.ends.freeFlight(run, flight)
		return nil
	}
	s.Run, s.Flight = run, flight
	a := newActive(l, *s)
	copied := l.runs.IsCopied(s)
	if copied {
		l.log.Warn("a run was copied with its folder; its processes are left alone", "run", run, "hook", s.Hook)
	}
	if copied || l.runs.Locks.AreIgnored() {
		a.status.Why, a.status.Ended = runner.Interrupted, time.Now()
		a.concludeRun()
		return nil
	}
	a.tree = l.parent.Adopt(describeLock(l.runs, run), s)
	a.output = output.Adopt(l.runs, l.log, s)
	a.status.Found, a.status.Pipe, a.status.Output = nil, 0, runner.Output{}
	l.log.Info("run adopted", "run", run, "hook", s.Hook, "own_child", !a.tree.Main.IsOrphan())
	return a
}

// parking asks a run to write its state into its folder and to do nothing until resume is closed.
type parking struct {
	ready  chan<- error
	resume <-chan struct{}
}

// Park makes every run write its state into its folder, so that another program image can take over. resume undoes
// Park; the caller calls it after an error, too.
func (l *Local) Park() (resume func(), err error) {
	runs := l.active.listRuns()
	stop := make(chan struct{})
	resume = func() { close(stop) }
	if len(runs) > 0 && !proctree.CanReplace() {
		return resume, fmt.Errorf("%d runs are in progress, and this system would lose their exit codes", len(runs))
	}
	for _, a := range runs {
		ready := make(chan error, 1)
		select {
		case a.park <- parking{ready: ready, resume: stop}:
			if err := <-ready; err != nil {
				return resume, fmt.Errorf("parking run %s: %w", a.status.Run, err)
			}
		case <-a.done:
		}
	}
	return resume, l.SaveUnwritten()
}

// SaveUnwritten writes the ends that could not be written into the folders of their runs to a file that the next
// supervisor reads.
func (l *Local) SaveUnwritten() error { return l.ends.saveUnwritten() }

// handOver writes what the next program image needs into the folder of the run.
func (a *active) handOver() (err error) {
	if a.status.Pipe, err = a.output.Pause(); err != nil {
		return err
	}
	a.status.Output.Bytes, a.status.Found = a.output.Size(), a.tree.Found()
	return a.local.runs.WriteStatus(&a.status, pathsafe.Unsynced)
}

// resumeFollowing undoes handOver.
func (a *active) resumeFollowing() {
	a.output.Unpause(a.status.Pipe)
	a.status.Pipe, a.status.Found = 0, nil
	a.status.Output = runner.Output{}
}

// Earlier reports what became of an earlier request to start a run, which is not being carried out any more: whether
// the run is known, and the error of its start.
func (l *Local) Earlier(run string) (known bool, err error) {
	s, err := l.ends.statusOf(run)
	switch {
	case errors.Is(err, runner.ErrUnknown):
		return false, nil
	case err != nil:
		return true, err
	case s.IsRevoked():
		return true, fmt.Errorf("starting run %s: it was revoked: %w", run, fs.ErrExist)
	case s.Started.IsZero():
		return true, fmt.Errorf("starting run %s: %s", run, s.Error)
	}
	return true, nil
}
