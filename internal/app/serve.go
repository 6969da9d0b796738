package app

import (
	"context"
	"errors"
	"log/slog"
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
	"sallyport/internal/cli"
	"sallyport/internal/config"
	"sallyport/internal/keyuse"
	"sallyport/internal/logging"
	"sallyport/internal/metrics"
	"sallyport/internal/readiness"
	"sallyport/internal/retention"
	"sallyport/internal/server"
	"sallyport/runner/process"
)

type serveCmd struct {
	Config string `short:"c" default:"sallyport.yaml" help:"Configuration file."`
}

// Run serves until a signal comes.
func (cmd *serveCmd) Run(s *cli.Streams, version buildVersion) error {
	if err := protectProcess(); err != nil {
		return err
	}
	log, out := logging.New(s.Err)
	defer out.Close()
	env := config.Env{Getenv: os.LookupEnv, Workloads: certs.NewWorkloads(log), Renewals: certs.NewRenewals(log), Uses: new(keyuse.Table)}
	defer env.Workloads.Retain("")
	defer env.Renewals.Use(nil)
	conf, found := config.NewWatcher(cmd.Config, env, log)
	tell(found, out)
	if conf == nil {
		return cli.ExitCode(1)
	}
	exe, err := os.Executable() // now: later it may have been replaced
	if err != nil {
		return err
	}
	hup := catchSignals(log)
	ctx := context.Background()
	_, handedOver := os.LookupEnv(server.HandoverEnv)
	listener, before, err := server.Inherited(ctx, conf.Get(), handedOver)
	if err != nil {
		return err
	}
	p := &program{
		conf: conf, file: cmd.Config, exe: exe, version: version.String(), uses: env.Uses, log: log, out: out, hup: hup,
		signals: sync.OnceValue(signals), // not before there is something to end well
		retain:  env.Retain,
	}
	go p.watchdog.Run(ctx, log)
	again := never
	if before != nil {
		if err := takeOver(before, conf.Get().State); err != nil {
			return err
		}
		again = whileHeld
	}
	return p.serveOn(ctx, listener, before, again)
}

// serveOn serves, and serves again with the listener that a successor gave back because it failed.
func (p *program) serveOn(ctx context.Context, listener net.Listener, before *server.Before, again func(error) bool) error {
	for {
		next, err := p.serve(ctx, listener, before, again)
		if next == nil {
			return err
		}
		if err != nil {
			p.log.Error("handing over", "error", err)
		}
		if listener, err = next.Await(p.signals().Stop); listener == nil {
			return err
		}
		p.log.Error("not handed over", "error", err)
		before, again = nil, whileItMayPass
	}
}

// program is what a server has whether or not it holds the state folder.
type program struct {
	conf    *config.Watcher
	file    string
	exe     string
	version string
	uses    *keyuse.Table
	log     *slog.Logger
	out     *logging.Output // that log writes to
	hup     <-chan os.Signal
	signals func() server.Signals
	retain  func(*config.Config) // of what earlier configurations asked for

	watchdog readiness.Watchdog
}

