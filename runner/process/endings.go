package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"sallyport/internal/pathsafe"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/proctree"
	"sallyport/runner/process/rundir"
)

// endings does what is left to do when the command of a run has ended: it writes the end, frees the flight once no
// process holds the lock, and removes the working folder. Each step is tried again until it succeeds.
type endings struct {
	runs   *rundir.Runs
	parent *proctree.Parent
	log    *slog.Logger
	again  time.Duration // until the first new attempt to remove a working folder

	mu        sync.Mutex
	unwritten map[string]rundir.Status // ends that are not on disk yet
	holders   map[string]holder        // by run: the runs in progress or with a held lock; nil if flights may overlap
}

// holder is what decides which runs may not start while a run is in progress, or a process of it holds its lock.
type holder struct {
	hook   string
	flight string      // that it has had since its start
	values hook.Values // nil if they are not known
}

// writeEnd writes the end of a run. If that fails, writeLater tries again.
func (e *endings) writeEnd(s *rundir.Status, durability pathsafe.Durability) {
	err := e.runs.WriteEnd(s, durability)
	if err == nil {
		return
	}
	e.log.Error("recording the end of a run; it will be tried again", "run", s.Run, "error", err)
	e.mu.Lock()
	e.unwritten[s.Run] = *s
	e.mu.Unlock()
	go e.writeLater(s.Run)
}

// findUnwritten returns the end of a run that is not on disk yet.
func (e *endings) findUnwritten(run string) (s rundir.Status, found bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, found = e.unwritten[run]
	return s, found
}

// allWritten reports whether every end is on disk.
func (e *endings) allWritten() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.unwritten) == 0
}

// The first and the longest interval between attempts to remove a working folder. An attempt may succeed later, for
// example when a mount in the folder was unmounted.
const (
	cleanUpAgain  = time.Minute
	cleanUpRarely = time.Hour
)

// reserveFlight makes the run of an order the holder of its flight, unless the flight has a holder already. The file
// may have changed since another holder of the hook started, so its flight is also the one that h gives it now. A
// holder of another hook has the flight of its start, which may be that of a group.
func (e *endings) reserveFlight(h *hook.Hook, flight string, o runner.Order) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.holders == nil {
		return nil
	}
	for run, other := range e.holders {
		shares := other.flight == flight || other.hook == h.Name && h.SharesFlight(flight, other.values)
		if run == o.Run || shares {
			return fmt.Errorf("%w: %s", runner.ErrFlight, flight)
		}
	}
	e.holders[o.Run] = holder{h.Name, flight, o.Values}
	return nil
}

// releaseFlight undoes reserveFlight or adoptFlight.
func (e *endings) releaseFlight(run string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.holders, run)
}

// statusOf returns the status of a run. It looks in memory first, where an end stays until it has been written. It
// reads the folder without the mutex, because a disk may hang.
func (e *endings) statusOf(run string) (*rundir.Status, error) {
	if s, unwritten := e.findUnwritten(run); unwritten {
		return &s, nil
	}
	return e.runs.ReadStatus(run)
}

// recorded returns the status of a run that is not in progress. Errors wrap runner.ErrUnknown when the run is not
// here.
func (e *endings) recorded(run string) (*rundir.Status, error) {
	s, err := e.statusOf(run)
	if errors.Is(err, rundir.ErrCorrupt) { // with an error here the server could never start again
		e.log.Error("the status of a run cannot be read, so its end is unknown", "run", run, "error", err)
		return new(rundir.Status), nil
	}
	return s, err
}

// writeLater writes the end of a run that could not be written, for example because the disk was full. Until then the
// end is read from memory.
func (e *endings) writeLater(run string) {
	const first, last = 200 * time.Millisecond, 10 * time.Second
	for wait := first; ; wait = min(2*wait, last) {
		<-time.After(wait)
		s, ok := e.findUnwritten(run)
		if !ok { // removed
			return
		}
		err := e.runs.WriteEnd(&s, pathsafe.Synced)
		switch {
		case err == nil:
			e.log.Info("end of a run recorded after a delay", "run", run)
		case e.runs.IsGone(run):
			e.log.Warn("a run ended after its folder was removed", "run", run)
		default:
			e.log.Debug("recording the end of a run", "run", run, "error", err)
			continue
		}
		e.mu.Lock()
		delete(e.unwritten, run)
		if len(e.unwritten) == 0 {
			e.runs.RemoveUnwritten()
		}
		e.mu.Unlock()
		e.cleanUp(run)
		return
	}
}

