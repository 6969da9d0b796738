package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"sallyport/internal/audit"
	"sallyport/internal/config"
	"sallyport/internal/metrics"
	"sallyport/internal/readiness"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
	"sallyport/runner/supervisor"
)

// stateFolder is an open state folder. One server at a time has it.
type stateFolder struct {
	store      *store.SQLite
	audit      *audit.Log
	supervisor *supervisor.Client
	counted    *metrics.Runs // the store, as runs uses it
	runs       *runner.Runner
	check      *readiness.Check
	undo       []func()
}

// release closes everything in the reverse order of opening, so the store comes last: its lock guards everything else.
func (f *stateFolder) release() {
	for _, undo := range slices.Backward(f.undo) {
		undo()
	}
}

// openFolder opens the store, the audit log and the connection to the supervisor, in this order, and recovers the runs
// in progress.
func (p *program) openFolder(ctx context.Context) (_ *stateFolder, err error) {
	f := new(stateFolder)
	defer func() {
		if err != nil {
			f.release()
		}
	}()
	c := p.conf.Get()
	if f.store, err = store.Open(ctx, c.State, time.Now, p.log); err != nil {
		return nil, err
	}
	f.undo = append(f.undo, func() { closeAndLog(f.store, "store", p.log) })
	if err := p.uses.Load(ctx, f.store); err != nil {
		return nil, fmt.Errorf("reading when keys were used: %w", err)
	}
	f.undo = append(f.undo, func() { p.uses.Save(ctx, f.store, p.log) })
	if f.audit, err = openAudit(ctx, c, p.version, p.log); err != nil {
		return nil, err
	}
	f.undo = append(f.undo, func() { closeAndLog(f.audit, "audit log", p.log) })
	// Connect comes last: the supervisor then disconnects the predecessor, which has released its runs by now.
	f.supervisor, err = supervisor.Connect(ctx, supervisor.Options{
		State: c.State, Config: p.file, Exe: p.exe, Version: p.version, Log: p.log, Env: supervisorEnv(),
	})
	if err != nil {
		return nil, err
	}
	f.undo = append(f.undo, func() { closeAndLog(f.supervisor, "connection to the supervisor", p.log) })
	f.counted = metrics.CountRuns(audit.Store(f.store, f.audit))
	f.runs = runner.New(f.counted, f.supervisor, p.conf.Hook, time.Now, p.log)
	f.check = f.readiness(p.log)
	if err := f.runs.Recover(ctx); err != nil {
		f.runs.Leave() // it may have resumed some runs, and the next server resumes all
		return nil, fmt.Errorf("recovering runs: %w", err)
	}
	return f, nil
}

// readiness returns a check of the parts that a server depends on.
func (f *stateFolder) readiness(log *slog.Logger) *readiness.Check {
	return readiness.New(
		log,
		readiness.Part{Name: "store", Probe: f.store.Probe},
		readiness.Part{Name: "audit", Probe: f.audit.Probe},
		readiness.Part{Name: "supervisor", Probe: func(ctx context.Context) error {
			if f.runs.Answers(ctx) {
				return nil
			}
			return cmp.Or(ctx.Err(), errors.New("it cannot be reached"))
		}},
	)
}

// openAudit opens the audit log. Its first line names the configuration by which the decisions after it are made. A
// predecessor has closed the log by now, as it closed the store.
func openAudit(ctx context.Context, c *config.Config, version string, log *slog.Logger) (*audit.Log, error) {
	trail, err := audit.Open(c.Audit, time.Now, log)
	if err != nil {
		return nil, err
	}
	if err := trail.Write(ctx, audit.Line{Event: audit.Started, Version: version, Config: c.Digest}); err != nil {
		return nil, errors.Join(err, trail.Close())
	}
	return trail, nil
}

// prepareReload prepares for a new configuration, before it is in force: the supervisor reads its hooks, and the audit
// log records it.
func (f *stateFolder) prepareReload(ctx context.Context, old, c *config.Config) error {
	digest, err := f.supervisor.Reload(hook.Digest(old.Hooks)) //nolint:contextcheck // has a time limit
	if err == nil && digest != hook.Digest(c.Hooks) {
		return config.ErrChanged
	}
	if err != nil {
		return err
	}
	return f.audit.Reloaded(ctx, c.Audit, c.Digest)
}

func closeAndLog(c io.Closer, what string, log *slog.Logger) {
	if err := c.Close(); err != nil {
		log.Error("closing", "what", what, "error", err)
	}
}
