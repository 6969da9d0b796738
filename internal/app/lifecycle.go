package app

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"sallyport/auth/jwt/keyset"
	"sallyport/certs"
	"sallyport/handlers"
	"sallyport/internal/audit"
	"sallyport/internal/config"
	"sallyport/internal/keyuse"
	"sallyport/internal/logging"
	"sallyport/internal/metrics"
	"sallyport/internal/readiness"
	"sallyport/internal/server"
	"sallyport/runner/hook"
	"sallyport/runner/process/proctree"
	"sallyport/runner/store"
)

// program is the part of a server that does not depend on the state folder.
type program struct {
	conf    *config.Watcher
	file    string
	exe     string
	version string
	uses    *keyuse.Table
	log     *slog.Logger
	out     *logging.Output // the output of log
	hup     <-chan os.Signal
	signals func() server.Signals
	retain  func(*config.Config) // ends the connections and renewals of earlier configurations

	watchdog readiness.Watchdog
}

// runStates takes a server through its states:
//
//	acquire   opens the state folder, once the predecessor, if there is one, has released it
//	serve     answers deliveries until a signal ends that
//	drain     refuses deliveries and waits for runs in progress; then the program ends
//	hand over waits, with the state folder released, until the successor serves; then the program ends
//	reclaim   opens the state folder again, because the successor failed, and serves with the same listener
//
// At any time at most one server holds the state folder.
func (p *program) runStates(ctx context.Context, listener net.Listener, predecessor *server.Predecessor) error {
	folder, err := p.acquire(ctx, predecessor)
	for err == nil {
		var successor *server.Successor
		if successor, err = p.serve(ctx, folder, listener, predecessor); successor == nil {
			return err // drained
		}
		if listener, err = p.handOver(successor, err); listener == nil {
			return err
		}
		predecessor = nil
		folder, err = p.reclaim(ctx)
	}
	return err
}

// acquire opens the state folder. It first asks a predecessor to release the folder, unless the audit log in it is
// damaged: then neither server could open it again.
func (p *program) acquire(ctx context.Context, predecessor *server.Predecessor) (*stateFolder, error) {
	if predecessor == nil {
		return p.openFolder(ctx)
	}
	if err := audit.Check(p.conf.Get().State); err != nil {
		return nil, err
	}
	if err := predecessor.Ready(); err != nil {
		return nil, err
	}
	return p.openFolderRepeatedly(ctx, func(err error) bool { return errors.Is(err, store.ErrHeld) })
}

// reclaim opens the state folder that this server released. It retries after most errors, because the cause may be
// temporary, for example a full disk. It does not retry if the successor migrated the store.
func (p *program) reclaim(ctx context.Context) (*stateFolder, error) {
	return p.openFolderRepeatedly(ctx, func(err error) bool { return !errors.Is(err, store.ErrNewer) })
}

// openFolderRepeatedly retries for a minute after errors that mayPass accepts.
func (p *program) openFolderRepeatedly(ctx context.Context, mayPass func(error) bool) (*stateFolder, error) {
	const patience, heldPause, errorPause = time.Minute, 10 * time.Millisecond, 2 * time.Second
	for end := time.After(patience); ; {
		f, err := p.openFolder(ctx)
		if err == nil || !mayPass(err) {
			return f, err
		}
		pause := heldPause
		if !errors.Is(err, store.ErrHeld) {
			p.log.Error("opening the state folder", "error", err)
			pause = errorPause
		}
		select {
		case <-end:
			return nil, err
		case <-time.After(pause):
		}
	}
}

// handOver waits until the successor serves. If the successor fails, handOver returns the listener to continue with.
// endErr is the error with which serving ended.
func (p *program) handOver(successor *server.Successor, endErr error) (net.Listener, error) {
	if endErr != nil {
		p.log.Error("handing over", "error", endErr)
	}
	listener, err := successor.Await(p.signals().Stop)
	if listener != nil {
		p.log.Error("not handed over", "error", err)
	}
	return listener, err
}

