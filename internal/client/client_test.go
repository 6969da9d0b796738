package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/client"
	"sallyport/internal/diag"
	"sallyport/runner"
)

// clock is a clock that a wait sets forward, without waiting.
type clock struct {
	now   time.Time
	waits []time.Duration
}

func (c *clock) pause(ctx context.Context, d time.Duration) error {
	c.waits = append(c.waits, d)
	c.now = c.now.Add(d)
	return ctx.Err()
}

// seen is one request as the server received it.
type seen struct{ line, id, prefer, kind, body string }

// gate is a server on real TLS that answers by a script, one step per request. The last step is repeated.
type gate struct {
	url    string
	dir    string // of the development certificates
	mu     sync.Mutex
	steps  []http.HandlerFunc
	got    []seen
	server *httptest.Server
}

func newGate(t *testing.T, steps ...http.HandlerFunc) *gate {
	t.Helper()
	g := &gate{dir: t.TempDir(), steps: steps}
	cfg := g.config(t)
	g.server = httptest.NewUnstartedServer(g)
	g.server.TLS, g.server.EnableHTTP2 = cfg, true
	g.server.Config.ErrorLog = log.New(io.Discard, "", 0) // expected errors of handshakes
	g.server.StartTLS()
	t.Cleanup(g.server.Close)
	g.url = g.server.URL + "/start"
	return g
}

// config makes the certificates, and returns the TLS configuration of the server.
func (g *gate) config(t *testing.T) *tls.Config {
	t.Helper()
	if _, err := certs.Dev(g.dir, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	var p diag.List
	spec := certs.Spec{Cert: "server.pem", Key: "server.key", ClientCA: "ca.pem"}
	cfg, _ := certs.Load(spec, g.dir, time.Now(), &p)
	cfg = certs.LoadClients(spec, certs.Named{}, g.dir, time.Now(), nil, &p).AddTo(cfg)
	if cfg == nil {
		t.Fatal(p.All())
	}
	return cfg
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	g.mu.Lock()
	g.got = append(g.got, seen{r.Method + " " + r.URL.Path, r.Header.Get("X-Id"), r.Header.Get("Prefer"), r.Header.Get("Content-Type"), string(body)})
	step := g.steps[0]
	if len(g.steps) > 1 {
		g.steps = g.steps[1:]
	}
	g.mu.Unlock()
	step(w, r)
}

func (g *gate) requestLines() (lines []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.got {
		lines = append(lines, s.line)
	}
	return lines
}

// client returns a client that trusts the gate, marks each request with its delivery's id, and does not really wait.
func (g *gate) client(t *testing.T, o client.Options) (*client.Client, *clock) {
	t.Helper()
	k := &clock{now: time.Unix(1_800_000_000, 0)}
	o.Now = func() time.Time { return k.now }
	if o.CA == "" {
		o.CA = filepath.Join(g.dir, "ca.pem")
	}
	if o.Sign == nil {
		o.Sign = func(_ *http.Request, id string, _ []byte, _ time.Time) (http.Header, error) {
			return http.Header{"X-Id": {id}}, nil
		}
	}
	c := must(client.New(o))(t)
	c.SetPause(k.pause)
	return c, k
}

func answerRun(rest string) http.HandlerFunc { return answerRunAt("/runs/r1", rest) }

func answerRunAt(location, rest string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", location)
		_, _ = fmt.Fprintf(w, `{"id":"r1","hook":"start",%s}`, rest)
	}
}

