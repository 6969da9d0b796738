package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"sallyport/internal/audit"
	"sallyport/internal/config"
	"sallyport/internal/readiness"
	"sallyport/internal/server"
	"sallyport/runner"
	"sallyport/runner/process"
	"sallyport/runner/store"
)

// held is what one server at a time has of a state folder.
type held struct {
	st    *store.SQLite
	trail *audit.Log
	procs *process.Client
	runs  *runner.Runner
	check *readiness.Check
	undo  []func()
}

// letGo leaves the folder to the next server, the record last: who holds that
// may have the rest.
func (h *held) letGo() {
	for _, undo := range slices.Backward(h.undo) {
		undo()
	}
}

// take holds the state folder. While again says so, it is tried again.
func (p *program) take(ctx context.Context, again func(error) bool) (*held, error) {
	const patience, pause, longer = time.Minute, 10 * time.Millisecond, 2 * time.Second
	for end := time.After(patience); ; {
		h, err := p.hold(ctx)
		if err == nil || !again(err) {
			return h, err
		}
		wait := pause
		if !errors.Is(err, store.ErrHeld) {
			p.log.Error("taking the state folder", "error", err)
			wait = longer
		}
		select {
		case <-end:
			return nil, err
		case <-time.After(wait):
		}
	}
}

func (p *program) hold(ctx context.Context) (_ *held, err error) {
	h := new(held)
	defer func() {
		if err != nil {
			h.letGo()
		}
	}()
	c := p.conf.Get()
	if h.st, err = store.Open(ctx, c.State, time.Now, p.log); err != nil {
		return nil, err
	}
	h.undo = append(h.undo, func() { closing(h.st, "the record", p.log) })
	if err := p.uses.Load(ctx, h.st); err != nil {
		return nil, fmt.Errorf("reading when keys were used: %w", err)
	}
	h.undo = append(h.undo, func() { p.uses.Save(ctx, h.st, p.log) })
	if h.trail, err = openAudit(ctx, c, p.version, p.log); err != nil {
		return nil, err
	}
	h.undo = append(h.undo, func() { closing(h.trail, "the audit", p.log) })
	// Only now: the supervisor lets go of the server before this one when another
	// comes, which by now has let go of its runs.
	h.procs, err = process.Connect(ctx, process.Options{State: c.State, Config: p.file, Exe: p.exe, Version: p.version, Log: p.log, Env: process.LoginEnv(os.LookupEnv)})
	if err != nil {
		return nil, err
	}
	h.undo = append(h.undo, func() { closing(h.procs, "the supervisor's socket", p.log) })
	h.runs = runner.New(audit.Store(h.st, h.trail), h.procs, p.conf.Hook, time.Now, p.log)
	h.check = readiness.New(
		p.log,
		readiness.Part{Name: "store", Probe: h.st.Probe},
		readiness.Part{Name: "audit", Probe: h.trail.Probe},
		readiness.Part{Name: "supervisor", Probe: func(ctx context.Context) error {
			if h.runs.Answers(ctx) {
				return nil
			}
			return cmp.Or(ctx.Err(), errors.New("it cannot be reached"))
		}},
	)
	if err := h.runs.Recover(ctx); err != nil {
		return nil, fmt.Errorf("taking up what runs: %w", err)
	}
	return h, nil
}

// openAudit opens the audit, which says first by what configuration the
// decisions are made that follow. The server before this one has let it go by
// now, as it did the record.
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

// agree has the supervisor read the hooks that are to be in force, and the audit
// say so before they are.
func agree(ctx context.Context, procs *process.Client, trail *audit.Log, old, c *config.Config) error {
	digest, err := procs.Reload(runner.Digest(old.Hooks)) //nolint:contextcheck // it has its own patience, and is not to be left half done
	if err == nil && digest != runner.Digest(c.Hooks) {
		return config.ErrChanged
	}
	if err != nil {
		return err
	}
	return trail.Reloaded(ctx, c.Audit, c.Digest)
}

// takeOver has the server before this one let go of the state folder, unless the audit in it is damaged: then that
// one could not open it again, either.
func takeOver(before *server.Before, state string) error {
	if err := audit.Check(state); err != nil {
		return err
	}
	return before.Ready()
}

// For what errors the state folder is tried again.
func never(error) bool { return false }

// whileHeld is for a server that takes over: until the one before has let go.
func whileHeld(err error) bool { return errors.Is(err, store.ErrHeld) }

// whileItMayPass is for one that takes back what it had: a disk may be full just
// now. A record that was brought forward does not come back.
func whileItMayPass(err error) bool { return !errors.Is(err, store.ErrNewer) }

func closing(c io.Closer, what string, log *slog.Logger) {
	if err := c.Close(); err != nil {
		log.Error("closing", "what", what, "error", err)
	}
}
