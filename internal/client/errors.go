package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/terminal"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// The errors of Call, in addition to *Refused.
var (
	// ErrUnreachable means that the server did not answer. The delivery may have arrived, unless the text says "no
	// connection".
	ErrUnreachable = errors.New("cannot reach the server")
	// ErrCertificate means that the server ended the TLS connection because of the client certificate.
	ErrCertificate = errors.New("the server refused the client certificate; its log says why")
	// ErrAnswer means that an answer is not one of a sallyport server.
	ErrAnswer = errors.New("not the answer of a sallyport server")
	// ErrIgnored means that the delivery is valid, but not meant for the hook.
	ErrIgnored = errors.New("nothing was started: the delivery is not meant for this hook")
	// ErrObserved means that the delivery is valid, but the server only observes its caller.
	ErrObserved = errors.New("nothing was started: the server observes this caller")
	// ErrLost means that the run was started, but its end is not known: the server is unreachable, or it had accepted
	// the delivery before and no longer has the run.
	ErrLost = errors.New("the run was started, but its outcome is unknown")

	errNoConnection = errors.New("no connection")
	errBrokenOff    = errors.New("the answer broke off")
)

// classifyNetworkError returns the package's error for one of net/http. It removes the URL from the text: the user
// knows the URL, and its query may hold a token.
func classifyNetworkError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var whole *url.Error
	if errors.As(err, &whole) {
		err = whole.Err
	}
	if refused := certificateAlert(err); refused != nil {
		return refused
	}
	var op *net.OpError
	if errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect") {
		// err is not wrapped: a timeout of the client is not the user's deadline.
		return fmt.Errorf("%w: %w: %v", ErrUnreachable, errNoConnection, err) //nolint:errorlint // as above
	}
	return fmt.Errorf("%w: %v", ErrUnreachable, err) //nolint:errorlint // as above
}

// certificateAlert returns an error that wraps ErrCertificate if err is a TLS alert of the server about the certificate
// of the client (RFC 8446 section 6.2), and nil otherwise. crypto/tls has no type for a received alert.
func certificateAlert(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	// bad, unsupported, revoked, expired and unknown certificate, unknown CA, access denied, certificate required
	for _, alert := range []tls.AlertError{42, 43, 44, 45, 46, 48, 49, 116} {
		if strings.Contains(text, "remote error: "+alert.Error()) {
			return fmt.Errorf("%w (%w)", ErrCertificate, alert)
		}
	}
	return nil
}

// Refused is an answer of the server without a run.
type Refused struct {
	Status    int
	Detail    string   // of the RFC 9457 problem; empty if the answer has none
	Problems  []string // about single parameters
	Run       string   // ID of the run in progress that caused the refusal
	RequestID string   // for a search in the server's logs
	wait      time.Duration
	hooks     []HookResult // what each hook did, if several have the path
}

func (e *Refused) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the server answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	for _, field := range [][2]string{{"run", e.Run}, {"request", e.RequestID}} {
		if field[1] != "" {
			fmt.Fprintf(&b, " [%s %s]", field[0], field[1])
		}
	}
	for _, p := range e.Problems {
		b.WriteString("\n  " + p)
	}
	return b.String()
}

func parseRefusal(resp *http.Response, body []byte, now time.Time) error {
	e := &Refused{
		Status: resp.StatusCode, RequestID: terminal.Line(resp.Header.Get("X-Request-Id")),
		wait: parseRetryAfter(resp.Header.Get("Retry-After"), now),
	}
	if resp.StatusCode < 400 {
		e.Detail = "it points elsewhere, which is not followed"
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == "application/problem+json" {
		e.readProblem(body)
		e.hooks = parseHooks(body)
	}
	return e // without a problem, it may be a page of a proxy, for example; only the status is useful
}

// readProblem reads an RFC 9457 problem.
func (e *Refused) readProblem(body []byte) {
	var p struct {
		Detail string `json:"detail"`
		Run    struct {
			ID string `json:"id"`
		} `json:"run"`
		Problems []hook.ParamProblem `json:"problems"`
	}
	if json.Unmarshal(body, &p) != nil {
		return
	}
	e.Detail, e.Run = terminal.Line(p.Detail), terminal.Line(p.Run.ID)
	for _, one := range p.Problems {
		e.Problems = append(e.Problems, terminal.Line(one.Param+" "+one.Text))
	}
}

func parseRetryAfter(text string, now time.Time) time.Duration {
	wait := busyPause
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		wait = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = at.Sub(now)
	}
	return max(wait, time.Second)
}