func answerRefusal(status int, retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"detail":"No.","request_id":"q1"}`)
	}
}

// breakOff answers with a connection that breaks.
func breakOff(http.ResponseWriter, *http.Request) {
	panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to break a connection
}

func wantEqual[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

const (
	running   = `"state":"running"`
	succeeded = `"state":"succeeded","exit_code":0`
)

func TestCall_SendsBody(t *testing.T) {
	g := newGate(t, answerRun(running))
	c, _ := g.client(t, client.Options{})
	r, err := c.Call(t.Context(), g.url, client.Delivery{ID: "d1", Body: []byte("{}"), ContentType: "application/json"}, false)
	if err != nil || r.Run.ID != "r1" || r.Run.State != runner.Running || r.Replayed {
		t.Fatal(r, err)
	}
	wantEqual(t, "requests", g.got, []seen{{"POST /start", "d1", "wait=0", "application/json", "{}"}})
}

func TestCall_Replay(t *testing.T) {
	g := newGate(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Idempotent-Replayed", "true")
		answerRun(`"state":"failed","exit_code":3`)(w, r)
	})
	c, _ := g.client(t, client.Options{})
	r, err := c.Call(t.Context(), g.url, client.Delivery{}, true)
	if err != nil || !r.Replayed || client.RunExitCode(r.Run) != 3 {
		t.Fatal(r, err)
	}
	wantEqual(t, "requests", g.requestLines(), []string{"POST /start"})
}

func TestWait_UntilTheEnd(t *testing.T) {
	g := newGate(t, answerRun(`"state":"queued"`), answerRun(running), answerRun(`"state":"failed","exit_code":7`))
	c, k := g.client(t, client.Options{})
	r, err := c.Call(t.Context(), g.url, client.Delivery{ID: "d1", Body: []byte("{}"), ContentType: "application/json"}, true)
	if err != nil || client.RunExitCode(r.Run) != 7 {
		t.Fatal(r, err)
	}
	wantEqual(t, "requests", g.requestLines(), []string{"POST /start", "GET /runs/r1", "GET /runs/r1"})
	wantEqual(t, "waits", k.waits, []time.Duration{time.Second}) // not at once: that would flood a server
	ids := map[string]bool{}
	for i, s := range g.got {
		ids[s.id] = true
		if i > 0 && (s.prefer != "wait=30" || s.body != "" || s.kind != "application/json") {
			t.Errorf("asked with %+v", s)
		}
	}
	if len(ids) != 3 {
		t.Errorf("requests share an id, and would be replays: %+v", g.got)
	}
}

// TestWait_NextAttempts follows a failed run to its last attempt, and copies the output of each.
func TestWait_NextAttempts(t *testing.T) {
	const first = `"state":"failed","exit_code":7,"retried_as":"r2"`
	write := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-*/*")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, text)
		}
	}
	var out strings.Builder
	g := newGate(t, answerRun(running), write("one\n"), answerRun(first), write("two\n"), answerRun(succeeded))
	c, _ := g.client(t, client.Options{Output: &out})
	r, err := c.Call(t.Context(), g.url, client.Delivery{}, true)
	if err != nil || client.RunExitCode(r.Run) != 0 || out.String() != "one\ntwo\n" {
		t.Fatal(r, err, out.String())
	}
	wantEqual(t, "requests", g.requestLines(),
		[]string{"POST /start", "GET /runs/r1/output", "GET /runs/r1", "GET /runs/r2/output", "GET /runs/r2"})
	if g.got[2].prefer != "" {
		t.Error("the answer about the first attempt would be about the last one")
	}

	g = newGate(t, answerRun(first), answerRun(succeeded)) // an ended run that the server did not wait for
	c, _ = g.client(t, client.Options{})
	if r, err = c.Call(t.Context(), g.url, client.Delivery{}, true); err != nil || client.RunExitCode(r.Run) != 0 {
		t.Fatal(r, err)
	}
	wantEqual(t, "requests", g.requestLines(), []string{"POST /start", "GET /runs/r2"})
}

func answerHooks(status int, kind, list string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"hooks":[%s]}`, list)
	}
}

// TestHooks_EachIsFollowed follows the runs of a path of several hooks, although one is busy and one run is lost.
func TestHooks_EachIsFollowed(t *testing.T) {
	g := newGate(t, answerHooks(503, "application/problem+json", `
		{"hook":"a","status":200,"answer":{"id":"r1","state":"running"}},
		{"hook":"b","status":200,"answer":{"ignored":true,"hook":"b","reason":"no"}},
		{"hook":"c","status":503,"answer":{"detail":"Busy.","run":{"id":"r9"}}},
		{"hook":"d","status":202,"answer":{"id":"r2","state":"queued"}}`),
		answerRefusal(404, ""), answerRun(`"state":"failed","exit_code":3`))
	c, _ := g.client(t, client.Options{})
	r, err := c.Call(t.Context(), g.url, client.Delivery{}, true)
	if err != nil || len(r.Hooks) != 4 {
		t.Fatal(r, err)
	}
	wantEqual(t, "requests", g.requestLines(), []string{"POST /start", "GET /runs/r1", "GET /runs/r2"})
	var codes []int
	for _, h := range r.Hooks {
		codes = append(codes, h.ExitCode(true))
	}
	wantEqual(t, "exit codes", codes, []int{client.ExitServer, client.ExitMalformed, client.ExitBusy, 3})
	if h := r.Hooks; !h[1].Ignored() || !strings.Contains(h[2].Err.Error(), "Busy. [run r9]") ||
		!errors.Is(h[0].Err, client.ErrLost) || !strings.Contains(string(h[3].Answer), `"state":"failed"`) {
		t.Errorf("%+v", h)
	}
}

