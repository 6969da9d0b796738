// Package retention forgets what is over: runs, their outputs, and what a crash left of
// them.
package retention

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"sallyport/internal/config"
	"sallyport/internal/logging"
	"sallyport/runner"
	"sallyport/runner/process/rundir"
	"sallyport/runner/store"
)

const (
	interval = 5 * time.Second
	pause    = 10 * time.Millisecond // between the steps of what takes several
)

// PruneRuns forgets runs that the file does not keep, and those that waited too long, in
// small steps, until ctx is done.
func PruneRuns(ctx context.Context, conf *config.Watcher, runs *runner.Runner, st *store.SQLite, log *slog.Logger) {
	var steps *Steps
	expiring, pruning := &failures{log: log, work: "ending runs that waited too long"}, &failures{log: log, work: "forgetting runs"}
	started := time.Now()
	runRepeatedly(ctx, func() (wait time.Duration) {
		if steps == nil {
			newest, _, err := st.List(ctx, runner.Filter{Limit: 1})
			if err != nil {
				return interval // it is logged where it matters
			}
			steps = startSteps(started, newest, st.Stepped()) // the clock may have been set since
		}
		c := conf.Get()
		expiring.note(ctx, runs.ExpireQueued(ctx, c.Hooks))
		if held, step := steps.Held(time.Now(), time.Since(started)); held {
			if step != 0 {
				log.Warn("the clock was set: nothing is removed for a while", "by", step.String(), "for", HoldAfterStep.String())
			}
			return interval
		}
		removed, more, err := st.Prune(ctx, retentionOf(c))
		for _, id := range removed {
			err = errors.Join(err, rundir.Remove(runsFolder(c), id))
		}
		pruning.note(ctx, err)
		if more {
			return pause
		}
		return interval
	})
}

// TrimOutputs keeps the outputs of all runs within their bound, until ctx is done. To
// look at every folder takes seconds where there are a million, so it rests for
// much longer than it works.
func TrimOutputs(ctx context.Context, conf *config.Watcher, log *slog.Logger) {
	const rest = 50 // times as long
	trimming := &failures{log: log, work: "trimming outputs"}
	runRepeatedly(ctx, func() (wait time.Duration) {
		from, c := time.Now(), conf.Get()
		_, err := rundir.Trim(runsFolder(c), int64(c.Outputs))
		trimming.note(ctx, err)
		return max(interval, rest*time.Since(from))
	})
}

// failures are those of one kind of work that is done again and again.
type failures struct {
	log  *slog.Logger
	work string
	seen logging.Repeated
}

// note logs a failure that is new, and the first success after failures.
func (f *failures) note(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil: // the server ends
	case err == nil:
		if n := f.seen.Over(); n > 0 {
			f.log.Info("retention works again", "work", f.work, "failures", n)
		}
	case f.seen.IsNew(err):
		f.log.Error("retention fails; it is tried again", "work", f.work, "error", err)
	}
}

// runRepeatedly does a step after an interval, and again after what that step says.
func runRepeatedly(ctx context.Context, step func() (wait time.Duration)) {
	for wait := interval; ; wait = step() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func runsFolder(c *config.Config) string { return filepath.Join(c.State, "runs") }

func retentionOf(c *config.Config) store.Retention {
	keep := store.Retention{Hooks: make(map[string]store.KeepRule, len(c.Hooks)), Default: store.KeepRule(runner.DefaultKeep())}
	for name, h := range c.Hooks {
		keep.Hooks[name] = store.KeepRule{Age: h.Keep.Age, Count: h.Keep.Count}
	}
	return keep
}

// sweepAgain is how long Sweep rests between two looks at all folders.
const sweepAgain = time.Hour

// SweepFolders removes what a crash left of runs that were forgotten just then, until ctx is done.
func SweepFolders(ctx context.Context, c *config.Config, st *store.SQLite, log *slog.Logger) {
	sweeping := &failures{log: log, work: "removing folders of forgotten runs"}
	runRepeatedly(ctx, func() (wait time.Duration) {
		removed, err := rundir.Sweep(ctx, runsFolder(c), rundir.SweepAfter, func(run string) (bool, error) {
			_, err := st.Get(ctx, run)
			if errors.Is(err, runner.ErrUnknown) {
				return false, nil
			}
			return true, err
		})
		if removed > 0 {
			log.Info("folders of forgotten runs removed", "count", removed)
		}
		sweeping.note(ctx, err)
		return sweepAgain
	})
}
