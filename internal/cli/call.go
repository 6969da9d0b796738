package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"time"

	syntax "sallyport/auth/field" // field is a header here
	"sallyport/auth/webhook"
	"sallyport/internal/client"
	"sallyport/internal/terminal"
)

// Call sends a delivery to a hook, and with Wait follows its run.
type Call struct {
	URL string `arg:"" help:"URL of the hook: https://host/path."`
	credential
	payload
	transport
	ContentType string        `default:"application/json" help:"Content-Type of the body."`
	Set         []field       `short:"H" sep:"none" placeholder:"NAME:VALUE" help:"Header, as in curl. Repeatable."`
	Wait        bool          `help:"Wait for the run, and exit with its exit code."`
	Retry       time.Duration `help:"Keep trying for this long while the server is busy or unreachable."`
}

// Run sends the delivery and prints the run as JSON.
func (cmd *Call) Run(s *Streams) error {
	body, err := cmd.readBody(s.In)
	if err != nil {
		return err
	}
	if _, hmac := webhook.Preset(cmd.Scheme); hmac && len(body) == 0 {
		return fmt.Errorf("--data is missing, but %s signs only the body: %w", cmd.Scheme, client.ErrUsage)
	}
	c, err := cmd.makeClient(&cmd.credential, client.Options{Retry: cmd.Retry, Progress: terminal.Writer(s.Err)})
	if err != nil {
		return err
	}
	header := http.Header{}
	for _, f := range cmd.Set {
		header.Set(f.name, f.value)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	res, err := c.Call(ctx, cmd.URL,
		client.Delivery{ID: cmd.ID, Body: body, ContentType: cmd.ContentType, Header: header}, cmd.Wait)
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

// field is one field of a header.
type field struct{ name, value string }

// UnmarshalText reads NAME:VALUE, or NAME=VALUE. Its errors do not repeat the value,
// which may be a credential.
func (f *field) UnmarshalText(text []byte) error {
	s := string(text)
	at := strings.IndexAny(s, ":=")
	if at < 1 || !syntax.IsToken(s[:at]) {
		return errors.New("a header is given as NAME:VALUE")
	}
	f.name, f.value = s[:at], strings.TrimSpace(s[at+1:])
	if !client.IsHeaderValue(f.value) {
		return fmt.Errorf("the header %s cannot have this value", f.name)
	}
	return nil
}
