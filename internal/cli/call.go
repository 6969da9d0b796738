package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/signal"
	"slices"
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
	Wait        bool          `help:"Wait for the run, print what it writes, and exit with its exit code."`
	Quiet       bool          `help:"Print nothing but errors." xor:"print"`
	JSON        bool          `name:"json" help:"Print only the run, as JSON, also with --wait." xor:"print"`
	Retry       time.Duration `help:"Keep trying for this long while the server is busy or unreachable."`
}

// Run sends the delivery. With Wait it prints the output of the run, otherwise the run as JSON.
func (cmd *Call) Run(s *Streams) error {
	d, err := cmd.readDelivery(s.In)
	if err != nil {
		return err
	}
	options := client.Options{Retry: cmd.Retry, Progress: terminal.Writer(s.Err), Output: s.Out}
	if cmd.Quiet || cmd.JSON {
		options.Output = nil
	}
	if cmd.Quiet {
		options.Progress = nil
	}
	c, err := cmd.makeClient(s, &cmd.credential, options)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	res, err := c.Call(ctx, cmd.URL, d, cmd.Wait)
	if errors.Is(err, context.Canceled) {
		return cmd.explainInterrupt(res, err)
	}
	if err != nil {
		return err
	}
	return cmd.report(s, res)
}

// readDelivery makes the delivery of the flags.
func (cmd *Call) readDelivery(in io.Reader) (client.Delivery, error) {
	d := client.Delivery{ID: cmd.ID, ContentType: cmd.ContentType, Header: http.Header{}}
	var err error
	if d.Body, err = cmd.readBody(in); err != nil {
		return d, err
	}
	if _, hmac := webhook.Preset(cmd.Scheme); hmac && len(d.Body) == 0 {
		return d, fmt.Errorf("--data is missing, but %s signs only the body: %w", cmd.Scheme, client.ErrUsage)
	}
	for _, f := range cmd.Set {
		d.Header.Add(f.name, f.value)
	}
	return d, nil
}

// explainInterrupt returns the error of a call that was stopped by a signal. The runs go on.
func (cmd *Call) explainInterrupt(res client.Result, err error) error {
	at, parseErr := url.Parse(cmd.URL)
	var ends []string
	for _, h := range append(res.Hooks, client.HookResult{Run: res.Run}) {
		if h.Run.ID != "" && !h.Run.State.Ended() && parseErr == nil {
			ends = append(ends, fmt.Sprintf("sallyport runs cancel %s --server https://%s", terminal.Line(h.Run.ID), at.Host))
		}
	}
	switch len(ends) {
	case 0:
		if res.Run.ID != "" || len(res.Hooks) > 0 {
			return fmt.Errorf("stopped before the output was complete: %w", err)
		}
		return fmt.Errorf("stopped before the server answered; it may have accepted the delivery: %w", err)
	case 1:
		return fmt.Errorf("stopped waiting; the run goes on. To end it: %s: %w", ends[0], err)
	}
	return fmt.Errorf("stopped waiting; the runs go on. To end them: %s: %w", strings.Join(ends, "; "), err)
}

// report prints the result. A replay is an error unless the user gave an id, by which a delivery is repeated on
// purpose: a job that sends the same body each night would otherwise never run again.
func (cmd *Call) report(s *Streams, res client.Result) error {
	if len(res.Hooks) > 0 {
		return cmd.reportHooks(s, res)
	}
	run := res.Run
	if cmd.JSON || !cmd.Wait && !cmd.Quiet {
		if err := printJSON(s.Out, run); err != nil {
			return err
		}
	}
	if res.Replayed {
		_, _ = fmt.Fprintln(s.Err, acceptedBefore)
		if cmd.ID == "" {
			return ExitCode(client.ExitReplayed)
		}
	}
	if !cmd.Wait {
		return nil
	}
	code := client.RunExitCode(run)
	if code == 0 {
		return nil
	}
	_, _ = fmt.Fprintf(terminal.Writer(s.Err), "run %s ended: %s %s\n", run.ID, run.State, formatExit(run))
	return ExitCode(code)
}

const acceptedBefore = "this delivery was accepted before; nothing was started again"

// reportHooks prints what several hooks did with the delivery, and returns the highest of their exit codes. A hook that
// ignored the delivery counts only if all of them did.
func (cmd *Call) reportHooks(s *Streams, res client.Result) error {
	mayRepeat := !res.Replayed || cmd.ID != ""
	allIgnored := !slices.ContainsFunc(res.Hooks, func(h client.HookResult) bool { return !h.Ignored() })
	if cmd.JSON {
		if err := printJSON(s.Out, struct {
			Ignored bool                `json:"ignored,omitempty"`
			Hooks   []client.HookResult `json:"hooks"`
		}{allIgnored, res.Hooks}); err != nil {
			return err
		}
	}
	worst := 0
	for _, h := range res.Hooks {
		code := h.ExitCode(cmd.Wait && mayRepeat)
		counts := allIgnored || !h.Ignored()
		if counts {
			worst = max(worst, code)
		}
		line := terminal.Line(h.Hook) + ": " + describeResult(h)
		switch {
		case !cmd.Wait && !cmd.Quiet && !cmd.JSON:
			_, _ = fmt.Fprintln(s.Out, line)
		case code != 0 && (counts || !cmd.Quiet):
			_, _ = fmt.Fprintln(terminal.Writer(s.Err), line)
		}
	}
	if res.Replayed {
		_, _ = fmt.Fprintln(s.Err, acceptedBefore)
	}
	if !mayRepeat {
		worst = max(worst, client.ExitReplayed)
	}
	if worst == 0 {
		return nil
	}
	return ExitCode(worst)
}

func describeResult(h client.HookResult) string {
	switch {
	case h.Err != nil:
		return h.Err.Error()
	case h.Run.State.Ended():
		return fmt.Sprintf("run %s ended: %s %s", h.Run.ID, h.Run.State, formatExit(h.Run))
	}
	return fmt.Sprintf("run %s is %s", h.Run.ID, h.Run.State)
}

// field is one field of a header.
type field struct{ name, value string }

// headerOwner returns what sets a header that a request has anyhow.
func headerOwner(name string) (owner string, owned bool) {
	switch name {
	case "Content-Type":
		return "--content-type", true
	case "Host":
		return "the URL", true
	case "Content-Length", "Connection", "Transfer-Encoding", "User-Agent":
		return "the program", true
	}
	return "", false
}

// UnmarshalText reads NAME:VALUE, or NAME=VALUE. Its errors do not repeat the value,
// which may be a credential.
func (f *field) UnmarshalText(text []byte) error {
	s := string(text)
	at := strings.IndexAny(s, ":=")
	if at < 1 || !syntax.IsToken(s[:at]) {
		return errors.New("a header is given as NAME:VALUE")
	}
	f.name, f.value = http.CanonicalHeaderKey(s[:at]), strings.TrimSpace(s[at+1:])
	if owner, owned := headerOwner(f.name); owned {
		return fmt.Errorf("the header %s is set by %s", f.name, owner)
	}
	if !client.IsHeaderValue(f.value) {
		return fmt.Errorf("the header %s cannot have this value", f.name)
	}
	return nil
}
