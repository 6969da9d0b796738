package handlers_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/handlers"
	"sallyport/internal/audit"
	"sallyport/internal/client"
	"sallyport/internal/config"
	"sallyport/internal/readiness"
	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process"
	"sallyport/runner/store"
)

// house is a complete server, from the configuration file to the TLS connection, except for the clock, which stands
// still until a test sets it.
type house struct {
	t       *testing.T
	dir     string
	config  *config.Watcher
	runner  *runner.Runner
	audit   *audit.Log
	check   *readiness.Check
	outputs handlers.Outputs
	record  *record
	procs   *commands
	handler *handlers.Handler
	server  *httptest.Server
	log     *testenv.Log
	clock   *clock
}

const (
	goodKey  = "the good caller's key, long enough"
	guestKey = "the guest's key, which is long enough"
	tokenKey = "the key that a CI signs its tokens with"
)

// newHouse serves the hook start, for the callers good (github) and ci (jwt), but not for guest (slack). Its command
// ends at once, or, if there is a file named hold, when that is removed. limits is YAML.
func newHouse(t *testing.T, limits string) *house {
	t.Helper()
	dir := t.TempDir()
	return build(t, dir, fmt.Sprintf(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key, client_ca: certs/ca.pem}
limits: {%s}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
  guest: {hmac: {scheme: slack, keys: [{file: guest}]}}
  ci: {jwt: {issuer: https://ci.example, audience: https://hooks.example.com, keys: [{file: token}]}}
hooks:
  start:
    path: /start
    callers: [good, {caller: ci, may: [start, read, cancel]}]
    when: {query.stage: {exists: false}}
    command: [%q, %q, "{x}"]
    params: {x: {from: query.x, enum: [a, b], default: a}}
    body: {max: 1KiB, timeout: 1m}
  slow:
    path: /slow
    callers: [good]
    command: [/bin/true]
    body: {timeout: 1ms}
  other: {callers: [guest], command: [/bin/true]}
`, limits, dir+"/job.sh", dir))
}

func load(t testing.TB, dir, text string) *config.Watcher {
	t.Helper()
	if _, err := certs.Dev(filepath.Join(dir, "certs"), time.Now(), false); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"good": {goodKey, 0o600}, "guest": {guestKey, 0o600}, "token": {tokenKey, 0o600},
		"job.sh":         {"#!/bin/sh\nwhile [ -e \"$1/hold\" ]; do sleep 0.02; done\n", 0o700},
		"sallyport.yaml": {text, 0o600},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(file.text), file.mode); err != nil {
			t.Fatal(err)
		}
	}
	c, found := config.NewWatcher(filepath.Join(dir, "sallyport.yaml"), config.Env{
		Getenv: func(string) (string, bool) { return "", false },
	}, slog.New(slog.DiscardHandler))
	if c == nil {
		t.Fatal(found)
	}
	return c
}

func build(t *testing.T, dir, text string) *house {
	t.Helper()
	h := &house{t: t, dir: dir, config: load(t, dir, text), log: &testenv.Log{}, clock: &clock{at: time.Now()}}
	log := slog.New(slog.NewJSONHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	procs, err := process.NewLocal(filepath.Join(h.config.Get().State, "runs"), h.config.Hook, log)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), h.config.Get().State, h.clock.now, log)
	if err != nil {
		t.Fatal(err)
	}
	h.record = &record{ConfirmingStore: st}
	if h.audit, err = audit.Open(h.config.Get().Audit, h.clock.now, log); err != nil {
		t.Fatal(err)
	}
	h.outputs = procs.Output
	h.procs = &commands{Processes: procs}
	h.runner = runner.New(audit.Store(h.record, h.audit), h.procs, h.config.Hook, h.clock.now, log)
	h.check = readiness.New(
		log,
		readiness.Part{Name: "store", Probe: st.Probe},
		readiness.Part{Name: "audit", Probe: h.audit.Probe},
		readiness.Part{Name: "supervisor", Probe: func(ctx context.Context) error {
			if !h.runner.Answers(ctx) {
				return errors.New("no answer")
			}
			return nil
		}},
	)
	h.handler = h.newHandler(log)
	h.serve(h.handler)
	t.Cleanup(func() {
		h.releaseCommands()
		h.runner.Drain(context.WithoutCancel(t.Context()))
		if err := errors.Join(h.audit.Close(), st.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", h.log)
		}
	})
	return h
}

// newScribe serves a hook whose command is a script. Its one argument is the folder of the house. Of long outputs 8
// KiB are kept. The clock runs: followers wait for real time, and deadlines must not have passed when they are set.
func newScribe(t *testing.T, script string) *house {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/write.sh", []byte("#!/bin/sh\ncd \"$1\"\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	h := build(t, dir, fmt.Sprintf(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {address: {rate: 1000000/s, burst: 1000000}, caller: {rate: 1000000/s, burst: 1000000}}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
hooks:
  start: {path: /start, callers: [good], command: [%q, %q], busy: {queue: 10}, output: {head: 4KiB, tail: 4KiB}}
`, dir+"/write.sh", dir))
	h.clock.start()
	return h
}

// newHandler returns another handler of the house, which writes to another log.
func (h *house) newHandler(log *slog.Logger) *handlers.Handler {
	return handlers.New(h.config, h.runner, h.outputs, h.audit, h.check, nil, h.clock.now, log)
}

func (h *house) serve(handler http.Handler) {
	h.server = httptest.NewUnstartedServer(handler)
	h.server.TLS = h.config.Get().TLS.Clone()
	h.server.EnableHTTP2 = true
	h.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	h.server.StartTLS()
	h.t.Cleanup(h.server.Close)
}

func (h *house) holdCommands() {
	h.t.Helper()
	if err := os.WriteFile(h.dir+"/hold", nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) releaseCommands() { _ = os.Remove(h.dir + "/hold") }

// startedRuns returns how many commands were started so far.
func (h *house) startedRuns() int { return strings.Count(h.log.String(), `"msg":"run started"`) }

// delivery is one request; its zero value is a POST to /start without a credential.
type delivery struct {
	method, path, body string
	header             http.Header
	cert               *tls.Certificate
	upload             io.Reader // instead of body, with unknown length
	declared           int64     // instead of the length of the body
}

// by signs the body as a caller does, with an id that depends on the body.
func (h *house) by(caller, body string) delivery { return h.signed(caller, "id-"+body, body) }

// asks returns a request of ci for runs, with a token with the given id.
func (h *house) asks(method, path, id string) delivery {
	d := h.signed("ci", id, "")
	d.method, d.path = method, path
	return d
}

func (h *house) signed(caller, id, body string) delivery {
	h.t.Helper()
	var sign client.Signer
	var err error
	switch caller {
	case "good":
		sign, err = client.HMAC("github", []byte(goodKey))
	case "guest":
		sign, err = client.HMAC("slack", []byte(guestKey))
	case "ci":
		sign, err = client.JWT{Alg: "HS256", Issuer: "https://ci.example", Audience: "https://hooks.example.com"}.Signer([]byte(tokenKey))
	default:
		sign, err = client.HMAC("github", []byte("a key of no caller, but long enough"))
	}
	if err != nil {
		h.t.Fatal(err)
	}
	header, err := sign(id, []byte(body), h.clock.now())
	if err != nil {
		h.t.Fatal(err)
	}
	return delivery{body: body, header: header}
}

func (d delivery) to(path string) delivery { d.path = path; return d }

type answer struct {
	status int
	header http.Header
	body   string
	asked  bool // the server asked for the body, which was sent only then
}

// clientTLS returns the TLS configuration of a client of the house.
func (h *house) clientTLS() *tls.Config {
	h.t.Helper()
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(h.dir + "/certs/ca.pem")
	if err != nil || !roots.AppendCertsFromPEM(ca) {
		h.t.Fatal("no CA", err)
	}
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
}

// send sends a delivery on a separate connection. The body is sent only when the server asks for it (RFC 9110
// 10.1.1), which shows whether it was read.
func (h *house) send(d delivery) (answer, error) {
	h.t.Helper()
	conf := h.clientTLS()
	if d.cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.cert, nil }
	}
	transport := &http.Transport{TLSClientConfig: conf, ExpectContinueTimeout: time.Minute}
	defer transport.CloseIdleConnections()
	var a answer
	ctx := httptrace.WithClientTrace(h.t.Context(), &httptrace.ClientTrace{Got100Continue: func() { a.asked = true }})
	var body io.Reader = strings.NewReader(d.body)
	if d.upload != nil {
		body = d.upload
	}
	if d.method == "" {
		d.method = http.MethodPost
	}
	if d.path == "" {
		d.path = "/start"
	}
	req, err := http.NewRequestWithContext(ctx, d.method, h.server.URL+d.path, body)
	if err != nil {
		h.t.Fatal(err)
	}
	if d.header != nil {
		req.Header = d.header.Clone()
		req.Host = d.header.Get("Host")
	}
	if d.declared > 0 {
		req.ContentLength = d.declared
	}
	req.Header.Set("Expect", "100-continue")
	res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	if err != nil {
		return a, err
	}
	defer func() { _ = res.Body.Close() }()
	var text bytes.Buffer
	_, _ = text.ReadFrom(res.Body)
	a.status, a.header, a.body = res.StatusCode, res.Header, text.String()
	return a, nil
}

