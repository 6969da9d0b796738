// Command sallyport is a secured webhook receiver: it checks who sends a
// request and starts one allow-listed command, one run at a time.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/fips140"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"

	"sallyport/auth"
	"sallyport/auth/keyset"
	"sallyport/certs"
	"sallyport/handlers"
	"sallyport/internal/audit"
	"sallyport/internal/client"
	"sallyport/internal/config"
	"sallyport/internal/keyuse"
	"sallyport/internal/live"
	"sallyport/internal/metrics"
	"sallyport/internal/server"
	"sallyport/runner"
	"sallyport/runner/process"
	"sallyport/runner/store"
)

// version is set by the build.
var version string

type commands struct {
	Serve   serveCmd   `cmd:"" help:"Take deliveries and run what they may start, until SIGTERM."`
	Check   checkCmd   `cmd:"" help:"Print what is wrong with a configuration, or what it would serve."`
	Call    callCmd    `cmd:"" help:"Sign a delivery, send it to a hook and print the run."`
	Sign    signCmd    `cmd:"" help:"Print the headers that sign a body, for curl -H @-."`
	Runs    runsCmd    `cmd:"" help:"List, show, follow, cancel and repeat runs."`
	Audit   auditCmd   `cmd:"" help:"Check the record of decisions."`
	Certs   certsCmd   `cmd:"" help:"Make certificates."`
	Keys    keysCmd    `cmd:"" help:"Make keys."`
	Version versionCmd `cmd:"" help:"Print the version."`

	Supervise superviseCmd `cmd:"" hidden:"" help:"Be the parent of commands. The server starts this itself."`
}

const description = `A secured webhook receiver.

Exit codes: 0 done; 1 the configuration or the server failed; 64 usage; 65 refused as
malformed (400, 413, 422); 69 the server cannot be reached; 70 the server failed (500), or the end of
the run is not known; 75 busy or too often (503, 429): try again; 77 refused for the credential (401,
403); 130 stopped by Ctrl-C. "call --wait" exits as the run did: with its exit code, 128 and the signal's number, 124
when its time was over, or 126 when its command could not be started.`

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// streams are what a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

func run(args []string, in io.Reader, out, errOut io.Writer) int {
	var cmd commands
	exit := -1
	parser, err := kong.New(&cmd, kong.Name("sallyport"), kong.Description(description),
		kong.Vars{"bearer": "Bearer "}, kong.Writers(out, errOut), kong.Exit(func(code int) { exit = code }),
		kong.Bind(&streams{in, out, errOut}))
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
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	_, _ = fmt.Fprintln(errOut, "sallyport:", err)
	return client.ExitCode(err)
}

