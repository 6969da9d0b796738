// Command sallyport is a secured webhook receiver: it checks who sends a
// request and starts one allow-listed command, one run at a time.
package main

import (
	"cmp"
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"sallyport/auth/keyset"
	"sallyport/certs"
	"sallyport/handlers"
	"sallyport/internal/audit"
	"sallyport/internal/cli"
	"sallyport/internal/client"
	"sallyport/internal/config"
	"sallyport/internal/keyuse"
	"sallyport/internal/live"
	"sallyport/internal/logging"
	"sallyport/internal/metrics"
	"sallyport/internal/readiness"
	"sallyport/internal/server"
	"sallyport/internal/terminal"
	"sallyport/internal/tidy"
	"sallyport/runner"
	"sallyport/runner/process"
	"sallyport/runner/store"
)

// version is set by the build.
var version string

type commands struct {
	Serve   serveCmd   `cmd:"" help:"Take deliveries and run what they may start, until SIGTERM."`
	Check   checkCmd   `cmd:"" help:"Print what is wrong with a configuration, or what it would serve."`
	Call    cli.Call   `cmd:"" help:"Sign a delivery, send it to a hook and print the run."`
	Sign    cli.Sign   `cmd:"" help:"Print the headers that sign a body, for curl -H @-."`
	Runs    cli.Runs   `cmd:"" help:"List, show, follow, cancel and repeat runs."`
	Audit   cli.Audit  `cmd:"" help:"Check the record of decisions."`
	Backup  cli.Backup `cmd:"" help:"Copy the state folder while the server runs."`
	Certs   cli.Certs  `cmd:"" help:"Make certificates."`
	Keys    cli.Keys   `cmd:"" help:"Make keys."`
	Version versionCmd `cmd:"" help:"Print the version."`

	Supervise superviseCmd `cmd:"" hidden:"" help:"Be the parent of commands. The server starts this itself."`
}

const description = `A secured webhook receiver.

Exit codes: 0 done; 1 the configuration or the server failed; 64 usage; 65 refused as
malformed (400, 413, 422); 69 the server cannot be reached; 70 the server failed (500), or the end of
the run is not known; 75 busy or too often (503, 429): try again; 77 refused for the credential (401,
403), or the caller is only observed; 130 stopped by Ctrl-C. "call --wait" exits as the run did: with its exit code, 128
and the signal's number, 124 when its time was over, or 126 when its command could not be started.`

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, in io.Reader, out, errOut io.Writer) int {
	var cmd commands
	exit := -1
	parser, err := kong.New(&cmd, kong.Name("sallyport"), kong.Description(description),
		kong.Writers(out, errOut), kong.Exit(func(code int) { exit = code }),
		kong.Bind(&cli.Streams{In: in, Out: terminal.Writer(out), Err: errOut}))
	if err != nil {
		_, _ = fmt.Fprintln(errOut, "sallyport:", err)
		return 70
	}
	ctx, err := parser.Parse(args)
	if exit >= 0 { // --help has been answered
		return exit
	}
	if err != nil {
		_, _ = fmt.Fprintln(errOut, "sallyport:", err)
		return client.ExitUsage
	}
	err = ctx.Run()
	var code cli.ExitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	logging.PrintLast(terminal.Writer(errOut), "sallyport:", err)
	return client.ExitCode(err)
}

// tell prints what is wrong with a configuration.
func tell(found []config.Diagnostic, errOut io.Writer) {
	for _, d := range found {
		_, _ = fmt.Fprintln(errOut, d)
	}
}

type serveCmd struct {
	Config string `short:"c" default:"sallyport.yaml" help:"Configuration file."`
}

