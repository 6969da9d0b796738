package client

import (
	"bytes"
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
	maxAnswer   = 1 << 20          // bytes; a run is a few hundred
	dialTime    = 10 * time.Second // each of TCP and TLS
	requestTime = 2 * time.Minute  // for a whole request, with its body
	silence     = 15 * time.Second // of a connection, before it is asked for a sign of life, and then for that
	waitTime    = 30               // seconds that one request waits for the end of a run
	pollPause   = time.Second      // between such requests, should the server answer at once
	busyPause   = 5 * time.Second  // before the next try where the server named no time
	patience    = time.Minute      // with a server that does not answer, a restart's worth
)

// Options say how a Client reaches the server and proves who it is.
type Options struct {
	Sign  RequestSigner
	CA    string        // PEM file, trusted instead of the system's roots; none when empty
	Cert  string        // PEM file of the client certificate; none when empty
	Key   string        // PEM file of its key
	Retry time.Duration // how long to send again to a server that is busy (429, 503) or not up
	// Progress is told what a person who waits wants to know; nil is nobody.
	Progress io.Writer
	Now      func() time.Time // needed
}

// Client sends deliveries to one server, by https alone. It follows no
// redirects: they would carry the credential to wherever they point.
type Client struct {
	opt   Options
	http  *http.Client
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
			return nil, fmt.Errorf("reading the CA: %s holds no certificate", o.CA)
		}
	}
	if o.Cert != "" || o.Key != "" {
		pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	return &Client{opt: o, pause: waitFor, http: &http.Client{
		Timeout:       requestTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: dialTime}).DialContext,
			TLSClientConfig:        cfg,
			TLSHandshakeTimeout:    dialTime,
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: 64 << 10,
			ResponseHeaderTimeout:  patience,
			// An output that is followed may be silent for hours. That a server hangs
			// meanwhile does not show in TCP, whose other end is its kernel.
			HTTP2: &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: silence},
		},
	}}, nil
}

// LocalServer is what a Client of NewLocal calls the server.
const LocalServer = "https://localhost"

// NewLocal returns a Client that reaches the server of this machine by dial, without TLS and
// without a credential: whoever can open that connection is a local administrator.
func NewLocal(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{opt: Options{Progress: io.Discard, Now: time.Now}, pause: waitFor, http: &http.Client{
		Timeout: requestTime,
		Transport: &http.Transport{
			DialTLSContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			MaxResponseHeaderBytes: 64 << 10,
		},
	}}
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

// Delivery is what is sent.
type Delivery struct {
	ID          string // the same each time it is sent; a random one when empty
	Body        []byte
	ContentType string
	Header      http.Header // more of them, as an event's name; the Signer's own win
}

// Result is what became of a delivery that was accepted.
type Result struct {
	Run      runner.Run
	Replayed bool // the server had it already, and this is the first run
}

// Call posts a delivery to a hook, and to one that is busy again and again for
// as long as Options.Retry says. With wait it returns when the run has ended.
// Errors are a *Refused, or wrap ErrUsage, ErrUnreachable, ErrAnswer, ErrObserved
// or, once a run was started, now or by the same delivery before, ErrLost;
// ExitCode knows them.
func (c *Client) Call(ctx context.Context, address string, d Delivery, wait bool) (Result, error) {
	u, err := parseAddress(address)
	if err != nil {
		return Result{}, err
	}
	if d.ID == "" {
		d.ID = rand.Text()
	}
	a, err := c.sendDelivery(ctx, u, d)
	if err != nil {
		return Result{}, err
	}
	r := Result{Run: a.run, Replayed: a.header.Get("Idempotent-Replayed") == "true"}
	if !wait || r.Run.State.Ended() {
		return r, nil
	}
	if r.Run, err = c.followRun(ctx, u, a, d); err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: following run %s: %w", ErrLost, a.run.ID, err)
	}
	return r, err
}