// get returns a request for a page that its one caller may see.
func (h *house) get(path string) delivery {
	h.t.Helper()
	d := h.by("good", "").to(path)
	d.method = http.MethodGet
	return d
}

// answers sends a delivery and checks the status.
func (h *house) answers(want int, d delivery) answer {
	h.t.Helper()
	a, err := h.send(d)
	if err != nil {
		h.t.Fatal(err)
	}
	if a.status != want {
		h.t.Errorf("%s %s: status %d, want %d: %s", d.method, d.path, a.status, want, a.body)
	}
	return a
}

// starts sends a delivery, waits for the end of its run and checks that it is a new run.
func (h *house) starts(d delivery) answer {
	h.t.Helper()
	before := h.startedRuns()
	d.header = d.header.Clone()
	d.header.Set("Prefer", "wait=60")
	a := h.answers(http.StatusOK, d)
	if a.header.Get("Idempotent-Replayed") != "" || h.startedRuns() != before+1 || !strings.Contains(a.body, `"state":"succeeded"`) {
		h.t.Errorf("not a new run: %v\n%s", a.header, a.body)
	}
	return a
}

// begin starts a run, or queues it.
func (h *house) begin(body string) (run runner.Run) {
	h.t.Helper()
	a, err := h.send(h.by("good", body))
	if err == nil {
		err = json.Unmarshal([]byte(a.body), &run)
	}
	if err != nil || run.ID == "" {
		h.t.Fatal(a, err)
	}
	return run
}