// exitCode ends the program without another word.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprint("exit code ", int(c)) }

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
func (cmd *serveCmd) Run(s *streams) error {
	log := newLog(s.err)
	workloads, renewals, uses := certs.NewWorkloads(log), certs.NewRenewals(log), new(keyuse.Table)
	defer workloads.Retain("")
	defer renewals.Use(nil)
	conf, found := live.Load(cmd.Config, config.Env{Getenv: os.LookupEnv, Workloads: workloads, Renewals: renewals, Uses: uses}, log)
	tell(found, s.err)
	if conf == nil {
		return exitCode(1)
	}
	exe, err := os.Executable() // now: later it may have been replaced
	if err != nil {
		return err
	}
	// A log whose reader is gone must not end the server past its drain, nor a
	// terminal that closes. Caught, not ignored: commands would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	syscall.Umask(0o077) // what the server and its commands write is theirs alone, unless they say otherwise
	ctx := context.Background()
	_, handedOver := os.LookupEnv(server.HandoverEnv)
	listener, before, err := server.Inherited(ctx, conf.Get(), handedOver)
	if err != nil {
		return err
	}
	p := &program{
		conf: conf, file: cmd.Config, exe: exe, uses: uses, log: log, hup: hup, signals: sync.OnceValue(signals),
		retain: func(c *config.Config) { workloads.Retain(c.SPIFFE); renewals.Use(c.ACME) },
	}
	again := func(error) bool { return false }
	if before != nil {
		// That one would not open a damaged audit again either, so before it lets go.
		if err := audit.Check(conf.Get().State); err != nil {
			return err
		}
		if err := before.Ready(); err != nil {
			return err
		}
		again = func(err error) bool { return errors.Is(err, store.ErrHeld) } // until it has
	}
	for {
		next, err := p.serve(ctx, listener, before, again)
		if next == nil {
			return err
		}
		if err != nil {
			log.Error("handing over", "error", err)
		}
		if listener, err = next.Await(p.signals().Stop); listener == nil {
			return err
		}
		log.Error("not handed over", "error", err)
		before, again = nil, func(error) bool { return true } // a disk may be full just now
	}
}

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
	go maintain(ctx, conf, h.runs, h.st, log)
	go sweep(ctx, filepath.Join(conf.Get().State, "runs"), h.st, log)
	go p.uses.Keep(ctx, h.st, log)
	go certs.Watch(ctx, time.Now, func() []certs.Expiry { return slices.Concat(conf.Get().Expiries(), conf.Get().KeyExpiries()) }, log)
	surface := handlers.New(conf, h.runs, h.procs.Output, h.trail, metrics.Handler(conf, p.uses, programVersion()), time.Now, log)
	issuers := keyset.NewKeeper(log)
	inForce := func(c *config.Config) {
		issuers.Keep(ctx, c.Auth.KeySets())
		surface.Update()
		p.retain(c)
	}
	inForce(conf.Get())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		conf.Watch(ctx, p.hup, func(c *config.Config) error { return agree(ctx, h.procs, h.trail, conf.Get(), c) }, inForce)
	}()
	defer func() { cancel(); <-watched }() // before the record closes
	start := func(listener, pipe *os.File) (*process.Server, error) {
		return process.StartServer(p.exe, os.Args[1:], append(os.Environ(), server.HandoverEnv+"=1"), listener, pipe)
	}
	srv := server.New(listener, conf, surface, h.runs, start, log)
	if err := server.Notify(); err != nil {
		log.Warn("service manager not told", "error", err)
	}
	if before != nil {
		before.Serves() // and a service manager knows by now whom to look after
	}
	next, err = srv.Serve(p.signals()) //nolint:contextcheck // signals end it
	if next != nil {
		return next, errors.Join(err, h.trail.Write(ctx, audit.Line{Event: audit.HandedOver}))
	}
	return nil, errors.Join(err, h.procs.Quit(), h.trail.Write(ctx, audit.Line{Event: audit.Stopped})) //nolint:contextcheck // Quit has its own patience
}

// held is what one server at a time has of a state folder.
type held struct {
	st    *store.SQLite
	trail *audit.Log
	procs *process.Client
	runs  *runner.Runner
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
	h.procs, err = process.Connect(ctx, process.Options{State: c.State, Config: p.file, Exe: p.exe, Version: programVersion(), Log: p.log})
	if err != nil {
		return nil, err
	}
	h.undo = append(h.undo, func() { closing(h.procs, "the supervisor's socket", p.log) })
	h.runs = runner.New(audit.Store(h.st, h.trail), h.procs, p.conf.Hook, time.Now, p.log)
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
	return trail.Reloaded(ctx, c.Audit.Keep, c.Digest)
}

// superviseCmd is the process that starts commands and outlives the server.
type superviseCmd struct {
	State  string `required:"" help:"State folder."`
	Config string `required:"" help:"Configuration file."`
}

// Run supervises until there is nothing left to do.
func (cmd *superviseCmd) Run(s *streams) error {
	syscall.Umask(0o077)
	return process.Supervise(cmd.supervision(s.err))
}

