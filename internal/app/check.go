package app

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"sallyport/certs"
	"sallyport/internal/cli"
	"sallyport/internal/config"
	"sallyport/runner/store"
)

type checkCmd struct {
	Config string `short:"c" default:"sallyport.yaml" help:"Configuration file."`
	Live   bool   `help:"Also show when each key was last used (reads the state folder)."`
}

// Run prints what would be served.
func (cmd *checkCmd) Run(s *cli.Streams) error {
	c, found := loadToRead(cmd.Config)
	printDiagnostics(found, s.Err)
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

// loadToRead loads a configuration that is only shown.
func loadToRead(file string) (*config.Config, []config.Diagnostic) {
	workloads := certs.NewWorkloads(slog.New(slog.DiscardHandler))
	defer workloads.Retain("")
	return config.Load(file, config.Env{Getenv: os.LookupEnv, Now: time.Now(), Workloads: workloads})
}