// retryAfter reports whether the same request may succeed later, and after which time.
func retryAfter(err error) (time.Duration, bool) {
	var e *Refused
	if errors.As(err, &e) {
		return e.wait, e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable
	}
	if errors.Is(err, errBrokenOff) {
		return pollPause, true
	}
	return busyPause, errors.Is(err, ErrUnreachable)
}

func parseRun(body []byte) (runner.Run, error) {
	var run runner.Run
	if len(body) > maxAnswer {
		return run, fmt.Errorf("%w: it is longer than %d bytes", ErrAnswer, maxAnswer)
	}
	if err := json.Unmarshal(body, &run); err != nil {
		return run, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	var o struct {
		Observed  bool   `json:"observed"`
		Would     string `json:"would"`
		Status    int    `json:"status"`
		Forgotten bool   `json:"forgotten"`
		Ignored   bool   `json:"ignored"`
		Reason    string `json:"reason"`
	}
	if err := json.Unmarshal(body, &o); err == nil && o.Observed {
		return run, fmt.Errorf("%w; it would have been %s (%d)", ErrObserved, terminal.Line(o.Would), o.Status)
	}
	if o.Ignored {
		return run, fmt.Errorf("%w: %s", ErrIgnored, terminal.Line(o.Reason))
	}
	if o.Forgotten {
		return run, fmt.Errorf("%w: it was accepted before, as run %s, which is not kept any more", ErrLost,
			terminal.Line(run.ID))
	}
	if run.ID == "" || run.State == "" {
		return run, fmt.Errorf("%w: it has no run", ErrAnswer)
	}
	return run, nil
}

// The exit codes of the command. They are those of sysexits.h where one fits.
const (
	ExitOK          = 0
	ExitLocal       = 1   // a local error: a file, a key or the configuration
	ExitUsage       = 64  // the command line
	ExitMalformed   = 65  // the server refused what was sent: 400, 413, 422, other 3xx and 4xx, or ignored
	ExitUnreachable = 69  // no answer
	ExitServer      = 70  // the server failed, or the end of the run is not known
	ExitReplayed    = 73  // accepted before, so that nothing was started, and no id was given
	ExitBusy        = 75  // a run is in progress, or there were too many requests: 503, 429
	ExitRefused     = 77  // not authenticated or not allowed: 401, 403, a refused certificate; or only observed
	ExitTimedOut    = 124 // of a run, as with timeout(1), or of the wait for it
	ExitNotStarted  = 126 // the command of the run could not be started, as in shells
	ExitInterrupt   = 130 // stopped by Ctrl-C
)

// ExitCode returns the exit code for an error of this package.
func ExitCode(err error) int {
	var e *Refused
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, ErrUsage):
		return ExitUsage
	case errors.Is(err, ErrLost), errors.Is(err, ErrAnswer):
		return ExitServer
	case errors.Is(err, ErrIgnored):
		return ExitMalformed
	case errors.Is(err, ErrObserved), errors.Is(err, ErrCertificate):
		return ExitRefused
	case errors.As(err, &e):
		return refusalExitCode(e.Status)
	case errors.Is(err, ErrUnreachable):
		return ExitUnreachable
	case errors.Is(err, context.DeadlineExceeded):
		return ExitTimedOut
	case errors.Is(err, context.Canceled):
		return ExitInterrupt
	}
	return ExitLocal
}

func refusalExitCode(status int) int {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return ExitRefused
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return ExitBusy
	case status >= http.StatusInternalServerError:
		return ExitServer
	}
	return ExitMalformed
}

// RunExitCode returns the exit code of the run's command. As in shells, it is 128 plus the number of the signal that
// ended the command. It is 124 if the run timed out, 126 if the command could not be started, and 70 if the server does
// not know how the run ended.
func RunExitCode(run runner.Run) int {
	switch {
	case run.State == runner.TimedOut:
		return ExitTimedOut
	case run.ExitCode != nil:
		return *run.ExitCode
	case run.Signal != "":
		return 128 + int(unix.SignalNum(run.Signal))
	case run.Error != "":
		return ExitNotStarted
	}
	return ExitServer // interrupted: the end of the run is not known
}