// TestHooks_BusyIsRetried sends the delivery again while one of the hooks is busy.
func TestHooks_BusyIsRetried(t *testing.T) {
	g := newGate(t, answerHooks(503, "application/problem+json", `{"hook":"a","status":503,"answer":{}}`),
		answerHooks(200, "application/json", `{"hook":"a","status":200,"answer":{"id":"r1","state":"running"}}`))
	c, _ := g.client(t, client.Options{Retry: time.Minute})
	r, err := c.Call(t.Context(), g.url, client.Delivery{}, false)
	if err != nil || len(r.Hooks) != 1 || r.Hooks[0].Run.ID != "r1" || r.Hooks[0].ExitCode(false) != 0 {
		t.Fatal(r, err)
	}
	wantEqual(t, "requests", g.requestLines(), []string{"POST /start", "POST /start"})
}

func TestWait_ServerRestart(t *testing.T) {
	g := newGate(t, answerRun(running), breakOff, answerRefusal(503, "2"), answerRefusal(429, ""), answerRun(succeeded))
	c, k := g.client(t, client.Options{})
	r, err := c.Call(t.Context(), g.url, client.Delivery{}, true)
	if err != nil || client.RunExitCode(r.Run) != 0 {
		t.Fatal(r, err)
	}
	wantEqual(t, "waits", k.waits, []time.Duration{5 * time.Second, 2 * time.Second, 5 * time.Second})
}

func TestWait_ServerStaysAway(t *testing.T) {
	g := newGate(t, answerRun(running), breakOff)
	c, k := g.client(t, client.Options{})
	start := k.now
	_, err := c.Call(t.Context(), g.url, client.Delivery{}, true)
	if !errors.Is(err, client.ErrLost) || client.ExitCode(err) != client.ExitServer || !strings.Contains(err.Error(), "following run r1") {
		t.Fatal(err)
	}
	if away := k.now.Sub(start); away < time.Minute || away > 2*time.Minute {
		t.Errorf("gave up after %v", away)
	}
}

func TestWait_RunCannotBeFollowed(t *testing.T) {
	for name, step := range map[string]http.HandlerFunc{"refused": answerRefusal(401, ""), "forgotten": answerRefusal(404, "")} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, answerRun(running), step)
			c, _ := g.client(t, client.Options{})
			_, err := c.Call(t.Context(), g.url, client.Delivery{}, true)
			if !errors.Is(err, client.ErrLost) || client.ExitCode(err) != client.ExitServer {
				t.Error(err)
			}
			wantEqual(t, "requests", g.requestLines(), []string{"POST /start", "GET /runs/r1"})
		})
	}
}

func TestCredential_OtherServer(t *testing.T) {
	other := newGate(t, answerRun(succeeded))
	for name, step := range map[string]http.HandlerFunc{
		"Location elsewhere":    answerRunAt(other.server.URL+"/runs/r1", running),
		"Location in plaintext": answerRunAt("http://127.0.0.1/runs/r1", running),
		"no Location":           answerRunAt("", running),
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, step)
			c, _ := g.client(t, client.Options{})
			if _, err := c.Call(t.Context(), g.url, client.Delivery{}, true); !errors.Is(err, client.ErrAnswer) || !errors.Is(err, client.ErrLost) {
				t.Error(err)
			}
			wantEqual(t, "requests", g.requestLines(), []string{"POST /start"})
		})
	}
	g := newGate(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.url, http.StatusTemporaryRedirect)
	})
	c, _ := g.client(t, client.Options{})
	if _, err := c.Call(t.Context(), g.url, client.Delivery{}, true); client.ExitCode(err) != client.ExitMalformed {
		t.Error(err)
	}
	wantEqual(t, "requests elsewhere", other.requestLines(), nil)
}

