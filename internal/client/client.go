package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"sallyport/internal/httpsurl"
	"sallyport/runner"
)

const (
	maxAnswer   = 1 << 20          // bytes; a run has a few hundred
	dialTime    = 10 * time.Second // for TCP, and again for TLS
	requestTime = 2 * time.Minute  // for a whole request, with its body
	silence     = 15 * time.Second // of a connection before a ping is sent, and again before the connection is closed
	waitTime    = 30               // seconds that one request waits for the end of a run
	pollPause   = time.Second      // between such requests, in case the server answers at once
	busyPause   = 5 * time.Second  // before the next attempt if the server set no time
	alertTime   = 2 * time.Second  // in which a server that refuses the client certificate says so
	patience    = time.Minute      // with a server that does not answer: enough for a restart
)

// Options say how a Client reaches the server and proves its identity.
type Options struct {
	Sign  RequestSigner
	CA    string        // PEM file, trusted instead of the system's roots; none when empty
	Cert  string        // PEM file of the client certificate; none when empty
	Key   string        // PEM file of its key
	Retry time.Duration // how long to retry while the server is busy (429, 503) or not running
	// Progress gets messages for a user that waits, such as the state of a run and the reason of a retry.
	Progress io.Writer
	Output   io.Writer        // gets what the command of a run writes that Call waits for; nil: the output is not read
	Now      func() time.Time // required
}

// Client sends deliveries to one server, by https only. It does not follow redirects: they would pass the credential to
// another address.
type Client struct {
	opt   Options
	http  *http.Client
	tls   *tls.Config
	pause func(context.Context, time.Duration) error
}

// New returns a Client. Its errors are about the files that o names.
func New(o Options) (*Client, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if o.CA != "" {
		data, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("reading the CA: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("reading the CA: %s contains no certificate", o.CA)
		}
	}
	if o.Cert != "" || o.Key != "" {
		pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		// Without this, crypto/tls leaves out a certificate of a CA that the server does not name.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	return &Client{opt: o, pause: waitFor, tls: cfg, http: &http.Client{
		Timeout:       requestTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: dialTime}).DialContext,
			TLSClientConfig:        cfg.Clone(), // http.Transport changes it
			TLSHandshakeTimeout:    dialTime,
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: 64 << 10,
			ResponseHeaderTimeout:  patience,
			// An output that is followed may be silent for hours. TCP does not detect a server that hangs, because the
			// server's kernel still acknowledges. Pings do.
			HTTP2: &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: silence},
		},
	}}, nil
}

// LocalServer is the address that a Client of NewLocal uses for the server.
const LocalServer = "https://localhost"

// Local is a Client for a local administrator, who may also see and pause hooks.
type Local struct{ *Client }

// NewLocal returns a Client that reaches the server of this machine by dial, without TLS and without a credential: only
// a local administrator can open that connection.
func NewLocal(dial func(context.Context) (net.Conn, error)) *Local {
	return &Local{&Client{opt: Options{Progress: io.Discard, Now: time.Now}, pause: waitFor, http: &http.Client{
		Timeout: requestTime,
		Transport: &http.Transport{
			DialTLSContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			MaxResponseHeaderBytes: 64 << 10,
		},
	}}}
}

func waitFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Delivery is the content of a request to a hook.
type Delivery struct {
	ID          string // the same each time the delivery is sent; empty: a random one
	Body        []byte
	ContentType string
	Header      http.Header // additional headers, for example with the event's name; the Signer's headers replace them
}

// Result is the run of a delivery that was accepted.
type Result struct {
	Run      runner.Run
	Replayed bool         // the server had accepted the delivery before, and this is its first run
	Hooks    []HookResult // instead of Run, if several hooks have the path
}

// Call posts a delivery to a hook. If the hook is busy, Call retries for the time in Options.Retry. With wait it
// returns when the run and its further attempts have ended, and until then copies what their commands write to
// Options.Output. A replayed delivery without an ID is not waited for: it started nothing. If ctx ends during the wait,
// the result has the run. If several hooks have the path, the result has the error of each.
//
// An error is a *Refused, or wraps ErrUsage, ErrUnreachable, ErrCertificate, ErrAnswer, ErrIgnored or ErrObserved. It
// wraps ErrLost if a run was started, by this call or by an earlier one with the same delivery, but its end is not
// known. ExitCode returns the exit code for each of them.
func (c *Client) Call(ctx context.Context, address string, d Delivery, wait bool) (Result, error) {
	u, err := parseAddress(address)
	if err != nil {
		return Result{}, err
	}
	named := d.ID != ""
	if !named {
		d.ID = rand.Text()
	}
	a, err := c.sendDelivery(ctx, u, d)
	var refused *Refused
	if errors.As(err, &refused) && len(refused.hooks) > 0 { // others may have started a run
		a, err = &answer{hooks: refused.hooks}, nil
	}
	if err != nil {
		return Result{}, err
	}
	r := Result{Run: a.run, Replayed: a.header.Get("Idempotent-Replayed") == "true", Hooks: a.hooks}
	if !wait || r.Replayed && !named {
		return r, nil
	}
	if len(r.Hooks) > 0 {
		return r, c.followHooks(ctx, u, r.Hooks, d)
	}
	r.Run, err = c.followRun(ctx, u, a.header.Get("Location"), a.run, d)
	return r, err
}

