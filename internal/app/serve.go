package app

import (
	"context"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"sallyport/certs"
	"sallyport/handlers"
	"sallyport/internal/cli"
	"sallyport/internal/config"
	"sallyport/internal/keyuse"
	"sallyport/internal/logging"
	"sallyport/internal/retention"
	"sallyport/internal/server"
	"sallyport/runner/process"
	"sallyport/runner/supervisor"
)

type serveCmd struct {
	Config string `short:"c" default:"sallyport.yaml" help:"Configuration file."`
}

// Run serves until a signal ends the server.
func (cmd *serveCmd) Run(s *cli.Streams, version buildVersion) error {
	if err := protectProcess(); err != nil {
		return err
	}
	log, out := logging.New(s.Err, os.LookupEnv)
	defer out.Close()
	env := config.Env{
		Getenv: os.LookupEnv, Workloads: certs.NewWorkloads(log), Renewals: certs.NewRenewals(log),
		Uses: new(keyuse.Table),
	}
	defer env.Workloads.Retain("")
	defer env.Renewals.Use(nil)
	conf, found := config.NewWatcher(cmd.Config, env, log)
	if conf == nil {
		printDiagnostics(found, out.Plain(slog.LevelError))
		return cli.ExitCode(1)
	}
	printDiagnostics(found, out.Plain(slog.LevelWarn))
	out.Use(conf.Get().Log)
	exe, err := os.Executable() // now: later it may have been replaced
	if err != nil {
		return err
	}
	hup := catchSignals(log)
	ctx := context.Background()
	_, handedOver := os.LookupEnv(server.HandoverEnv)
	listener, predecessor, err := server.InheritListener(ctx, conf.Get(), handedOver)
	if err != nil {
		return err
	}
	p := &program{
		conf: conf, file: cmd.Config, exe: exe, version: version.String(), uses: env.Uses, log: log, out: out, hup: hup,
		signals: sync.OnceValue(catchEndSignals), // only once there is something to end in an orderly way
		retain:  env.Retain,
	}
	go p.watchdog.Run(ctx, log)
	return p.runStates(ctx, listener, predecessor)
}

// keepStateTidy removes expired data from the state folder, and saves the uses of keys, until ctx is done.
func (p *program) keepStateTidy(ctx context.Context, f *stateFolder, works *sync.WaitGroup) {
	works.Go(func() { retention.PruneRuns(ctx, p.conf, f.runs, f.store, p.log) })
	works.Go(func() { retention.SweepFolders(ctx, p.conf.Get(), f.store, p.log) })
	works.Go(func() { p.uses.SaveRegularly(ctx, f.store, p.log) })
	go retention.TrimOutputs(ctx, p.conf, p.log) // does not use the store, so it may end after the store closes
}

// serveAdmin answers local administrators until ctx is done. Deliveries do not depend on it, so after an error the
// server continues without it.
func serveAdmin(ctx context.Context, procs *supervisor.Client, surface *handlers.Handler, log *slog.Logger) {
	listener, err := procs.ListenForAdmin(ctx)
	if err != nil {
		log.Error("local administration is not available", "error", err)
		return
	}
	identify := func(ctx context.Context, conn net.Conn) context.Context {
		if admin, ok := conn.(*supervisor.AdminConn); ok {
			return handlers.WithAdmin(ctx, admin.UID)
		}
		return ctx
	}
	if err := server.ServeAdmin(ctx, listener, surface.Admin(), identify); err != nil {
		log.Error("local administration ended", "error", err)
	}
}

// supervisorEnv returns the variables of this process that the supervisor gets: those that it needs for commands, and
// the one by which it recognizes the journal of systemd. Commands do not get that one.
func supervisorEnv() []string {
	env := process.LoginEnv(os.LookupEnv)
	if stream, set := os.LookupEnv(logging.JournalEnv); set {
		env = append(env, logging.JournalEnv+"="+stream)
	}
	return env
}

// successorEnv is the environment of the next server. Without WATCHDOG_PID, which is the process that systemd
// started, the successor notifies the watchdog of systemd as this server does.
func successorEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "WATCHDOG_PID=") })
	return append(env, server.HandoverEnv+"=1")
}