func TestRetry_SameDelivery(t *testing.T) {
	g := newGate(t, answerRefusal(503, "7"), answerRefusal(429, "Fri, 15 Jan 2027 08:00:18 GMT"), answerRefusal(503, ""), answerRefusal(503, "0"), answerRun(running))
	c, k := g.client(t, client.Options{Retry: time.Minute})
	if _, err := c.Call(t.Context(), g.url, client.Delivery{Body: []byte("x")}, false); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "waits", k.waits, []time.Duration{7 * time.Second, 11 * time.Second, 5 * time.Second, time.Second})
	for _, s := range g.got {
		if s != g.got[0] || s.id == "" || s.body != "x" {
			t.Errorf("sent %+v after %+v", s, g.got[0])
		}
	}
}

func TestRetry_EndsInTime(t *testing.T) {
	g := newGate(t, answerRefusal(503, "40"))
	var progress strings.Builder
	c, k := g.client(t, client.Options{Retry: time.Minute, Progress: &progress})
	_, err := c.Call(t.Context(), g.url, client.Delivery{}, false)
	if client.ExitCode(err) != client.ExitBusy {
		t.Fatal(err)
	}
	wantEqual(t, "waits", k.waits, []time.Duration{40 * time.Second, 20 * time.Second})
	if !strings.Contains(progress.String(), "503 Service Unavailable: No.; sending again in 40s\n") {
		t.Errorf("progress was %q", progress.String())
	}
}

func TestRetry_FinalRefusal(t *testing.T) {
	for name, row := range map[string]struct {
		step http.HandlerFunc
		code int
	}{
		"unauthorized":           {answerRefusal(401, "1"), client.ExitRefused},
		"forbidden":              {answerRefusal(403, ""), client.ExitRefused},
		"malformed":              {answerRefusal(400, ""), client.ExitMalformed},
		"not there":              {answerRefusal(404, ""), client.ExitMalformed},
		"parameters":             {answerRefusal(422, ""), client.ExitMalformed},
		"server failed":          {answerRefusal(500, ""), client.ExitServer},
		"may have arrived":       {breakOff, client.ExitUnreachable},
		"not a run":              {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, client.ExitServer},
		"another service's JSON": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"ok":true}`) }, client.ExitServer},
		"an answer without end": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat(" ", 1<<20)+`{"id":"r1","state":"running"}`)
		}, client.ExitServer},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, row.step)
			c, _ := g.client(t, client.Options{Retry: time.Hour})
			_, err := c.Call(t.Context(), g.url, client.Delivery{Body: []byte("x")}, true)
			if got := client.ExitCode(err); got != row.code {
				t.Errorf("exit code %d, want %d: %v", got, row.code, err)
			}
			wantEqual(t, "requests", g.requestLines(), []string{"POST /start"})
		})
	}
}

func TestRetry_Off(t *testing.T) {
	g := newGate(t, answerRefusal(503, "1"))
	c, _ := g.client(t, client.Options{})
	if _, err := c.Call(t.Context(), g.url, client.Delivery{}, false); client.ExitCode(err) != client.ExitBusy {
		t.Error(err)
	}
	wantEqual(t, "requests", g.requestLines(), []string{"POST /start"})
}

func TestRetry_ServerNotUpYet(t *testing.T) {
	g := newGate(t, answerRun(running))
	g.server.Close()
	c, k := g.client(t, client.Options{Retry: 8 * time.Second})
	_, err := c.Call(t.Context(), g.url, client.Delivery{}, false)
	if client.ExitCode(err) != client.ExitUnreachable || !strings.HasPrefix(err.Error(), "cannot reach the server: no connection: dial tcp ") {
		t.Error(err)
	}
	wantEqual(t, "waits", k.waits, []time.Duration{5 * time.Second, 3 * time.Second})
}

func TestRefused_Text(t *testing.T) {
	g := newGate(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.Header().Set("X-Request-Id", "q1")
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"detail":"Not allowed.\u001b[2J","run":{"id":"r0"},"problems":[{"param":"date","problem":"is missing"},{"param":"region","problem":"is not one of eu, us"}]}`)
	})
	c, _ := g.client(t, client.Options{})
	_, err := c.Call(t.Context(), g.url, client.Delivery{}, false)
	want := "the server answered 422 Unprocessable Entity: Not allowed.\ufffd[2J [run r0] [request q1]\n  date is missing\n  region is not one of eu, us"
	if err == nil || err.Error() != want {
		t.Errorf("got  %q\nwant %q", err, want)
	}
}