func (cmd *superviseCmd) supervision(log io.Writer) process.Supervision {
	return process.Supervision{
		State: cmd.State, Version: programVersion(), Log: newLog(log),
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

// maintain keeps the past within its bounds. What is beyond them is forgotten in
// small steps, which follow one another for as long as there is more.
func maintain(ctx context.Context, conf *live.Configuration, runs *runner.Runner, st *store.SQLite, log *slog.Logger) {
	dir := filepath.Join(conf.Get().State, "runs")
	const interval, pause = 5 * time.Second, 10 * time.Millisecond
	trim, step := time.NewTimer(interval), time.NewTimer(interval)
	defer trim.Stop()
	defer step.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-trim.C:
			from := time.Now()
			_, err = process.Trim(dir, int64(conf.Get().Outputs))
			trim.Reset(max(interval, 50*time.Since(from))) // it looks at every folder: 6 s for a million
		case <-step.C:
			c := conf.Get()
			expiring := runs.ExpireQueued(ctx, c.Hooks)
			removed, more, pruning := st.Prune(ctx, retention(c))
			err = errors.Join(expiring, pruning)
			for _, id := range removed {
				err = errors.Join(err, process.Remove(dir, id))
			}
			step.Reset(interval)
			if more {
				step.Reset(pause)
			}
		}
		if err != nil {
			log.Error("tidying", "error", err)
		}
	}
}

func retention(c *config.Config) store.Retention {
	keep := store.Retention{Hooks: make(map[string]store.Keep, len(c.Hooks)), Default: store.Keep{Age: 30 * 24 * time.Hour, Count: 1000}}
	for name, h := range c.Hooks {
		keep.Hooks[name] = store.Keep{Age: h.Keep.Age, Count: h.Keep.Count}
	}
	return keep
}

// sweep removes what a crash left of runs that were forgotten just then.
func sweep(ctx context.Context, dir string, st *store.SQLite, log *slog.Logger) {
	removed, err := process.Sweep(ctx, dir, func(run string) (bool, error) {
		_, err := st.Get(ctx, run)
		if errors.Is(err, runner.ErrUnknown) {
			return false, nil
		}
		return true, err
	})
	if removed > 0 {
		log.Info("folders of forgotten runs removed", "count", removed)
	}
	if err != nil && ctx.Err() == nil {
		log.Error("removing folders of forgotten runs", "error", err)
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

// newLog writes text for a person at a terminal and JSON for a program.
func newLog(w io.Writer) *slog.Logger {
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			return slog.New(slog.NewTextHandler(w, nil))
		}
	}
	return slog.New(slog.NewJSONHandler(w, nil))
}

type checkCmd struct {
	Config string `short:"c" default:"sallyport.yaml" help:"Configuration file."`
	Live   bool   `help:"Tell also when each key was last used, by the state folder."`
}

// Run prints what would be served.
func (cmd *checkCmd) Run(s *streams) error {
	workloads := certs.NewWorkloads(slog.New(slog.DiscardHandler))
	defer workloads.Retain("")
	c, found := config.Load(cmd.Config, config.Env{Getenv: os.LookupEnv, Now: time.Now(), Workloads: workloads})
	tell(found, s.err)
	if c == nil {
		return exitCode(1)
	}
	c.Describe(s.out)
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
	c.DescribeKeys(s.out, uses, time.Now())
	return nil
}

// proof is how a delivery proves who sends it, and what it carries.
type proof struct {
	Scheme   string            `placeholder:"NAME" help:"How to sign: a preset such as github, signature (RFC 9421), jwt, or token. None for a client certificate alone."`
	KeyFile  string            `placeholder:"FILE" help:"The secret; for jwt and signature the secret or a PEM private key; for token the token."`
	ID       string            `help:"Id of the delivery. Default: a random one."`
	Data     string            `short:"d" help:"Body." xor:"body"`
	DataFile string            `placeholder:"FILE" help:"Body, from a file; - for stdin." xor:"body"`
	Header   string            `default:"Authorization" help:"token: the header that holds it."`
	Prefix   string            `default:"${bearer}" help:"token: what stands before it in Authorization."`
	Alg      string            `default:"HS256" help:"jwt: algorithm."`
	Kid      string            `help:"jwt and signature: key id."`
	Tag      string            `help:"signature: tag."`
	Issuer   string            `help:"jwt: iss."`
	Audience string            `help:"jwt: aud."`
	Subject  string            `help:"jwt: sub."`
	Claim    map[string]string `placeholder:"NAME=TEXT" help:"jwt: one more claim, a string."`
}

