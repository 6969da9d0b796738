package app

import (
	"strconv"
	"time"

	"github.com/alecthomas/kong"

	"sallyport/internal/cli"
	"sallyport/internal/manual"
)

// completionCmd prints what a shell needs to complete command lines of the program.
type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"Shell: bash, zsh or fish."`
}

// Run prints the script.
func (cmd *completionCmd) Run(s *cli.Streams, ctx *kong.Context) error {
	print := manual.Bash
	switch cmd.Shell {
	case "zsh":
		print = manual.Zsh
	case "fish":
		print = manual.Fish
	}
	return print(s.Out, ctx.Model)
}

// manualCmd prints the man page. Packages install it.
type manualCmd struct{}

// Run prints the page with the date of SOURCE_DATE_EPOCH, if that is set, so that a package can be built again.
func (*manualCmd) Run(s *cli.Streams, ctx *kong.Context, version buildVersion) error {
	var date time.Time
	if text, ok := s.LookupEnv("SOURCE_DATE_EPOCH"); ok {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return err
		}
		date = time.Unix(seconds, 0)
	}
	return manual.Page(s.Out, ctx.Model, string(version), date)
}