// serve answers until a signal ends serving. Then it drains, or hands over and returns the successor. It releases the
// state folder.
func (p *program) serve(
	ctx context.Context, f *stateFolder, listener net.Listener, predecessor *server.Predecessor,
) (successor *server.Successor, err error) {
	defer f.release()
	ctx, cancel := context.WithCancel(ctx)
	conf, log := p.conf, p.log
	var works sync.WaitGroup
	defer func() { cancel(); works.Wait() }() // before the store closes
	p.keepStateTidy(ctx, f, &works)
	go proctree.ReapOrphans(ctx)
	go certs.Watch(ctx, time.Now, func() []certs.Expiry {
		return slices.Concat(conf.Get().Expiries(), conf.Get().KeyExpiries())
	}, log)
	p.watchdog.Watch(f.check)
	defer p.watchdog.Watch(nil)
	surface := p.newSurface(f)
	defer surface.Close()
	issuers := keyset.NewKeeper(log)
	applyConfig := func(c *config.Config) {
		p.out.Use(c.Log)
		server.WarnOfDescriptors(c.Limits, log)
		issuers.Keep(ctx, c.Auth.KeySets())
		surface.Update()
		p.retain(c)
	}
	applyConfig(conf.Get())
	logHooks(conf.Get().Hooks, log)
	works.Go(func() {
		conf.Watch(ctx, p.hup, func(c *config.Config) error { return f.prepareReload(ctx, conf.Get(), c) }, applyConfig)
	})
	works.Go(func() {
		if err := f.counted.Load(ctx, conf.Get().Hooks); err != nil && ctx.Err() == nil {
			log.Warn("metrics lack the last runs of hooks", "error", err)
		}
	})
	works.Go(func() { serveAdmin(ctx, f.supervisor, surface, log) })
	srv := server.New(listener, conf, surface, f.runs, p.successorStarter(ctx, f.check), log)
	if err := server.NotifyReady(); err != nil {
		log.Warn("cannot notify the service manager", "error", err)
	}
	if predecessor != nil {
		predecessor.Serves() // after NotifyReady, so the service manager knows the new main process
	}
	return f.serveUntilEnd(ctx, srv, p.signals())
}

// maxHooksLogged is how many hooks have a line in the log of a start.
const maxHooksLogged = 50

// logHooks logs which hooks are served, and who may call them.
func logHooks(hooks map[string]*hook.Hook, log *slog.Logger) {
	names := slices.Sorted(maps.Keys(hooks))
	for _, name := range names[:min(len(names), maxHooksLogged)] {
		h := hooks[name]
		callers := strings.Join(h.Callers, ", ")
		if h.Unauthenticated {
			callers = "any client, unauthenticated"
		}
		log.Info("hook served", "hook", name, "path", h.Path, "callers", callers)
	}
	if more := len(names) - maxHooksLogged; more > 0 {
		log.Info("more hooks served", "count", more)
	}
}

// newSurface returns the handler of requests, including the one of the metrics.
func (p *program) newSurface(f *stateFolder) (surface *handlers.Handler) {
	missing := metrics.Missing{
		Dropped:    p.out.Dropped,
		Skipped:    func() int { return surface.SkippedLines() },
		Suppressed: f.audit.SuppressedLines,
	}
	deliveries := metrics.Deliveries{
		Outcomes:   func() map[metrics.HookOutcome]int { return surface.Deliveries() },
		Refusals:   func() map[string]int { return surface.Refusals() },
		Ignored:    func() map[string]int { return surface.IgnoredDeliveries() },
		Handshakes: func() map[string]int { return surface.Handshakes() },
		Paused:     f.runs.Pauses().PausedHooks,
	}
	counters := metrics.Handler(metrics.Source{
		Conf: p.conf, Uses: p.uses, Runs: f.counted, Missing: missing, Deliveries: deliveries, Check: f.check,
		Version: p.version,
	})
	surface = handlers.New(p.conf, f.runs, f.supervisor.Output, f.audit, f.check, counters, time.Now, p.log)
	return surface
}

// successorStarter returns the function that starts the next server. The function refuses while a part does not work:
// once this server has released the state folder, neither server could open that part.
func (p *program) successorStarter(
	ctx context.Context, check *readiness.Check,
) func(listener, pipe *os.File) (*server.NextProcess, error) {
	return func(listener, pipe *os.File) (*server.NextProcess, error) {
		if err := check.Err(ctx); err != nil {
			return nil, err
		}
		return server.StartNextProcess(p.exe, os.Args[1:], successorEnv(), listener, pipe)
	}
}

// serveUntilEnd serves until a signal ends serving, and writes the kind of end to the audit log: drained or handed
// over. A server that was displaced writes nothing, and leaves the supervisor to the other server.
func (f *stateFolder) serveUntilEnd(
	ctx context.Context, srv *server.Server, sig server.Signals,
) (*server.Successor, error) {
	sig.Displaced = f.supervisor.Displaced()
	successor, err := srv.Serve(sig) //nolint:contextcheck // signals end it
	switch {
	case errors.Is(err, server.ErrDisplaced):
		return nil, err
	case successor != nil:
		return successor, errors.Join(err, f.audit.Write(ctx, audit.Line{Event: audit.HandedOver}))
	}
	//nolint:contextcheck // Quit has a time limit
	return nil, errors.Join(err, f.supervisor.Quit(), f.audit.Write(ctx, audit.Line{Event: audit.Stopped}))
}
