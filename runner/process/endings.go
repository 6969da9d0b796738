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
	"sallyport/runner/process/proctree"
	"sallyport/runner/process/rundir"
)

// endings has what is left to do when the command of a run has ended: its end is written, its flight is freed
// once no process has its lock, and its working folder is removed. Each is tried until it succeeds.
type endings struct {
	runs   *rundir.Runs
	parent *proctree.Parent
	log    *slog.Logger
	again  time.Duration // after which a working folder that could not be removed is tried again at first

	mu        sync.Mutex
	unwritten map[string]rundir.Status // ends that are not on disk yet
	flights   map[string]int           // what is in progress or still holds its lock; nil without single flights
}

// writeEnd writes the end of a run, and where that is not possible it is written later.
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

// How often a working folder that cannot be removed is tried, at first and in the
// end: somebody may unmount what is mounted there.
const (
	cleanUpAgain  = time.Minute
	cleanUpRarely = time.Hour
)

// reserveFlight counts a run of a flight, unless there is one already.
func (e *endings) reserveFlight(flight string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flights == nil {
		return nil
	}
	if e.flights[flight] > 0 {
		return fmt.Errorf("%w: %s", runner.ErrFlight, flight)
	}
	e.flights[flight]++
	return nil
}

// releaseFlight ends what reserveFlight or adoptFlight began.
func (e *endings) releaseFlight(flight string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flights[flight] > 1 {
		e.flights[flight]--
		return
	}
	delete(e.flights, flight)
}

// statusOf reads the status of a run. It is looked up in memory first, where it is
// removed only after it was written, and in its folder without the mutex, because a
// disk may hang.
func (e *endings) statusOf(run string) (*rundir.Status, error) {
	if s, unwritten := e.findUnwritten(run); unwritten {
		return &s, nil
	}
	return e.runs.ReadStatus(run)
}

// recorded is the status of a run that is not in progress. Errors wrap runner.ErrUnknown
// when the run is not here.
func (e *endings) recorded(run string) (*rundir.Status, error) {
	s, err := e.statusOf(run)
	if errors.Is(err, rundir.ErrCorrupt) { // an error here would keep the server from ever starting again
		e.log.Error("the status of a run cannot be read, so its end is unknown", "run", run, "error", err)
		return new(rundir.Status), nil
	}
	return s, err
}

// writeLater writes the end of a run that could not be written, on a full disk
// for one. Until then it is told from memory.
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
			e.log.Info("the end of a run is recorded at last", "run", run)
		case e.runs.IsGone(run):
			e.log.Warn("a run ended whose folder was removed", "run", run)
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

// freeFlight lets the next run of the flight start, as soon as nobody keeps the lock.
// The channel is closed when nothing is left to do for it now.
func (e *endings) freeFlight(run, flight string) <-chan struct{} {
	done := make(chan struct{})
	held := e.runs.IsLocked(run)
	if held { // perhaps by a child that is about to execute another command
		e.parent.BetweenStarts(func() { held = e.runs.IsLocked(run) })
	}
	if held {
		e.log.Error("a process that got away keeps the lock of a run that is over, and its flight with it", "run", run, "flight", flight)
		go e.freeFlightLater(run, flight)
		close(done)
		return done
	}
	e.releaseFlight(flight)
	go func() { e.cleanUp(run); close(done) }()
	return done
}

// freeFlightLater is freeFlight for a run whose lock a process has that escaped.
func (e *endings) freeFlightLater(run, flight string) {
	e.runs.AwaitUnlock(run)
	e.log.Info("the lock of a run is free at last", "run", run, "flight", flight)
	e.releaseFlight(flight)
	e.cleanUp(run)
}

// cleanUp removes the working folder of a run and then, once its end is on disk,
// forgets that the run may be under way: until then, another supervisor cleans up
// what this one did not. The lock is free, but for a moment in which somebody
// tries it, or a child of another start has not executed its command yet.
func (e *endings) cleanUp(run string) { e.cleanUpRetrying(run, e.again) }

// cleanUpRetrying is cleanUp, tried again after a while where the folder cannot go yet.
func (e *endings) cleanUpRetrying(run string, again time.Duration) {
	e.runs.AwaitUnlock(run)
	if err := e.runs.RemoveFIFO(run); err != nil {
		e.log.Warn("removing a run's FIFO", "run", run, "error", err)
	}
	if err := e.runs.RemoveWork(run); err != nil {
		level := slog.LevelWarn
		if again > e.again { // that was said
			level = slog.LevelDebug
		}
		e.log.Log(context.Background(), level, "removing a run's working folder; it will be tried again", "run", run, "error", err)
		time.AfterFunc(again, func() { e.cleanUpRetrying(run, min(2*again, cleanUpRarely)) })
		return
	}
	if _, unwritten := e.findUnwritten(run); unwritten { // then writeLater comes here again
		return
	}
	if err := e.runs.UnmarkActive(run); err != nil {
		e.log.Warn("forgetting a run", "run", run, "error", err)
	}
}

// adoptFlight counts an adopted run, whatever other runs its flight has.
func (e *endings) adoptFlight(flight string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flights != nil {
		e.flights[flight]++
	}
}

// saveUnwritten leaves the ends that cannot be written into the folders of their
// runs where the next supervisor finds them.
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

// loadUnwritten takes over what saveUnwritten left. It is called before anything
// else has an end.
func (e *endings) loadUnwritten() error {
	ends, err := e.runs.LoadUnwritten()
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.Copy(e.unwritten, ends)
	for run := range e.unwritten {
		go e.writeLater(run) // the last one removes the file
	}
	return err
}