// freeFlight lets the next run of the flight start, as soon as no process holds the lock. The channel is closed when
// the working folder was removed, or cannot be removed yet.
func (e *endings) freeFlight(run, flight string) <-chan struct{} {
	done := make(chan struct{})
	held := e.runs.Locks.IsHeld(run)
	if held { // maybe only by a child that has not executed the command of another run yet
		e.parent.Children.BetweenStarts(func() { held = e.runs.Locks.IsHeld(run) })
	}
	if held {
		e.log.Error("an escaped process still holds the lock of a run that has ended; its flight stays busy",
			"run", run, "flight", flight)
		go e.freeFlightLater(run, flight)
		close(done)
		return done
	}
	e.releaseFlight(run)
	go func() { e.cleanUp(run); close(done) }()
	return done
}

// freeFlightLater is freeFlight for a run with a lock that an escaped process holds.
func (e *endings) freeFlightLater(run, flight string) {
	e.runs.Locks.AwaitFree(run)
	e.log.Info("the lock of a run is free again; its flight can start", "run", run, "flight", flight)
	e.releaseFlight(run)
	e.cleanUp(run)
}

// cleanUp removes the working folder of a run and then, once its end is on disk, the mark that the run may be in
// progress. While the mark exists, another supervisor cleans up what this one did not. The lock is free, except for a
// moment in which a process tests it, or a child of another start has not executed its command yet.
func (e *endings) cleanUp(run string) { e.cleanUpRetrying(run, e.again) }

// cleanUpRetrying is cleanUp. If the folder cannot be removed yet, it tries again after the duration again.
func (e *endings) cleanUpRetrying(run string, again time.Duration) {
	e.runs.Locks.AwaitFree(run)
	if err := e.runs.RemoveFIFO(run); err != nil {
		e.log.Warn("removing a run's FIFO", "run", run, "error", err)
	}
	if err := e.runs.RemoveWork(run); err != nil {
		level := slog.LevelWarn
		if again > e.again { // the first failure was logged as a warning
			level = slog.LevelDebug
		}
		e.log.Log(context.Background(), level, "removing a run's working folder; it will be tried again", "run", run,
			"error", err)
		time.AfterFunc(again, func() { e.cleanUpRetrying(run, min(2*again, cleanUpRarely)) })
		return
	}
	if _, unwritten := e.findUnwritten(run); unwritten { // writeLater calls cleanUp again
		return
	}
	if err := e.runs.Locks.UnmarkActive(run); err != nil {
		e.log.Warn("forgetting a run", "run", run, "error", err)
	}
}

// adoptFlight makes an adopted run a holder of its flight, even if the flight has others. Without its values, which
// are in its status, all runs of its hook count as runs of its flight.
func (e *endings) adoptFlight(run, hook, flight string, values hook.Values) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.holders != nil {
		e.holders[run] = holder{hook, flight, values}
	}
}

// saveUnwritten writes the ends that could not be written into the folders of their runs to a file that the next
// supervisor reads.
func (e *endings) saveUnwritten() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.unwritten) == 0 {
		return nil
	}
	if err := e.runs.SaveUnwritten(e.unwritten); err != nil {
		return fmt.Errorf("%d ends of runs are not on disk yet: %w", len(e.unwritten), err)
	}
	return nil
}

// loadUnwritten takes over the ends that saveUnwritten wrote. It is called before any run of this process ends.
func (e *endings) loadUnwritten() error {
	ends, err := e.runs.LoadUnwritten()
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.Copy(e.unwritten, ends)
	for run := range e.unwritten {
		go e.writeLater(run) // the last of these removes the file
	}
	return err
}
