// Command sallyport is a secured webhook receiver: it checks who sends a
// request and starts one allow-listed command, one run at a time.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"sallyport/certs"
	"sallyport/handlers"
	"sallyport/internal/client"
	"sallyport/internal/config"
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
	Certs   certsCmd   `cmd:"" help:"Make certificates."`
	Version versionCmd `cmd:"" help:"Print the version."`

	Supervise superviseCmd `cmd:"" hidden:"" help:"Start and follow commands for the server, which starts this."`
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

// load reads the configuration and prints what is wrong with it. It returns nil
// when the server must not start.
func load(name string, errOut io.Writer) *config.Config {
	c, found := config.Load(name, config.Env{Getenv: os.LookupEnv, Now: time.Now()})
	for _, d := range found {
		_, _ = fmt.Fprintln(errOut, d)
	}
	return c
}

type serveCmd struct {
	Config string `short:"c" default:"sallyport.yaml" help:"Configuration file."`
}

// Run serves until a signal comes.
func (cmd *serveCmd) Run(s *streams) error {
	c := load(cmd.Config, s.err)
	if c == nil {
		return exitCode(1)
	}
	log := newLog(s.err)
	syscall.Umask(0o077) // what the server and its commands write is theirs alone, unless they say otherwise
	procs, err := process.NewLocal(filepath.Join(c.State, "runs"), c.Hook, log)
	if err != nil {
		return err
	}
	const remembered = 1 << 14
	runs := runner.New(store.NewMemory(remembered, time.Now), procs, time.Now, log)
	srv, err := server.Listen(context.Background(), c, handlers.New(c, runs, time.Now, log), runs, log)
	if err != nil {
		return err
	}
	stop, kill := signals()
	return srv.Serve(stop, kill)
}

// signals closes stop at the first SIGTERM or SIGINT and kill at the second.
func signals() (stop, kill <-chan struct{}) {
	first, second := make(chan struct{}), make(chan struct{})
	got := make(chan os.Signal, 2)
	signal.Notify(got, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-got
		close(first)
		<-got
		close(second)
	}()
	return first, second
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

type superviseCmd struct {
	State  string `required:"" help:"State folder."`
	Config string `required:"" help:"Configuration file."`
}

// Run follows commands until none is left and nobody needs it. It loads the
// hooks and nothing else.
func (cmd *superviseCmd) Run(s *streams) error {
	syscall.Umask(0o077)
	return process.Supervise(process.Supervision{
		State: cmd.State, Version: programVersion(), Log: newLog(s.err),
		Load: func() (map[string]*runner.Hook, error) {
			hooks, found := config.LoadHooks(cmd.Config)
			if hooks == nil {
				return nil, fmt.Errorf("%s: %v", cmd.Config, found)
			}
			return hooks, nil
		},
	})
}

type checkCmd struct {
	Config string `short:"c" default:"sallyport.yaml" help:"Configuration file."`
}

// Run prints what would be served.
func (cmd *checkCmd) Run(s *streams) error {
	c := load(cmd.Config, s.err)
	if c == nil {
		return exitCode(1)
	}
	c.Describe(s.out)
	return nil
}

// proof is how a delivery proves who sends it, and what it carries.
type proof struct {
	Scheme   string            `placeholder:"NAME" help:"How to sign: a preset such as github, jwt, or token. None for a client certificate alone."`
	KeyFile  string            `placeholder:"FILE" help:"The secret; for jwt the secret or a PEM private key; for token the token."`
	ID       string            `help:"Id of the delivery. Default: a random one."`
	Data     string            `short:"d" help:"Body." xor:"body"`
	DataFile string            `placeholder:"FILE" help:"Body, from a file; - for stdin." xor:"body"`
	Header   string            `default:"Authorization" help:"token: the header that holds it."`
	Prefix   string            `default:"${bearer}" help:"token: what stands before it in Authorization."`
	Alg      string            `default:"HS256" help:"jwt: algorithm."`
	Kid      string            `help:"jwt: key id."`
	Issuer   string            `help:"jwt: iss."`
	Audience string            `help:"jwt: aud."`
	Subject  string            `help:"jwt: sub."`
	Claim    map[string]string `placeholder:"NAME=TEXT" help:"jwt: one more claim, a string."`
}

// signer returns what makes the headers; nil without a scheme.
func (p *proof) signer() (client.Signer, error) {
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

type signCmd struct{ proof }

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
	h, err := sign(cmd.ID, body, time.Now())
	if err != nil {
		return err
	}
	_, err = io.WriteString(s.out, client.Lines(h))
	return err
}

type callCmd struct {
	URL string `arg:"" help:"Of the hook: https://host/path."`
	proof
	CA          string            `name:"ca" placeholder:"FILE" help:"Trust this CA instead of the system's."`
	Cert        string            `placeholder:"FILE" help:"Client certificate, PEM." and:"cert"`
	Key         string            `placeholder:"FILE" help:"Its key, PEM." and:"cert"`
	ContentType string            `default:"application/json" help:"Of the body."`
	Set         map[string]string `short:"H" placeholder:"NAME=VALUE" help:"One more header."`
	Wait        bool              `help:"Follow the run and exit as it does."`
	Retry       time.Duration     `help:"Send again for so long while the server is busy or away."`
}

// Run sends the delivery and prints the run as JSON.
func (cmd *callCmd) Run(s *streams) error {
	sign, err := cmd.signer()
	if err != nil {
		return err
	}
	body, err := cmd.body(s.in)
	if err != nil {
		return err
	}
	c, err := client.New(client.Options{
		Sign: sign, CA: cmd.CA, Cert: cmd.Cert, Key: cmd.Key, Retry: cmd.Retry, Progress: s.err, Now: time.Now,
	})
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
	enc := json.NewEncoder(s.out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(res.Run); err != nil {
		return err
	}
	if code := client.RunExitCode(res.Run); cmd.Wait && code != 0 {
		return exitCode(code)
	}
	return nil
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

type versionCmd struct{}

// Run prints the version of the program and of what it was built with.
func (*versionCmd) Run(s *streams) error {
	info, _ := debug.ReadBuildInfo()
	_, err := fmt.Fprintln(s.out, "sallyport", programVersion(), info.GoVersion)
	return err
}

// programVersion is what the build says. A supervisor of another one replaces
// itself.
func programVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return version
}