// sendDelivery sends the delivery until it is accepted, or refused with an error that a retry does not change, or the
// time is over. It does not retry after a connection that broke during the request: if the server cannot recognize a
// repeated delivery, the command might start twice.
func (c *Client) sendDelivery(ctx context.Context, u *url.URL, d Delivery) (*answer, error) {
	until := c.opt.Now().Add(c.opt.Retry)
	for {
		a, err := c.sendForRun(ctx, http.MethodPost, u, d)
		if err == nil {
			return a, nil
		}
		wait, again := retryAfter(err)
		left := until.Sub(c.opt.Now())
		if !again || errors.Is(err, ErrUnreachable) && !errors.Is(err, errNoConnection) || left <= 0 {
			return nil, err
		}
		wait = min(wait, left) // a last attempt at the end of the time: the run may end before
		_, _ = fmt.Fprintf(c.opt.Progress, "%v; sending again in %s\n", err, wait.Round(time.Second))
		if err := c.pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// followRun follows a run at this location until it and its further attempts have ended, and returns the last attempt.
func (c *Client) followRun(
	ctx context.Context, u *url.URL, location string, run runner.Run, d Delivery,
) (runner.Run, error) {
	if run.State.Ended() && run.Again == "" && c.opt.Output == nil {
		return run, nil
	}
	_, _ = fmt.Fprintf(c.opt.Progress, "run %s is %s\n", run.ID, run.State)
	run, err := c.followAttempt(ctx, u, location, run, d)
	for err == nil && run.Again != "" {
		_, _ = fmt.Fprintf(c.opt.Progress, "run %s %s; its next attempt is run %s\n", run.ID, run.State, run.Again)
		run, err = c.followAttempt(ctx, u, runPath(run.Again), runner.Run{ID: run.Again, State: runner.Queued}, d)
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: following run %s: %w", ErrLost, run.ID, err)
	}
	return run, err
}

// followAttempt copies the output of one run and polls the run until it has ended. It continues after restarts of the
// server.
func (c *Client) followAttempt(
	ctx context.Context, u *url.URL, location string, known runner.Run, d Delivery,
) (runner.Run, error) {
	at, err := u.Parse(location)
	if err != nil || at.Scheme != u.Scheme || at.Host != u.Host || at.Path == u.Path {
		return known, fmt.Errorf("%w: its Location is not a run on this server", ErrAnswer)
	}
	// Each poll is a separate request with an empty body, and its signature covers that body. It has the content type
	// of the delivery, because some schemes are verified only with that. It also has the delivery's headers, one of
	// which may be the credential.
	poll := Delivery{ContentType: d.ContentType, Header: http.Header{}}
	maps.Copy(poll.Header, d.Header)
	prefer := "wait=" + strconv.Itoa(waitTime) // RFC 7240 section 4.3
	if c.opt.Output == nil {
		poll.Header.Set("Prefer", prefer)
	} else if err := c.copyRunOutput(ctx, at, poll); err != nil {
		return known, err
	} // else the run has ended: an answer that waits would be about its last attempt, not about the next one
	var out outage
	for !known.State.Ended() {
		poll.ID = rand.Text()
		now, err := c.sendForRun(ctx, http.MethodGet, at, poll)
		if err == nil {
			known, out = now.run, outage{}
			if known.State.Ended() {
				break
			}
			poll.Header.Set("Prefer", prefer)
			err = c.pause(ctx, pollPause)
		} else {
			err = c.waitOutOutage(ctx, err, &out)
		}
		if err != nil {
			return known, err
		}
	}
	return known, nil
}

// copyRunOutput follows the output of the run at this address with requests like ask. A run without an output, or one
// that the caller may not read, is not an error.
func (c *Client) copyRunOutput(ctx context.Context, at *url.URL, ask Delivery) error {
	from := *at
	from.Path, from.RawPath, from.RawQuery = at.Path+"/output", "", "follow"
	f := follower{Client: c, to: c.opt.Output, open: func(off int64) (*http.Response, error) {
		part := Delivery{ID: rand.Text(), ContentType: ask.ContentType, Header: ask.Header.Clone()}
		part.Header.Set("Range", fmt.Sprintf("bytes=%d-", off))
		return c.sendRequest(ctx, c.withoutTimeout(), http.MethodGet, &from, part)
	}}
	err := f.copyOutput(ctx)
	var refused *Refused
	if errors.As(err, &refused) {
		_, _ = fmt.Fprintf(c.opt.Progress, "the output cannot be followed: %v\n", err)
		return nil
	}
	return err
}

// outage is a period in which a server does not answer as it should. It begins with the first failure.
type outage struct{ since time.Time }

// waitOutOutage waits until the client may ask the server again. It returns the error if a retry cannot help, or if the
// outage has lasted too long.
func (c *Client) waitOutOutage(ctx context.Context, err error, out *outage) error {
	if out.since.IsZero() {
		out.since = c.opt.Now()
	}
	wait, again := retryAfter(err)
	if !again || c.opt.Now().Sub(out.since) > max(patience, c.opt.Retry) {
		return err
	}
	_, _ = fmt.Fprintf(c.opt.Progress, "%v; asking again in %s\n", err, wait.Round(time.Second))
	return c.pause(ctx, wait)
}

type answer struct {
	header http.Header
	run    runner.Run
	hooks  []HookResult // instead of run
}

// parseAddress checks the address of a hook or a server.
func parseAddress(address string) (*url.URL, error) {
	u, err := httpsurl.Parse(address)
	switch {
	case err == nil:
		return u, nil
	case u == nil: // the address may be a credential, given by mistake, so the message does not repeat it
		return nil, fmt.Errorf("the address %w: %w", err, ErrUsage)
	case errors.Is(err, httpsurl.ErrUserInfo):
		return nil, fmt.Errorf("the address https://%s %w: write https://host/path: %w", u.Host, err, ErrUsage)
	}
	u.RawQuery = ""
	return nil, fmt.Errorf("%q %w: %w", u, err, ErrUsage)
}

// sendForRun sends one request, and returns the run in the answer, or those of several hooks.
func (c *Client) sendForRun(ctx context.Context, method string, u *url.URL, d Delivery) (*answer, error) {
	resp, err := c.sendRequest(ctx, c.http, method, u, d)
	if err != nil {
		return nil, err
	}
	body, err := readAnswer(ctx, resp, maxAnswer+1)
	if err != nil {
		return nil, err
	}
	a := &answer{header: resp.Header}
	if method == http.MethodPost {
		a.hooks = parseHooks(body)
	}
	if len(a.hooks) == 0 {
		a.run, err = parseRun(body)
	}
	return a, err
}

// sendRequest signs a request with the current time and sends it. It returns an answer with a 2xx status. The caller
// reads the body of the answer.
func (c *Client) sendRequest(
	ctx context.Context, by *http.Client, method string, u *url.URL, d Delivery,
) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(d.Body))
	if err != nil {
		return nil, err
	}
	if method == http.MethodPost { // not as long as the hook says: Call polls the run itself
		req.Header.Set("Prefer", "wait=0")
	}
	maps.Copy(req.Header, d.Header)
	if d.ContentType != "" {
		req.Header.Set("Content-Type", d.ContentType)
	}
	req.Header.Set("User-Agent", "sallyport")
	if c.opt.Sign != nil {
		signed, err := c.opt.Sign(req, d.ID, d.Body, c.opt.Now())
		if err != nil {
			return nil, err
		}
		for name := range signed {
			if d.Header[name] != nil {
				return nil, fmt.Errorf("the header %s is made by the scheme and cannot be given: %w", name, ErrUsage)
			}
		}
		maps.Copy(req.Header, signed)
	}
	resp, err := by.Do(req)
	if err != nil {
		return nil, c.findCertificateAlert(ctx, u, classifyNetworkError(ctx, err))
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	body, err := readAnswer(ctx, resp, maxAnswer)
	if err != nil {
		return nil, err
	}
	return nil, parseRefusal(resp, body, c.opt.Now())
}

// findCertificateAlert returns ErrCertificate if err is a connection that broke because the server refused the client
// certificate. In TLS 1.3 the server does that after the client's handshake, so its alert can be lost when the client
// writes a request at that time. This connection only reads.
func (c *Client) findCertificateAlert(ctx context.Context, u *url.URL, err error) error {
	if c.opt.Cert == "" || !errors.Is(err, ErrUnreachable) || errors.Is(err, errNoConnection) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, dialErr := (&tls.Dialer{Config: c.tls}).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(),
		cmp.Or(u.Port(), "443")))
	if dialErr != nil {
		return cmp.Or(certificateAlert(dialErr), err)
	}
	defer conn.Close() //nolint:errcheck // only read
	_ = conn.SetReadDeadline(time.Now().Add(alertTime))
	_, readErr := conn.Read(make([]byte, 1))
	return cmp.Or(certificateAlert(readErr), err)
}

// readAnswer reads up to limit bytes, and closes the body.
func readAnswer(ctx context.Context, resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return nil, classifyNetworkError(ctx, err)
	}
	return body, nil
}