func TestAddress_HTTPSOnly(t *testing.T) {
	g := newGate(t, answerRun(running))
	c, _ := g.client(t, client.Options{})
	for _, address := range []string{"http" + strings.TrimPrefix(g.url, "https"), "localhost:8443/start", "https:///start", "https://me:pw@localhost/", "::"} {
		if _, err := c.Call(t.Context(), address, client.Delivery{}, false); client.ExitCode(err) != client.ExitUsage {
			t.Errorf("%s: %v", address, err)
		}
	}
	wantEqual(t, "requests", g.requestLines(), nil)
}

func TestTLS_UnknownCA(t *testing.T) {
	g, other := newGate(t, answerRun(running)), newGate(t, answerRun(running))
	c, _ := g.client(t, client.Options{CA: filepath.Join(other.dir, "ca.pem"), Retry: time.Hour})
	_, err := c.Call(t.Context(), g.url, client.Delivery{}, false)
	if client.ExitCode(err) != client.ExitUnreachable || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Error(err)
	}
	wantEqual(t, "requests", g.requestLines(), nil)
}

func TestTLS_NoTLS12(t *testing.T) {
	g := newGate(t, answerRun(running))
	old := httptest.NewUnstartedServer(g)
	old.TLS = g.server.TLS.Clone()
	old.TLS.MinVersion, old.TLS.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	old.Config.ErrorLog = log.New(io.Discard, "", 0)
	old.StartTLS()
	defer old.Close()
	c, _ := g.client(t, client.Options{})
	if _, err := c.Call(t.Context(), old.URL+"/start", client.Delivery{}, false); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Error(err)
	}
	wantEqual(t, "requests", g.requestLines(), nil)
}

func TestTLS_ClientCertificate(t *testing.T) {
	g := newGate(t, func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 || r.TLS.PeerCertificates[0].URIs[0].String() != "spiffe://localhost/dev" || r.ProtoMajor != 2 {
			answerRefusal(401, "")(w, r)
			return
		}
		answerRun(running)(w, r)
	})
	c, _ := g.client(t, client.Options{Cert: filepath.Join(g.dir, "client.pem"), Key: filepath.Join(g.dir, "client.key")})
	if _, err := c.Call(t.Context(), g.url, client.Delivery{}, false); err != nil {
		t.Error(err)
	}
	c, _ = g.client(t, client.Options{})
	if _, err := c.Call(t.Context(), g.url, client.Delivery{}, false); client.ExitCode(err) != client.ExitRefused {
		t.Error(err)
	}
}

func TestNew_UnusableFiles(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]client.Options{
		"no CA file":               {CA: empty + "x"},
		"a CA file without a CA":   {CA: empty},
		"a certificate, no key":    {Cert: empty},
		"a key, no certificate":    {Key: empty},
		"an empty pair":            {Cert: empty, Key: empty},
		"a pair that is not there": {Cert: empty + "x", Key: empty + "y"},
	} {
		if _, err := client.New(o); client.ExitCode(err) != client.ExitLocal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCall_Interrupted(t *testing.T) {
	for name, row := range map[string]struct {
		cause error
		code  int
	}{"time over": {context.DeadlineExceeded, client.ExitTimedOut}, "interrupted": {context.Canceled, client.ExitInterrupt}} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			if errors.Is(row.cause, context.DeadlineExceeded) {
				ctx, cancel = context.WithDeadline(t.Context(), time.Now())
			}
			defer cancel()
			g := newGate(t, answerRun(running), func(_ http.ResponseWriter, r *http.Request) {
				cancel()
				<-r.Context().Done()
			})
			c, _ := g.client(t, client.Options{})
			_, err := c.Call(ctx, g.url, client.Delivery{}, true)
			if !errors.Is(err, row.cause) || client.ExitCode(err) != row.code {
				t.Errorf("%d: %v", client.ExitCode(err), err)
			}
		})
	}
}

func TestRunExitCode_OfCommand(t *testing.T) {
	three := 3
	for want, r := range map[int]runner.Run{
		3:   {State: runner.Failed, End: runner.End{ExitCode: &three}},
		143: {State: runner.Cancelled, End: runner.End{Signal: "SIGTERM"}},
		137: {State: runner.Failed, End: runner.End{Signal: "SIGKILL"}},
		124: {State: runner.TimedOut, End: runner.End{Signal: "SIGKILL"}},
		126: {State: runner.Failed, End: runner.End{Error: "permission denied"}},
		70:  {State: runner.Interrupted},
	} {
		if got := client.RunExitCode(r); got != want {
			t.Errorf("%+v: got %d, want %d", r, got, want)
		}
	}
}