// Run serves until a signal comes.
func (cmd *serveCmd) Run(s *cli.Streams) error {
	if err := protectProcess(); err != nil {
		return err
	}
	log, out := logging.New(s.Err)
	defer out.Close()
	workloads, renewals, uses := certs.NewWorkloads(log), certs.NewRenewals(log), new(keyuse.Table)
	defer workloads.Retain("")
	defer renewals.Use(nil)
	conf, found := live.Load(cmd.Config, config.Env{Getenv: os.LookupEnv, Workloads: workloads, Renewals: renewals, Uses: uses}, log)
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
		conf: conf, file: cmd.Config, exe: exe, uses: uses, log: log, hup: hup,
		signals: sync.OnceValue(signals), // not before there is something to end well
		retain:  func(c *config.Config) { workloads.Retain(c.SPIFFE); renewals.Use(c.ACME) },
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

// protectProcess keeps the server and the supervisor from what may end them, or be
// read of them. It comes before there is any secret.
func protectProcess() error {
	syscall.Umask(0o077) // what they write is for their user alone
	// A log whose reader is gone must not end the server past its drain, nor a
	// terminal that closes. Caught, not ignored: commands would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	process.MakeThreads(process.SpareThreads)
	return process.HideMemory()
}

// catchSignals returns where SIGHUP comes, and logs when this process goes on after it
// was stopped, which any process of the same user can do to it.
func catchSignals(log *slog.Logger) (hup <-chan os.Signal) {
	hangups, continued := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	signal.Notify(continued, syscall.SIGCONT)
	go func() {
		for range continued {
			log.Warn("the server was continued: while a process is stopped, it answers nothing")
		}
	}()
	return hangups
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

// program is what a server has whether or not it holds the state folder.
type program struct {
	conf    *live.Configuration
	file    string
	exe     string
	uses    *keyuse.Table
	log     *slog.Logger
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
	surface := handlers.New(conf, h.runs, h.procs.Output, h.trail, h.check, metrics.Handler(conf, p.uses, programVersion()), time.Now, log)
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
	works.Go(func() { tidy.Runs(ctx, p.conf, h.runs, h.st, p.log) })
	works.Go(func() { tidy.Sweep(ctx, p.conf.Get(), h.st, p.log) })
	works.Go(func() { p.uses.Keep(ctx, h.st, p.log) })
	go tidy.Outputs(ctx, p.conf, p.log) // of files alone, however long that takes
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
	if h.trail, err = openAudit(ctx, c, p.log); err != nil {
		return nil, err
	}
	h.undo = append(h.undo, func() { closing(h.trail, "the audit", p.log) })
	// Only now: the supervisor lets go of the server before this one when another
	// comes, which by now has let go of its runs.
	h.procs, err = process.Connect(ctx, process.Options{State: c.State, Config: p.file, Exe: p.exe, Version: programVersion(), Log: p.log, Env: process.LoginEnv(os.LookupEnv)})
	if err != nil {
		return nil, err
	}
	h.undo = append(h.undo, func() { closing(h.procs, "the supervisor's socket", p.log) })
	h.runs = runner.New(audit.Store(h.st, h.trail), h.procs, p.conf.Hook, time.Now, p.log)
	h.check = readiness.New(
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
func openAudit(ctx context.Context, c *config.Config, log *slog.Logger) (*audit.Log, error) {
	trail, err := audit.Open(c.Audit, time.Now, log)
	if err != nil {
		return nil, err
	}
	if err := trail.Write(ctx, audit.Line{Event: audit.Started, Version: programVersion(), Config: c.Digest}); err != nil {
		return nil, errors.Join(err, trail.Close())
	}
	return trail, nil
}

// agree has the supervisor read the hooks that are to be in force, and the audit
// say so before they are.
func agree(ctx context.Context, procs *process.Client, trail *audit.Log, old, c *config.Config) error {
	digest, err := procs.Reload(runner.Digest(old.Hooks)) //nolint:contextcheck // it has its own patience, and is not to be left half done
	if err == nil && digest != runner.Digest(c.Hooks) {
		return live.ErrChanged
	}
	if err != nil {
		return err
	}
	return trail.Reloaded(ctx, c.Audit, c.Digest)
}

// superviseCmd is the process that starts commands and outlives the server.
type superviseCmd struct {
	State  string `required:"" help:"State folder."`
	Config string `required:"" help:"Configuration file."`
}

// Run supervises until there is nothing left to do.
func (cmd *superviseCmd) Run(s *cli.Streams) error {
	if err := protectProcess(); err != nil {
		return err
	}
	log, out := logging.New(s.Err)
	defer out.Close()
	return process.Supervise(cmd.supervision(log, out.Flush))
}

func (cmd *superviseCmd) supervision(log *slog.Logger, flush func()) process.Supervision {
	return process.Supervision{
		State: cmd.State, Version: programVersion(), Log: log, Flush: flush, Env: process.LoginEnv(os.LookupEnv),
		Load: func() (map[string]*runner.Hook, error) {
			hooks, found := config.LoadHooks(cmd.Config)
			if hooks == nil {
				return nil, fmt.Errorf("the hooks are refused: %s", found[0])
			}
			return hooks, nil
		},
	}
}

func closing(c io.Closer, what string, log *slog.Logger) {
	if err := c.Close(); err != nil {
		log.Error("closing", "what", what, "error", err)
	}
}

// signals are SIGTERM or SIGINT to stop, a second one to kill, and SIGUSR2 to
// hand over.
func signals() server.Signals {
	first, second, next := make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	got, usr := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(usr, syscall.SIGUSR2)
	go func() {
		<-got
		close(first)
		<-got
		close(second)
	}()
	go func() {
		for range usr {
			next <- struct{}{}
		}
	}()
	return server.Signals{Stop: first, Kill: second, HandOver: next}
}

type checkCmd struct {
	Config string `short:"c" default:"sallyport.yaml" help:"Configuration file."`
	Live   bool   `help:"Tell also when each key was last used, by the state folder."`
}

// Run prints what would be served.
func (cmd *checkCmd) Run(s *cli.Streams) error {
	workloads := certs.NewWorkloads(slog.New(slog.DiscardHandler))
	defer workloads.Retain("")
	c, found := config.Load(cmd.Config, config.Env{Getenv: os.LookupEnv, Now: time.Now(), Workloads: workloads})
	tell(found, s.Err)
	if c == nil {
		return cli.ExitCode(1)
	}
	c.Describe(s.Out)
	if !cmd.Live {
		return nil
	}
	ctx := context.Background()
	st, err := store.OpenRead(ctx, c.State)
	if err != nil {
		return err
	}
	uses, err := st.KeyUses(ctx)
	if err := errors.Join(err, st.Close()); err != nil {
		return err
	}
	c.DescribeKeys(s.Out, uses, time.Now())
	return nil
}

type versionCmd struct{}

// Run prints the version of the program and of what it was built with, and
// whether its cryptography is in FIPS 140-3 mode.
func (*versionCmd) Run(s *cli.Streams) error {
	mode := ""
	if fips140.Enabled() {
		mode = ", FIPS 140-3 mode, module " + fips140.Version()
	}
	_, err := fmt.Fprintf(s.Out, "sallyport %s%s\n", programVersion(), mode)
	return err
}

// programVersion tells one build of the program from another.
func programVersion() string {
	info, ok := debug.ReadBuildInfo()
	switch {
	case version != "" && ok:
		return version + " " + info.GoVersion
	case ok:
		return info.Main.Version + " " + info.GoVersion
	}
	return version
}