// sendDelivery sends the delivery until it is accepted, refused for good, or the time
// for it is over. Sent again after a connection that broke half-way, it might
// start twice where the server has nothing to know it by; so it is not.
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
		wait = min(wait, left) // a last try when the time is over: runs end early, too
		_, _ = fmt.Fprintf(c.opt.Progress, "%v; sending again in %s\n", err, wait.Round(time.Second))
		if err := c.pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// followRun asks for the run until it has ended, through restarts of the server.
func (c *Client) followRun(ctx context.Context, u *url.URL, a *answer, d Delivery) (runner.Run, error) {
	at, err := u.Parse(a.header.Get("Location"))
	if err != nil || at.Scheme != u.Scheme || at.Host != u.Host || at.Path == u.Path {
		return a.run, fmt.Errorf("%w: there is no Location of the run on this server", ErrAnswer)
	}
	_, _ = fmt.Fprintf(c.opt.Progress, "run %s is %s\n", a.run.ID, a.run.State)
	// A request of its own, with its own signature over no body. The content
	// type stays: some schemes are verified with that of the deliveries only.
	// So do the headers of its own, one of which may be the credential.
	poll := Delivery{ContentType: d.ContentType, Header: http.Header{}}
	maps.Copy(poll.Header, d.Header)
	poll.Header.Set("Prefer", "wait="+strconv.Itoa(waitTime)) // RFC 7240 section 4.3
	known := a.run
	var out outage
	for {
		poll.ID = rand.Text()
		now, err := c.sendForRun(ctx, http.MethodGet, at, poll)
		switch {
		case err == nil && now.run.State.Ended():
			return now.run, nil
		case err == nil:
			known, out = now.run, outage{}
			err = c.pause(ctx, pollPause)
		default:
			err = c.waitOutOutage(ctx, err, &out)
		}
		if err != nil {
			return known, err
		}
	}
}

// outage is a server that does not do what it is asked, since its first failure.
type outage struct{ since time.Time }

// waitOutOutage waits until a server may be asked again about a run, or returns the
// error if it will not do better, or has not for too long.
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
}

// parseAddress checks the address of a hook or a server.
func parseAddress(address string) (*url.URL, error) {
	u, err := httpsurl.Parse(address)
	switch {
	case err == nil:
		return u, nil
	case u == nil: // the address may be a credential in the wrong place, so it is not repeated
		return nil, fmt.Errorf("the address %w: %w", err, ErrUsage)
	case errors.Is(err, httpsurl.ErrUserInfo):
		return nil, fmt.Errorf("the address https://%s %w: write https://host/path: %w", u.Host, err, ErrUsage)
	}
	u.RawQuery = ""
	return nil, fmt.Errorf("%q %w: %w", u, err, ErrUsage)
}

// sendForRun sends one request, and reads the run that it is answered with.
func (c *Client) sendForRun(ctx context.Context, method string, u *url.URL, d Delivery) (*answer, error) {
	resp, err := c.sendRequest(ctx, c.http, method, u, d)
	if err != nil {
		return nil, err
	}
	body, err := readAnswer(ctx, resp, maxAnswer+1)
	if err != nil {
		return nil, err
	}
	run, err := parseRun(body)
	return &answer{resp.Header, run}, err
}

// sendRequest sends one request, signed as of now, and returns an answer that is no
// refusal, with its body still to be read.
func (c *Client) sendRequest(ctx context.Context, by *http.Client, method string, u *url.URL, d Delivery) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(d.Body))
	if err != nil {
		return nil, err
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
		maps.Copy(req.Header, signed)
	}
	resp, err := by.Do(req)
	if err != nil {
		return nil, classifyNetworkError(ctx, err)
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

// readAnswer reads up to limit bytes, and lets go of the answer.
func readAnswer(ctx context.Context, resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return nil, classifyNetworkError(ctx, err)
	}
	return body, nil
}