// stands waits until a run is in a state.
func (h *house) stands(run runner.Run, state runner.State) {
	h.t.Helper()
	for now := run; now.State != state; <-time.After(5 * time.Millisecond) {
		var err error
		if now, err = h.runner.Get(h.t.Context(), run.ID); err != nil || now.State.Ended() && now.State != state {
			h.t.Fatal(now, err)
		}
	}
}

// lines returns the log lines of requests.
func (h *house) lines() (lines []map[string]any) {
	h.t.Helper()
	for text := range strings.Lines(h.log.String()) {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			h.t.Fatal(err)
		}
		if line["msg"] == "request" {
			lines = append(lines, line)
		}
	}
	return lines
}

// line returns the log line of the request with this answer, once it is written.
func (h *house) line(a answer) map[string]any {
	h.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 2000 {
		for _, line := range h.lines() {
			if line["request"] == a.header.Get("X-Request-Id") {
				return line
			}
		}
		<-tick.C
	}
	h.t.Fatal("no line in the log for ", a.header)
	return nil
}

// audited returns the audit lines with the decision and, if there is one, the request of like.
func (h *house) audited(like audit.Line) (found []audit.Line) {
	h.t.Helper()
	var text []byte
	for _, folder := range []string{"audit", "audit/refusals"} {
		b, err := os.ReadFile(filepath.Join(h.config.Get().State, folder, "00000000000000000001.jsonl"))
		if err != nil {
			h.t.Fatal(err)
		}
		text = append(text, b...)
		if len(b) > 0 && b[len(b)-1] != '\n' { // the line is being written
			text = append(text[:bytes.LastIndexByte(text, '\n')+1], []byte(nil)...)
		}
	}
	for text := range bytes.Lines(text) {
		var line audit.Line
		if bytes.HasSuffix(text, []byte("\n")) && json.Unmarshal(text, &line) != nil {
			h.t.Fatalf("no JSON: %s", text)
		}
		if line.Decision == like.Decision && (like.Request == "" || line.Request == like.Request) {
			found = append(found, line)
		}
	}
	return found
}

