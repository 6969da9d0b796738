// Package app is the program: [Main] parses the command line and runs a command. The commands that serve are here, the
// others are in package cli.
//
// A server goes through states: it acquires the state folder, serves, and then drains, or hands over to a successor. If
// the successor fails, it reclaims the folder and serves again with the same listener.
//
//   - At any time at most one server has the state folder. It opens the store first, whose lock guards the rest, then
//     the audit log, then the connection to the supervisor. It closes them in the reverse order.
//   - The runs of an earlier server are recovered before the first delivery is accepted.
//   - If any of this fails, nothing is served.
//
// [Supervision] has the settings of the supervisor, which is the same program in another mode. What becomes
// of a delivery is decided in package handlers.
package app

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"sallyport/internal/cli"
	"sallyport/internal/client"
	"sallyport/internal/config"
	"sallyport/internal/logging"
	"sallyport/internal/terminal"
)

// commands has a field for each command, so it has many.
type commands struct {
	Serve   serveCmd   `cmd:"" help:"Run the server."`
	Check   checkCmd   `cmd:"" help:"Print what is wrong with a configuration, or what it would serve."`
	Try     tryCmd     `cmd:"" help:"Explain what the server would do with a captured delivery, and start nothing."`
	Call    cli.Call   `cmd:"" help:"Call a hook, and print its run or wait for it."`
	Sign    cli.Sign   `cmd:"" help:"Print the headers that sign a body, for curl -H @-."`
	Runs    cli.Runs   `cmd:"" help:"List, show, follow, cancel and repeat runs."`
	Hooks   cli.Hooks  `cmd:"" help:"List, pause and resume the hooks of a server on this machine."`
	Import  cli.Import `cmd:"" help:"Print a configuration made from a hooks file of adnanh/webhook."`
	Audit   cli.Audit  `cmd:"" help:"Verify the audit log."`
	Backup  cli.Backup `cmd:"" help:"Copy the state folder while the server runs."`
	Certs   cli.Certs  `cmd:"" help:"Make certificates."`
	Keys    cli.Keys   `cmd:"" help:"Make keys."`
	Version versionCmd `cmd:"" help:"Print the version."`

	Completion completionCmd `cmd:"" help:"Print a completion script for a shell."`
	Manual     manualCmd     `cmd:"" hidden:"" help:"Print the man page. Packages install it."`

	Supervise superviseCmd `cmd:"" hidden:"" help:"Run as the supervisor. Only the server starts this."`
}

const description = `A secured webhook receiver.

Exit codes: 0 done; 1 the configuration or the server failed; 64 usage; 65 refused as
malformed (400, 413, 422); 69 the server cannot be reached; 70 the server failed (500), or the outcome
of the run is unknown; 73 accepted before, and no --id given; 75 busy or too many requests (503, 429):
try again; 77 refused credential (401, 403, a client certificate), or the caller is observe-only;
130 stopped by Ctrl-C. "call --wait" exits with the exit code of the run, 128 plus the number of the
signal, 124 if it timed out, or 126 if its command could not be started.`

// Main runs the command that args name, of a build of that version, and returns its exit code.
func Main(version string, args []string, in io.Reader, out, errOut io.Writer) int {
	var cmd commands
	exit := -1
	streams := &cli.Streams{In: in, Out: terminal.Writer(out), Err: errOut, LookupEnv: os.LookupEnv}
	parser, err := kong.New(&cmd, kong.Name("sallyport"), kong.Description(description),
		kong.Writers(out, errOut), kong.Exit(func(code int) { exit = code }), kong.Bind(buildVersion(version), streams))
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
	logging.PrintLast(logging.PlainErrors(errOut, os.LookupEnv), "sallyport:", err)
	return client.ExitCode(err)
}

// printDiagnostics prints what is wrong with a configuration.
func printDiagnostics(found []config.Diagnostic, errOut io.Writer) {
	for _, d := range found {
		_, _ = fmt.Fprintln(errOut, d)
	}
}
