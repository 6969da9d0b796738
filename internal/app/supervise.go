package app

import (
	"fmt"
	"log/slog"
	"os"

	"sallyport/internal/cli"
	"sallyport/internal/config"
	"sallyport/internal/logging"
	"sallyport/runner/hook"
	"sallyport/runner/supervisor"
)

// superviseCmd is the process that starts commands and outlives the server.
type superviseCmd struct {
	State  string `required:"" help:"State folder."`
	Config string `required:"" help:"Configuration file."`
}

// Run supervises until there is nothing left to do.
func (cmd *superviseCmd) Run(s *cli.Streams, version buildVersion) error {
	if err := protectProcess(); err != nil {
		return err
	}
	log, out := logging.New(s.Err, os.LookupEnv)
	defer out.Close()
	return supervisor.Run(Supervision(cmd.State, cmd.Config, string(version), log, out))
}

// Supervision is what the supervisor of a state folder needs: it reads the hooks, and the
// settings of its log, from the configuration file itself.
func Supervision(state, file, version string, log *slog.Logger, out *logging.Output) supervisor.Settings {
	return supervisor.Settings{
		State: state, Version: buildVersion(version).String(), Log: log, Flush: out.Flush,
		Env: supervisorEnv(),
		Load: func() (map[string]*hook.Hook, error) {
			hooks, settings, found := config.LoadHooks(file)
			if hooks == nil {
				return nil, fmt.Errorf("the hooks are refused: %s", found[0])
			}
			out.Use(settings)
			return hooks, nil
		},
	}
}