// record is a store that counts its calls, and can be made to fail.
type record struct {
	audit.ConfirmingStore
	gets   atomic.Int64
	broken atomic.Bool
	faulty atomic.Bool // methods that record a request panic
	lists  atomic.Pointer[lists]
}

// panicIf panics like a programming error.
func panicIf(faulty *atomic.Bool) {
	if faulty.Load() {
		none := make([]int, 0)
		none[0]++
	}
}

func (r *record) AdmitIf(
	ctx context.Context, run runner.Run, c runner.Claim, p hook.Policy, in runner.Feed, allow func(runner.Admission) error,
) (runner.Admission, error) {
	panicIf(&r.faulty)
	return r.ConfirmingStore.AdmitIf(ctx, run, c, p, in, allow)
}

func (r *record) Cancel(ctx context.Context, id string) (runner.Run, bool, error) {
	panicIf(&r.faulty)
	return r.ConfirmingStore.Cancel(ctx, id)
}

// commands starts commands, or panics.
type commands struct {
	runner.Processes
	faulty atomic.Bool
}

func (c *commands) Start(o runner.Order) error {
	panicIf(&c.faulty)
	return c.Processes.Start(o)
}

// lists blocks calls of List.
type lists struct{ came, goOn chan struct{} }

// stopLists has every List wait until goOn is called. came receives each.
func (r *record) stopLists() (came <-chan struct{}, goOn func()) {
	l := &lists{make(chan struct{}, 100), make(chan struct{})}
	r.lists.Store(l)
	return l.came, sync.OnceFunc(func() { close(l.goOn) })
}

func (r *record) Get(ctx context.Context, id string) (runner.Run, error) {
	r.gets.Add(1)
	if r.broken.Load() {
		return runner.Run{}, runner.ErrUnavailable
	}
	return r.ConfirmingStore.Get(ctx, id)
}

func (r *record) List(ctx context.Context, f runner.Filter) ([]runner.Run, string, error) {
	if l := r.lists.Load(); l != nil {
		l.came <- struct{}{}
		<-l.goOn
	}
	if r.broken.Load() {
		return nil, "", runner.ErrUnavailable
	}
	return r.ConfirmingStore.List(ctx, f)
}

type clock struct {
	mu sync.Mutex
	at time.Time
	on time.Time // since when the clock runs; zero while it stands still
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.on.IsZero() {
		return c.at
	}
	return c.at.Add(time.Since(c.on))
}

func (c *clock) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = time.Now()
	c.on = c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}
