// Package retention removes what the configuration does not keep: runs ([PruneRuns]), their outputs ([TrimOutputs]),
// and folders that a crash left ([SweepFolders]). It also ends queued runs that have waited too long.
//
// Each kind of work is repeated until its context is done, in small steps that do not delay deliveries. A failure is
// logged once, and the work is retried. Records are removed before folders: a crash between the two leaves a folder
// without a record, which the next sweep finds. After the clock was set, nothing is removed for a while ([Steps]).
package retention

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"sallyport/internal/config"
	"sallyport/internal/deliveries"
	"sallyport/internal/logging"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/rundir"
	"sallyport/runner/store"
)

const (
	interval = 5 * time.Second
	pause    = 10 * time.Millisecond // between the steps of what takes several
)

// PruneRuns prunes runs and deliveries that the configuration does not keep, and ends queued runs that have waited too
// long, and pauses of hooks whose time is over, until ctx is done.
func PruneRuns(ctx context.Context, conf *config.Watcher, runs *runner.Runner, st *store.SQLite, log *slog.Logger) {
	p := newPruning(runs, st, log)
	runRepeatedly(ctx, func() (wait time.Duration) { return p.pruneOnce(ctx, conf.Get()) })
}

// pruning is the work of PruneRuns.
type pruning struct {
	runs    *runner.Runner
	store   *store.SQLite
	log     *slog.Logger
	started time.Time
	steps   *Steps // nil until the store could be read

	expiring, resuming, forgetting, removing *failures
}

func newPruning(runs *runner.Runner, st *store.SQLite, log *slog.Logger) *pruning {
	return &pruning{
		runs: runs, store: st, log: log, started: time.Now(),
		expiring:   &failures{log: log, work: "ending runs that waited too long"},
		resuming:   &failures{log: log, work: "ending pauses of hooks"},
		forgetting: &failures{log: log, work: "removing deliveries"},
		removing:   &failures{log: log, work: "pruning runs"},
	}
}

// pruneOnce does one step, and returns the time until the next one. What ends by the uptime does not depend on whether
// the wall clock was set.
func (p *pruning) pruneOnce(ctx context.Context, c *config.Config) (wait time.Duration) {
	p.expiring.logChange(ctx, p.runs.ExpireQueued(ctx, c.Hooks))
	p.resuming.logChange(ctx, p.runs.Pauses().EndPauses(ctx))
	more, err := p.removeRuns(ctx, c)
	p.removing.logChange(ctx, err)
	if more {
		return pause
	}
	return interval
}

// removeRuns removes some of the runs that the configuration does not keep, unless the clock was set lately. It reports
// whether there are more.
func (p *pruning) removeRuns(ctx context.Context, c *config.Config) (more bool, err error) {
	if p.steps == nil {
		if p.steps, err = startSteps(ctx, p.started, p.store); err != nil {
			return false, err
		}
	}
	if held, step := p.steps.Held(time.Now(), time.Since(p.started)); held {
		if step != 0 {
			p.log.Warn("the clock was set: nothing is removed for a while",
				"by", step.String(), "for", HoldAfterStep.String())
		}
		return false, nil
	}
	p.forgetting.logChange(ctx, deliveries.Prune(c.State, time.Now().Add(-c.Keep)))
	removed, more, err := p.store.Prune(ctx, retentionOf(c))
	for _, id := range removed {
		err = errors.Join(err, rundir.Remove(runsFolder(c), id))
	}
	return more, err
}

// TrimOutputs keeps the outputs of all runs within their bound, until ctx is done. Reading a million folders takes
// seconds, so its pauses are much longer than its work.
func TrimOutputs(ctx context.Context, conf *config.Watcher, log *slog.Logger) {
	const rest = 50 // times as long
	trimming := &failures{log: log, work: "trimming outputs"}
	runRepeatedly(ctx, func() (wait time.Duration) {
		from, c := time.Now(), conf.Get()
		_, err := rundir.Trim(runsFolder(c), int64(c.Outputs))
		trimming.logChange(ctx, err)
		return max(interval, rest*time.Since(from))
	})
}

// failures are the failures of one kind of work.
type failures struct {
	log  *slog.Logger
	work string
	seen logging.Repeated
}

// logChange logs a failure that is new, and the first success after failures.
func (f *failures) logChange(ctx context.Context, err error) {
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

// runRepeatedly does a step after an interval, and again after the time that the step returns.
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
	keep := store.Retention{
		Hooks: make(map[string]store.KeepRule, len(c.Hooks)), Default: store.KeepRule(hook.DefaultKeep()),
	}
	for name, h := range c.Hooks {
		keep.Hooks[name] = store.KeepRule{Age: h.Keep.Age, Count: h.Keep.Count}
	}
	return keep
}

// sweepAgain is the pause between two passes of SweepFolders.
const sweepAgain = time.Hour

// SweepFolders removes folders of runs that were pruned just before a crash, until ctx is done.
func SweepFolders(ctx context.Context, c *config.Config, st *store.SQLite, log *slog.Logger) {
	sweeping := &failures{log: log, work: "removing folders of pruned runs"}
	runRepeatedly(ctx, func() (wait time.Duration) {
		removed, err := rundir.Sweep(ctx, runsFolder(c), rundir.SweepAfter, func(run string) (bool, error) {
			_, err := st.Get(ctx, run)
			if errors.Is(err, runner.ErrUnknown) {
				return false, nil
			}
			return true, err
		})
		if removed > 0 {
			log.Info("folders of pruned runs removed", "count", removed)
		}
		sweeping.logChange(ctx, err)
		return sweepAgain
	})
}
