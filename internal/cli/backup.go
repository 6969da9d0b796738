package cli

import (
	"context"
	"fmt"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"sallyport/internal/backup"
)

// Backup copies a state folder while its server runs.
type Backup struct {
	Dir      string `arg:"" help:"Folder to write to; it must not exist, or be empty."`
	StateDir string `required:"" placeholder:"DIR" help:"State folder to copy."`
}

// Run writes the backup and prints what it contains.
func (cmd *Backup) Run(s *Streams) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	to := filepath.Clean(cmd.Dir)
	if err := backup.Write(ctx, cmd.StateDir, to, time.Now()); err != nil {
		return fmt.Errorf("backing up %s: %w", cmd.StateDir, err)
	}
	_, err := fmt.Fprintf(s.Out, "backup written to %s. To restore it, copy it to the place of the state folder, "+
		"owned by the user of the server, mode 0700.\n", to)
	return err
}