// serve serves for as long as it holds the state folder.
func (p *program) serve(ctx context.Context, listener net.Listener, before *server.Before, again func(error) bool) (next *server.Next, err error) {
	h, err := p.take(ctx, again)
	if err != nil {
		return nil, err
	}
	defer h.letGo()
	ctx, cancel := context.WithCancel(ctx)
	conf, log := p.conf, p.log
	var works sync.WaitGroup
	defer func() { cancel(); works.Wait() }() // before the record closes
	p.keepStateTidy(ctx, h, &works)
	go process.ReapOrphans(ctx)
	go certs.Watch(ctx, time.Now, func() []certs.Expiry { return slices.Concat(conf.Get().Expiries(), conf.Get().KeyExpiries()) }, log)
	p.watchdog.Watch(h.check)
	defer p.watchdog.Watch(nil)
	var surface *handlers.Handler
	missing := metrics.Missing{Dropped: p.out.Dropped, Skipped: func() int { return surface.SkippedLines() }, Suppressed: h.trail.SuppressedLines}
	surface = handlers.New(conf, h.runs, h.procs.Output, h.trail, h.check, metrics.Handler(conf, p.uses, missing, p.version), time.Now, log)
	defer surface.Close()
	issuers := keyset.NewKeeper(log)
	inForce := func(c *config.Config) {
		server.WarnOfDescriptors(c.Limits, log)
		issuers.Keep(ctx, c.Auth.KeySets())
		surface.Update()
		p.retain(c)
	}
	inForce(conf.Get())
	works.Go(func() {
		conf.Watch(ctx, p.hup, func(c *config.Config) error { return agree(ctx, h.procs, h.trail, conf.Get(), c) }, inForce)
	})
	start := func(listener, pipe *os.File) (*process.Server, error) {
		if err := h.check.Err(ctx); err != nil { // once let go, neither server could open what does not work now
			return nil, err
		}
		return process.StartServer(p.exe, os.Args[1:], nextEnv(), listener, pipe)
	}
	works.Go(func() { serveAdmin(ctx, h.procs, surface, log) })
	srv := server.New(listener, conf, surface, h.runs, start, log)
	if err := server.Notify(); err != nil {
		log.Warn("service manager not told", "error", err)
	}
	if before != nil {
		before.Serves() // and a service manager knows by now whom to look after
	}
	return h.serveUntilEnd(ctx, srv, p.signals())
}

// serveUntilEnd serves until a signal ends that, and writes to the audit how it
// ended.
func (h *held) serveUntilEnd(ctx context.Context, srv *server.Server, sig server.Signals) (*server.Next, error) {
	sig.Displaced = h.procs.Displaced()
	next, err := srv.Serve(sig) //nolint:contextcheck // signals end it
	switch {
	case errors.Is(err, server.ErrDisplaced):
		return nil, err // the supervisor is not this server's to end
	case next != nil:
		return next, errors.Join(err, h.trail.Write(ctx, audit.Line{Event: audit.HandedOver}))
	}
	return nil, errors.Join(err, h.procs.Quit(), h.trail.Write(ctx, audit.Line{Event: audit.Stopped})) //nolint:contextcheck // Quit has its own patience
}

// keepStateTidy removes from the state folder what is no longer kept, until ctx is done.
func (p *program) keepStateTidy(ctx context.Context, h *held, works *sync.WaitGroup) {
	works.Go(func() { retention.Runs(ctx, p.conf, h.runs, h.st, p.log) })
	works.Go(func() { retention.Sweep(ctx, p.conf.Get(), h.st, p.log) })
	works.Go(func() { p.uses.Keep(ctx, h.st, p.log) })
	go retention.Outputs(ctx, p.conf, p.log) // of files alone, however long that takes
}

// serveAdmin answers local administrators until ctx is done. Deliveries do not depend on it, so the
// server goes on without it.
func serveAdmin(ctx context.Context, procs *process.Client, surface *handlers.Handler, log *slog.Logger) {
	listener, err := procs.ListenForAdmin(ctx)
	if err != nil {
		log.Error("local administration is not available", "error", err)
		return
	}
	identify := func(ctx context.Context, conn net.Conn) context.Context {
		if admin, ok := conn.(*process.AdminConn); ok {
			return handlers.WithAdmin(ctx, admin.UID)
		}
		return ctx
	}
	if err := server.ServeAdmin(ctx, listener, surface.Admin(), identify); err != nil {
		log.Error("local administration ended", "error", err)
	}
}

// nextEnv is the environment of a server that takes over. Without WATCHDOG_PID, which is the
// process that systemd started, it notifies systemd's watchdog as this one does.
func nextEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "WATCHDOG_PID=") })
	return append(env, server.HandoverEnv+"=1")
}