// signer returns what makes the headers; nil without a scheme.
func (p *proof) signer() (client.RequestSigner, error) {
	if p.Scheme == "" {
		return nil, nil
	}
	if p.KeyFile == "" {
		return nil, fmt.Errorf("--scheme %s needs --key-file: %w", p.Scheme, client.ErrUsage)
	}
	key, err := os.ReadFile(p.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	key = bytes.TrimSuffix(bytes.TrimSuffix(key, []byte("\n")), []byte("\r"))
	if p.Scheme == "signature" {
		return client.Signature(p.Kid, p.Tag, key)
	}
	sign, err := p.bodySigner(key)
	if err != nil {
		return nil, err
	}
	return sign.Requests(), nil
}

func (p *proof) bodySigner(key []byte) (client.Signer, error) {
	switch p.Scheme {
	case "token":
		prefix := ""
		if p.Header == "Authorization" {
			prefix = p.Prefix
		}
		return client.Static(p.Header, prefix+string(key))
	case "jwt":
		claims := make(map[string]any, len(p.Claim))
		for name, value := range p.Claim {
			claims[name] = value
		}
		return client.JWT{
			Alg: p.Alg, KeyID: p.Kid, Issuer: p.Issuer, Audience: p.Audience, Subject: p.Subject, Claims: claims,
		}.Signer(key)
	}
	return client.HMAC(p.Scheme, key)
}

func (p *proof) body(in io.Reader) ([]byte, error) {
	switch p.DataFile {
	case "":
		return []byte(p.Data), nil
	case "-":
		return io.ReadAll(in)
	}
	return os.ReadFile(p.DataFile)
}

type signCmd struct {
	proof
	Method      string `default:"POST" help:"signature: of the request."`
	URL         string `help:"signature: of the request, https://host/path."`
	ContentType string `default:"application/json" help:"signature: of the body."`
}

// Run prints the headers.
func (cmd *signCmd) Run(s *streams) error {
	sign, err := cmd.signer()
	if err != nil {
		return err
	}
	if sign == nil {
		return fmt.Errorf("--scheme is missing: %w", client.ErrUsage)
	}
	body, err := cmd.body(s.in)
	if err != nil {
		return err
	}
	if cmd.ID == "" {
		cmd.ID = rand.Text()
	}
	req, err := http.NewRequestWithContext(context.Background(), cmd.Method, cmd.URL, http.NoBody)
	if err != nil || cmd.Scheme == "signature" && (req.URL.Scheme != "https" || req.URL.Host == "") {
		return fmt.Errorf("--url %q is not of the form https://host/path: %w", cmd.URL, client.ErrUsage)
	}
	req.Header.Set("Content-Type", cmd.ContentType)
	h, err := sign(req, cmd.ID, body, time.Now())
	if err != nil {
		return err
	}
	_, err = io.WriteString(s.out, client.Lines(h))
	return err
}

type callCmd struct {
	URL string `arg:"" help:"Of the hook: https://host/path."`
	proof
	transport
	ContentType string            `default:"application/json" help:"Of the body."`
	Set         map[string]string `short:"H" placeholder:"NAME=VALUE" help:"One more header."`
	Wait        bool              `help:"Follow the run and exit as it does."`
	Retry       time.Duration     `help:"Send again for so long while the server is busy or away."`
}

// Run sends the delivery and prints the run as JSON.
func (cmd *callCmd) Run(s *streams) error {
	body, err := cmd.body(s.in)
	if err != nil {
		return err
	}
	if _, hmac := auth.Preset(cmd.Scheme); hmac && len(body) == 0 {
		return fmt.Errorf("--data is missing, and %s signs nothing else: %w", cmd.Scheme, client.ErrUsage)
	}
	c, err := cmd.client(&cmd.proof, client.Options{Retry: cmd.Retry, Progress: s.err})
	if err != nil {
		return err
	}
	header := http.Header{}
	for name, value := range cmd.Set {
		header.Set(name, value)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	res, err := c.Call(ctx, cmd.URL, client.Delivery{ID: cmd.ID, Body: body, ContentType: cmd.ContentType, Header: header}, cmd.Wait)
	if err != nil {
		return err
	}
	if res.Replayed {
		_, _ = fmt.Fprintln(s.err, "this delivery was accepted before; nothing was started again")
	}
	if err := printJSON(s.out, res.Run); err != nil {
		return err
	}
	if code := client.RunExitCode(res.Run); cmd.Wait && code != 0 {
		return exitCode(code)
	}
	return nil
}

type auditCmd struct {
	Verify auditVerifyCmd `cmd:"" help:"Find the first line of an audit that was changed, moved or removed."`
	Key    auditKeyCmd    `cmd:"" help:"Print the keys that verify an audit, the newest last."`
}

type auditVerifyCmd struct {
	Files      []string `arg:"" optional:"" help:"Files of lines that were copied elsewhere, in order."`
	State      string   `placeholder:"DIR" help:"State folder, instead of files: nothing may be missing."`
	Key        []string `placeholder:"KEY" help:"Trust this key, which \"audit key\" printed, and not those of the state folder."`
	Checkpoint []string `placeholder:"FILE" help:"A copy of the file audit/checkpoint that was kept elsewhere: what it has seen must be there."`
}

// Run prints what is right, or the first thing that is wrong.
func (cmd *auditVerifyCmd) Run(s *streams) error {
	keys := cmd.Key
	switch {
	case (cmd.State == "") == (len(cmd.Files) == 0):
		return fmt.Errorf("either --state or files are needed: %w", client.ErrUsage)
	case len(keys) == 0 && cmd.State == "":
		return fmt.Errorf("files need a --key: %w", client.ErrUsage)
	case len(keys) == 0:
		var err error
		if keys, err = audit.Keys(cmd.State); err != nil {
			return err
		}
	}
	known, err := audit.Verifiers(keys)
	if err != nil {
		return err
	}
	v := audit.Verifier{Known: known, Checkpoints: map[string]string{}}
	for _, name := range cmd.Checkpoint {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		v.Checkpoints[name] = string(text)
	}
	var report audit.Report
	if cmd.State != "" {
		report, err = v.State(cmd.State)
	} else {
		report, err = v.Files(cmd.Files)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.out, "%d lines in %d files, seq %d to %d, follow one another. Signatures vouch for all up to seq %d.\n",
		report.Lines, report.Files, report.First, report.Last, report.Vouched)
	return err
}

type auditKeyCmd struct {
	State string `required:"" placeholder:"DIR" help:"State folder."`
}

// Run prints the keys.
func (cmd *auditKeyCmd) Run(s *streams) error {
	keys, err := audit.Keys(cmd.State)
	for _, key := range keys {
		_, _ = fmt.Fprintln(s.out, key)
	}
	return err
}

type certsCmd struct {
	Dev devCmd `cmd:"" help:"Make a development CA, and certificates for localhost and for a client."`
}

type devCmd struct {
	Dir   string `default:"certs" help:"Folder to write to."`
	Renew bool   `help:"Keep what is good for another week, replace what is not."`
}

// Run makes the files.
func (cmd *devCmd) Run(s *streams) error {
	made, err := certs.Dev(cmd.Dir, time.Now(), cmd.Renew)
	if err != nil {
		return err
	}
	if made {
		_, _ = fmt.Fprintf(s.out, "made ca.pem, server.pem, server.key, client.pem and client.key in %s, for development only\n", cmd.Dir)
	}
	return nil
}

type keysCmd struct {
	New keysNewCmd `cmd:"" help:"Make a key, and print the line that puts it under keys."`
}

type keysNewCmd struct {
	Scheme string `arg:"" help:"What the key is for: a preset such as github, signature, jwt or token."`
	Alg    string `help:"jwt: HS256 (the default), RS256, ES256 or EdDSA; signature: ed25519 (the default), ecdsa-p256-sha256 or hmac-sha256; standard-webhooks and svix: ed25519."`
	ID     string `help:"Id of the key. Default: today's date."`
	Out    string `placeholder:"FILE" help:"File to make, which must not be there; a public half goes to FILE.pub. - prints both. Default: SCHEME-ID."`
}

// Run makes the files. A secret is printed only where that is asked for.
func (cmd *keysNewCmd) Run(s *streams) error {
	key, err := auth.GenerateKey(cmd.Scheme, cmd.Alg)
	if err != nil {
		return fmt.Errorf("%w: %w", err, client.ErrUsage)
	}
	id := cmp.Or(cmd.ID, time.Now().Format(time.DateOnly))
	file := cmp.Or(cmd.Out, cmd.Scheme+"-"+id)
	if cmd.Out == "-" {
		_, _ = fmt.Fprintf(s.err, "- {id: %q, file: FILE}\n", id)
		_, err := s.out.Write(append(key.Secret, key.Public...))
		return err
	}
	if err := writeNew(file, key.Secret); err != nil {
		return err
	}
	if key.Public != nil {
		if err := writeNew(file+".pub", key.Public); err != nil {
			return errors.Join(err, os.Remove(file))
		}
		_, _ = fmt.Fprintf(s.err, "%s is for the sender alone; the server needs %s.pub\n", file, file)
		file += ".pub"
	}
	_, err = fmt.Fprintf(s.out, "- {id: %q, file: %q}\n", id, file)
	return err
}

// writeNew makes a file that nobody else may read, and leaves no half of one.
func writeNew(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making the key's file: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing the key's file: %w", err), os.Remove(name))
	}
	return nil
}

type versionCmd struct{}

// Run prints the version of the program and of what it was built with, and
// whether its cryptography is in FIPS 140-3 mode.
func (*versionCmd) Run(s *streams) error {
	mode := ""
	if fips140.Enabled() {
		mode = ", FIPS 140-3 mode, module " + fips140.Version()
	}
	_, err := fmt.Fprintf(s.out, "sallyport %s%s\n", programVersion(), mode)
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

// transport is how a server is reached.
type transport struct {
	CA   string `name:"ca" placeholder:"FILE" help:"Trust this CA instead of the system's."`
	Cert string `placeholder:"FILE" help:"Client certificate, PEM." and:"cert"`
	Key  string `placeholder:"FILE" help:"Its key, PEM." and:"cert"`
}

func (t *transport) client(p *proof, o client.Options) (*client.Client, error) {
	sign, err := p.signer()
	if err != nil {
		return nil, err
	}
	o.Sign, o.CA, o.Cert, o.Key, o.Now = sign, t.CA, t.Cert, t.Key, time.Now
	return client.New(o)
}

type runsCmd struct {
	List   runsListCmd   `cmd:"" help:"List runs, newest first."`
	Show   runsShowCmd   `cmd:"" help:"Show one run."`
	Output runsOutputCmd `cmd:"" help:"Print what the command of a run wrote."`
	Cancel runsCancelCmd `cmd:"" help:"End a run that waits or runs."`
	Rerun  runsRerunCmd  `cmd:"" help:"Start the command of a run again."`
}

// reach is where runs are asked for: at a server with a credential, or in the
// state folder of this machine, which needs no server.
type reach struct {
	Server string `placeholder:"URL" help:"Server: https://host:port." xor:"where" required:""`
	State  string `placeholder:"DIR" help:"State folder, instead of a server." xor:"where" required:""`
	proof
	transport
}

// ask calls online or offline.
func (r *reach) ask(s *streams, online func(context.Context, *client.Client) error, offline func(context.Context, *store.SQLite) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if r.State != "" {
		st, err := store.OpenRead(ctx, r.State)
		if err != nil {
			return err
		}
		return errors.Join(offline(ctx, st), st.Close())
	}
	c, err := r.client(&r.proof, client.Options{Progress: s.err})
	if err != nil {
		return err
	}
	return online(ctx, c)
}

type runsListCmd struct {
	reach
	Hook   []string       `help:"Of these hooks."`
	Caller []string       `help:"Of these callers."`
	In     []runner.State `name:"in" placeholder:"STATE" help:"In these states: queued, running, succeeded, failed, timed_out, cancelled, interrupted."`
	Since  time.Time      `format:"2006-01-02T15:04:05Z07:00" help:"Created then or later, as 2026-11-30T12:00:00Z."`
	Until  time.Time      `format:"2006-01-02T15:04:05Z07:00" help:"Created before then."`
	Before string         `placeholder:"ID" help:"Go on after this run of an earlier page."`
	Limit  int            `default:"50" help:"At most so many, up to 1000."`
	form
}

// Run prints a page of runs, and how to get the next one.
func (cmd *runsListCmd) Run(s *streams) error {
	p := client.Page{Runs: []runner.Run{}}
	err := cmd.ask(s, func(ctx context.Context, c *client.Client) (err error) {
		p, err = c.Runs(ctx, cmd.Server, cmd.query())
		return err
	}, func(ctx context.Context, st *store.SQLite) (err error) {
		runs, next, err := st.List(ctx, runner.Filter{
			Hooks: cmd.Hook, Callers: cmd.Caller, States: cmd.In, Since: cmd.Since, Until: cmd.Until, Before: cmd.Before, Limit: cmd.Limit,
		})
		p.Runs, p.Next = append(p.Runs, runs...), next
		return err
	})
	if err != nil {
		return err
	}
	if cmd.JSON {
		return printJSON(s.out, p)
	}
	w := tabwriter.NewWriter(s.out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "RUN\tHOOK\tCALLER\tSTATE\tCREATED\tTOOK\tEXIT")
	for _, r := range p.Runs {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Hook, r.Caller, r.State,
			moment(r.Created), took(r), exit(r))
	}
	if p.Next != "" {
		defer func() { _, _ = fmt.Fprintln(s.err, "there are more: --before", p.Next) }()
	}
	return w.Flush()
}

func (cmd *runsListCmd) query() url.Values {
	q := url.Values{"hook": cmd.Hook, "caller": cmd.Caller, "limit": {strconv.Itoa(cmd.Limit)}}
	for _, state := range cmd.In {
		q.Add("state", string(state))
	}
	for name, at := range map[string]time.Time{"since": cmd.Since, "until": cmd.Until} {
		if !at.IsZero() {
			q.Set(name, at.Format(time.RFC3339))
		}
	}
	if cmd.Before != "" {
		q.Set("before", cmd.Before)
	}
	return q
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

func took(r runner.Run) string {
	if r.Started.IsZero() || r.Ended.IsZero() {
		return ""
	}
	return r.Ended.Sub(r.Started).Round(time.Millisecond).String()
}

func exit(r runner.Run) string {
	if r.ExitCode != nil {
		return strconv.Itoa(*r.ExitCode)
	}
	return r.Signal
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// form is how runs are printed.
type form struct {
	JSON bool `name:"json" help:"Print JSON, for programs."`
}

func (f *form) print(w io.Writer, r runner.Run) error {
	if f.JSON {
		return printJSON(w, r)
	}
	rows := [][2]string{
		{"run", r.ID},
		{"hook", r.Hook},
		{"caller", r.Caller},
		{"flight", r.Flight},
		{"state", string(r.State)},
		{"created", moment(r.Created)},
		{"started", moment(r.Started)},
		{"ended", moment(r.Ended)},
		{"took", took(r)},
		{"exit", exit(r)},
		{"error", r.Error},
		{"output", wrote(r)},
		{"rerun of", r.RerunOf},
		{"stands for", strings.Join(r.StandsFor, ", ")},
	}
	if r.Attempt > 0 {
		rows = append(rows, [2]string{"attempt", strconv.Itoa(r.Attempt)})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Params)) {
		rows = append(rows, [2]string{"param " + name, r.Params[name]})
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		if row[1] != "" || strings.HasPrefix(row[0], "param ") {
			_, _ = fmt.Fprintf(t, "%s\t%s\n", row[0], plain(row[1]))
		}
	}
	return t.Flush()
}

// plain quotes what a sender could use to write to the terminal what is not there.
func plain(s string) string {
	if quoted := strconv.Quote(s); s == "" || quoted != `"`+s+`"` {
		return quoted
	}
	return s
}

func wrote(r runner.Run) string {
	switch {
	case r.Ended.IsZero():
		return ""
	case r.Output.Dropped > 0:
		return fmt.Sprintf("%d bytes, %d of them not kept", r.Output.Bytes, r.Output.Dropped)
	}
	return fmt.Sprintf("%d bytes", r.Output.Bytes)
}

type runsShowCmd struct {
	ID string `arg:"" help:"Run."`
	reach
	form
}

// Run prints the run.
func (cmd *runsShowCmd) Run(s *streams) error {
	var r runner.Run
	err := cmd.ask(s, func(ctx context.Context, c *client.Client) (err error) {
		r, err = c.Run(ctx, cmd.Server, cmd.ID)
		return err
	}, func(ctx context.Context, st *store.SQLite) (err error) {
		r, err = st.Get(ctx, cmd.ID)
		return err
	})
	if err != nil {
		return err
	}
	return cmd.print(s.out, r)
}

type runsOutputCmd struct {
	ID     string `arg:"" help:"Run."`
	Follow bool   `short:"f" help:"Go on until the run has ended."`
	reach
}

// Run copies the output.
func (cmd *runsOutputCmd) Run(s *streams) error {
	return cmd.ask(s, func(ctx context.Context, c *client.Client) error {
		if cmd.Follow {
			return c.Follow(ctx, cmd.Server, cmd.ID, s.out)
		}
		return c.Output(ctx, cmd.Server, cmd.ID, s.out)
	}, func(ctx context.Context, st *store.SQLite) error {
		if cmd.Follow {
			return fmt.Errorf("--follow needs a --server: %w", client.ErrUsage)
		}
		r, err := st.Get(ctx, cmd.ID)
		if err != nil {
			return err
		}
		err = process.CopyOutput(s.out, filepath.Join(cmd.State, "runs"), cmd.ID)
		if errors.Is(err, process.ErrUnknown) {
			return fmt.Errorf("run %s has no output: it is %s, and its command was not started", r.ID, r.State)
		}
		return err
	})
}

type runsCancelCmd struct {
	ID string `arg:"" help:"Run."`
	reach
	form
}

// errNoServer says that a command changes something, which only a server does.
var errNoServer = fmt.Errorf("this needs a --server: %w", client.ErrUsage)

// Run cancels.
func (cmd *runsCancelCmd) Run(s *streams) error {
	return cmd.ask(s, func(ctx context.Context, c *client.Client) error {
		r, err := c.Cancel(ctx, cmd.Server, cmd.ID)
		if err != nil {
			return err
		}
		return cmd.print(s.out, r)
	}, func(context.Context, *store.SQLite) error { return errNoServer })
}

type runsRerunCmd struct {
	ID string `arg:"" help:"Run."`
	reach
	form
}

// Run starts the command again.
func (cmd *runsRerunCmd) Run(s *streams) error {
	return cmd.ask(s, func(ctx context.Context, c *client.Client) error {
		r, err := c.Rerun(ctx, cmd.Server, cmd.ID)
		if err != nil {
			return err
		}
		return cmd.print(s.out, r)
	}, func(context.Context, *store.SQLite) error { return errNoServer })
}
