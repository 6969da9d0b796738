// Command sallyport is a secured webhook receiver: it checks who sends a
// request and starts one allow-listed command, one run at a time.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
var version = "" //nolint:gochecknoglobals // the linker writes it

type commands struct {
	Serve   serveCmd   `cmd:"" help:"Take deliveries and run what they may start, until SIGTERM."`
	Check   checkCmd   `cmd:"" help:"Print what is wrong with a configuration, or what it would serve."`
	Call    callCmd    `cmd:"" help:"Sign a delivery, send it to a hook and print the run."`
	Sign    signCmd    `cmd:"" help:"Print the headers that sign a body, for curl -H @-."`
	Certs   certsCmd   `cmd:"" help:"Make certificates."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

const description = `A secured webhook receiver.

Exit codes: 0 done; 1 the configuration or the server failed; 64 usage; 65 refused as
malformed (400, 413, 422); 69 the server cannot be reached; 70 the server failed (500); 75 busy
or too often (503, 429): try again; 77 refused for the credential (401, 403). "call --wait" exits as the
run did: with its exit code, 128 and the signal's number, or 124 when its time was over.`

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
		kong.Writers(out, errOut), kong.Exit(func(code int) { exit = code }),
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
	if version == "" {
		version = info.Main.Version
	}
	_, err := fmt.Fprintln(s.out, "sallyport", version, info.GoVersion)
	return err
}
