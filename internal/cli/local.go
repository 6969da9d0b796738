package cli

import (
	"context"
	"fmt"
	"net"
	"os/signal"
	"syscall"

	"sallyport/internal/client"
	"sallyport/internal/terminal"
	"sallyport/runner/supervisor"
)

// changeRun asks a server to change a run: the server at --server, or, as a local administrator, the one that serves
// the state folder. It never changes the store itself while a server uses it.
func (r *target) changeRun(s *Streams, f func(ctx context.Context, c *client.Client, server string) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := r.refuseCredential(); err != nil {
		return err
	}
	if r.StateDir != "" {
		return askLocally(ctx, r.StateDir, func(ctx context.Context, c *client.Local, server string) error {
			return f(ctx, c.Client, server)
		})
	}
	c, err := r.makeClient(s, &r.credential, client.Options{Progress: terminal.Writer(s.Err)})
	if err != nil {
		return err
	}
	return f(ctx, c, r.Server)
}

// askLocally asks the server that serves a state folder, as a local administrator.
func askLocally(
	ctx context.Context, dir string, f func(ctx context.Context, c *client.Local, server string) error,
) error {
	dial := func(ctx context.Context) (net.Conn, error) { return supervisor.DialAdmin(ctx, dir) }
	err := f(ctx, client.NewLocal(dial), client.LocalServer)
	if client.ExitCode(err) == client.ExitUnreachable {
		return fmt.Errorf("no server serves %s, or it is another user's; only root and the user of the server may "+
			"do this: %w", dir, err)
	}
	return err
}
