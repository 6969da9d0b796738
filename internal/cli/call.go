package cli

import (
	"context"
	"fmt"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"sallyport/auth"
	"sallyport/internal/client"
)

// Call sends a delivery to a hook, and with Wait follows its run.
type Call struct {
	URL string `arg:"" help:"Of the hook: https://host/path."`
	proof
	transport
	ContentType string            `default:"application/json" help:"Of the body."`
	Set         map[string]string `short:"H" placeholder:"NAME=VALUE" help:"One more header."`
	Wait        bool              `help:"Follow the run and exit as it does."`
	Retry       time.Duration     `help:"Send again for so long while the server is busy or away."`
}

// Run sends the delivery and prints the run as JSON.
func (cmd *Call) Run(s *Streams) error {
	body, err := cmd.body(s.In)
	if err != nil {
		return err
	}
	if _, hmac := auth.Preset(cmd.Scheme); hmac && len(body) == 0 {
		return fmt.Errorf("--data is missing, and %s signs nothing else: %w", cmd.Scheme, client.ErrUsage)
	}
	c, err := cmd.client(&cmd.proof, client.Options{Retry: cmd.Retry, Progress: s.Err})
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
		_, _ = fmt.Fprintln(s.Err, "this delivery was accepted before; nothing was started again")
	}
	if err := printJSON(s.Out, res.Run); err != nil {
		return err
	}
	if code := client.RunExitCode(res.Run); cmd.Wait && code != 0 {
		return ExitCode(code)
	}
	return nil
}
