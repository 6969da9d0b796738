package app

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"sallyport/handlers"
	"sallyport/internal/cli"
	"sallyport/internal/client"
	"sallyport/internal/config"
	"sallyport/internal/deliveries"
	"sallyport/internal/terminal"
	"sallyport/runner/store"
)

type tryCmd struct {
	Config   string    `short:"c" default:"sallyport.yaml" help:"Configuration file."`
	File     string    `short:"f" placeholder:"FILE" help:"The delivery, as the text of an HTTP request; - for stdin." xor:"request"`
	FromLog  string    `placeholder:"REQUEST" help:"Instead of a file: the delivery that the server kept of a request, by its id in the log." xor:"request"`
	Path     string    `help:"Instead of a file: path of the delivery, with its query." xor:"request"`
	Set      []string  `short:"H" sep:"none" placeholder:"NAME:VALUE" help:"Header, as in curl. Repeatable."`
	Data     string    `short:"d" help:"Body." xor:"body"`
	DataFile string    `placeholder:"FILE" help:"Body, from a file; - for stdin." xor:"body"`
	Address  string    `help:"Address of the client, for callers with networks (from)."`
	At       time.Time `placeholder:"TIME" help:"Judge the delivery at this time, 2026-11-30T00:00:00Z. Default: now; with --from-log, when it arrived."`
}

// Run prints what the server would do with a delivery, step by step.
func (cmd *tryCmd) Run(s *cli.Streams) error {
	ctx := context.Background()
	c, found := loadToRead(cmd.Config)
	if c == nil {
		printDiagnostics(found, s.Err)
		return cli.ExitCode(1)
	}
	r, body, err := cmd.readDelivery(ctx, s, c)
	if err != nil {
		return fmt.Errorf("%w: %w", err, client.ErrUsage)
	}
	if cmd.At.IsZero() {
		cmd.At = time.Now()
	}
	var history handlers.History
	st, unread := store.OpenRead(ctx, c.State)
	if unread == nil {
		history = st
		defer func() { _ = st.Close() }() // only read
	}
	e := handlers.Explain(ctx, c, r, body, cmd.At, history, unread)
	for _, step := range e.Steps {
		lines := strings.Split(step.Text, "\n")
		for i, line := range lines {
			name := step.Name + ":"
			if i > 0 {
				name = ""
			}
			_, _ = fmt.Fprintf(s.Out, "%-22s %s\n", name, terminal.Line(line))
		}
	}
	return explainedExit(e)
}

// explainedExit returns the error with the exit code that "call" would have.
func explainedExit(e *handlers.Explanation) error {
	switch {
	case e.Starts && e.Observed:
		return cli.ExitCode(client.ExitRefused)
	case e.Starts:
		return nil
	case e.Status < http.StatusBadRequest: // ignored, a handshake, or a replay
		return cli.ExitCode(client.ExitMalformed)
	}
	return cli.ExitCode(client.ExitCode(&client.Refused{Status: e.Status}))
}

// readDelivery returns the delivery of the flags.
func (cmd *tryCmd) readDelivery(ctx context.Context, s *cli.Streams, c *config.Config) (*http.Request, []byte, error) {
	body, err := []byte(cmd.Data), error(nil)
	if cmd.DataFile != "" {
		body, err = cli.ReadInput(cmd.DataFile, s.In)
	}
	if err != nil {
		return nil, nil, err
	}
	var r *http.Request
	switch {
	case cmd.Path == "" && len(body) > 0:
		return nil, nil, errors.New("--data and --data-file are for --path")
	case cmd.FromLog != "":
		if r, body, err = cmd.readKept(ctx, c); err != nil {
			return nil, nil, err
		}
	case cmd.File != "":
		text, err := cli.ReadInput(cmd.File, s.In)
		if err != nil {
			return nil, nil, err
		}
		if r, body, err = parseRequest(text); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", cmd.File, err)
		}
	case !strings.HasPrefix(cmd.Path, "/"):
		return nil, nil, errors.New("write -f FILE, --from-log REQUEST, or --path /PATH with the path of the hook")
	default:
		r, err = http.NewRequestWithContext(ctx, http.MethodPost, cmd.Path, http.NoBody)
		if err != nil {
			return nil, nil, errors.New("--path is not the path of a URL")
		}
	}
	r.RemoteAddr = net.JoinHostPort(cmd.Address, "0")
	if _, err := netip.ParseAddr(cmd.Address); cmd.Address != "" && err != nil {
		return nil, nil, errors.New("--address is not an IP address")
	}
	for _, field := range cmd.Set {
		name, value, ok := strings.Cut(field, ":")
		if !ok || name == "" {
			return nil, nil, errors.New("-H needs NAME:VALUE")
		}
		if strings.EqualFold(name, "Host") {
			r.Host = strings.TrimSpace(value)
			continue
		}
		r.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return r, body, nil
}

// readKept returns the delivery that the server kept of a request. It is judged for the address from which it came, at
// the time when it arrived, unless flags say otherwise.
func (cmd *tryCmd) readKept(ctx context.Context, c *config.Config) (*http.Request, []byte, error) {
	d, err := deliveries.Read(c.State, cmd.FromLog)
	if errors.Is(err, deliveries.ErrNotKept) && c.Keep == 0 {
		err = fmt.Errorf("%w: keep_deliveries is not set", err)
	}
	if err != nil {
		return nil, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, d.Method, d.URL, http.NoBody)
	if err != nil {
		return nil, nil, err
	}
	r.Host, r.Header = d.Host, d.Header
	if cmd.Address == "" {
		cmd.Address = d.Address
	}
	if cmd.At.IsZero() {
		cmd.At = d.At
	}
	return r, d.Body, nil
}

// laterVersion matches a request line with a version of HTTP whose requests have no such text.
var laterVersion = regexp.MustCompile(`\A(\S+ \S+) HTTP/[23](\.0)?`)

// parseRequest parses the text of a request. If it does not say how long its body is, the rest of the text is the body.
func parseRequest(text []byte) (*http.Request, []byte, error) {
	text = laterVersion.ReplaceAll(text, []byte("$1 HTTP/1.1"))
	from := bufio.NewReader(bytes.NewReader(text))
	r, err := http.ReadRequest(from)
	if err != nil {
		return nil, nil, fmt.Errorf("this is not the text of an HTTP request: %w", err)
	}
	if r.Header.Get("Content-Length") == "" && len(r.TransferEncoding) == 0 {
		body, err := io.ReadAll(from)
		return r, body, err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("the body is shorter than its Content-Length says, or not whole: %w", err)
	}
	if rest, _ := io.ReadAll(from); len(bytes.TrimSpace(rest)) > 0 { // of a text in memory
		return nil, nil, errors.New("the body is longer than its Content-Length says")
	}
	return r, body, nil
}
