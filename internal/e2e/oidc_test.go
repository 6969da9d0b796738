package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/internal/testenv"
)

// TestOpenIDProviders uses tokens of real OpenID providers. A proxy of the test stands between the providers and the
// server. It counts the requests, and sends answers that a provider never should.
func TestOpenIDProviders(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "node", "internal/e2e/testdata/oidc/node_modules/.package-lock.json")
	o := newProviders(t)
	for _, name := range []string{"good", "rotated", "flooded", "poisoned", "redirected", "slow", "huge"} {
		o.issuers[name] = o.address + "/" + name
		o.publish(t, name, name+"-1")
	}
	dead := freeTCPPort(t)
	o.issuers["dead"] = "https://localhost:" + dead + "/dead"
	o.publish(t, "dead", "dead-1")
	var written atomic.Int64
	o.misbehave("redirected", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, o.issuers["good"]+"/jwks", http.StatusFound)
	})
	o.misbehave("slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	o.misbehave("huge", func(w http.ResponseWriter, _ *http.Request) {
		for block := bytes.Repeat([]byte(" "), 1<<20); written.Load() < 1<<30; {
			n, err := w.Write(block)
			if written.Add(int64(n)); err != nil {
				return
			}
		}
	})
	o.serve(t)

	for name, f := range map[string]func(*testing.T){
		"a job's token starts a run, and no other":                       o.testGood,
		"a new key is good at once or soon, and a withdrawn one no more": o.testRotation,
		"a flood of forged tokens does not reach the provider":           o.testFlood,
		"a poisoned set verifies by its good keys":                       o.testPoison,
		"a redirect is not followed":                                     o.testRecovery("redirected", "redirects are not followed"),
		"a provider that does not answer is given up":                    o.testRecovery("slow", "deadline exceeded"),
		"a set without end is given up":                                  o.testRecovery("huge", "more than 1048576 bytes"),
		"a provider that starts late is used":                            o.testDead(dead),
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); f(t) })
	}
	t.Cleanup(func() {
		t.Logf("sent at most %d bytes of an endless key set in %d fetches", written.Load(), o.countRequests("/huge/jwks"))
		if written.Load() > int64(o.countRequests("/huge/jwks"))*(16<<20) { // includes the buffers of the kernel
			t.Errorf("the server read %d bytes of an endless key set", written.Load())
		}
	})
}

// providers are the OpenID providers, with the proxy of the test before them.
type providers struct {
	dir, url string // of the server
	address  string // of the proxy
	issuers  map[string]string
	roots    *x509.CertPool
	front    http.Handler
	server   *exec.Cmd
	evil     *rsa.PrivateKey // a key of no provider

	mu      sync.Mutex
	orders  *json.Encoder // to provider.mjs
	answers *bufio.Scanner
	asked   map[string]int              // requests to the proxy, by path
	instead map[string]http.HandlerFunc // replaces a provider's key set, by name
}

func newProviders(t *testing.T) *providers {
	t.Helper()
	o := &providers{
		dir: t.TempDir(), issuers: map[string]string{},
		asked: map[string]int{}, instead: map[string]http.HandlerFunc{},
	}
	if out, err := program(t, o.dir, "certs", "dev").CombinedOutput(); err != nil {
		t.Fatalf("making certificates: %v\n%s", err, out)
	}
	o.roots = roots(t, o.dir+"/certs/ca.pem")

	cmd := exec.CommandContext(t.Context(), "node", "internal/e2e/testdata/oidc/provider.mjs", o.dir+"/certs/server.pem", o.dir+"/certs/server.key")
	in, err := cmd.StdinPipe()
	mustSucceed(t, err)
	out, err := cmd.StdoutPipe()
	mustSucceed(t, err)
	cmd.Stderr = os.Stderr
	mustSucceed(t, cmd.Start())
	t.Cleanup(func() {
		mustSucceed(t, in.Close())
		_ = cmd.Wait() // it ends when its input does
	})
	o.orders, o.answers = json.NewEncoder(in), bufio.NewScanner(out)
	if !o.answers.Scan() {
		t.Fatal("the provider does not start")
	}
	o.evil, err = rsa.GenerateKey(rand.Reader, 2048)
	mustSucceed(t, err)
	behind, err := url.Parse("https://localhost:" + o.answers.Text())
	mustSucceed(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(behind); r.SetXForwarded() },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: o.roots, MinVersion: tls.VersionTLS13}},

		ModifyResponse: o.poison,
	}
	o.front = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, path, _ := strings.Cut(r.URL.Path[1:], "/")
		o.mu.Lock()
		o.asked[r.URL.Path]++
		instead := o.instead[name]
		o.mu.Unlock()
		if instead != nil && path == "jwks" {
			instead(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	})
	o.address = o.listen(t, "0")
	return o
}

// listen lets the proxy listen on a port.
func (o *providers) listen(t *testing.T, port string) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(o.dir+"/certs/server.pem", o.dir+"/certs/server.key")
	mustSucceed(t, err)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "localhost:"+port)
	mustSucceed(t, err)
	srv := &http.Server{
		Handler: o.front, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13},
	}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { mustSucceed(t, srv.Close()) })
	_, port, err = net.SplitHostPort(l.Addr().String())
	mustSucceed(t, err)
	return "https://localhost:" + port
}

// publish makes a provider publish the keys of these kids and sign with the first one.
func (o *providers) publish(t *testing.T, name string, kids ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	mustSucceed(t, o.orders.Encode(map[string]any{"issuer": o.issuers[name], "keys": kids}))
	if !o.answers.Scan() {
		t.Fatal("the provider has ended")
	}
}

func (o *providers) misbehave(name string, how http.HandlerFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.instead[name] = how
}

// countRequests returns how often the proxy was asked for a path.
func (o *providers) countRequests(path string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[path]
}

// serve starts the server with a caller and a hook for each issuer.
func (o *providers) serve(t *testing.T) {
	t.Helper()
	var callers, hooks strings.Builder
	for name, issuer := range o.issuers {
		_, _ = fmt.Fprintf(&callers, "  %s: {jwt: {preset: gitlab-ci, issuer: %q, ca: certs/ca.pem, audience: %q, claims: {project_id: \"1234\", ref: main}}}\n", name, issuer, audience)
		_, _ = fmt.Fprintf(&hooks, "  %s: {path: /%s, callers: [%s], command: [/bin/true], busy: {queue: 100}}\n", name, name, name)
	}
	config := fmt.Sprintf(`listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {address: {rate: 1000/s, burst: 1000}, failures: {rate: 1000/s, burst: 1000}, caller: {rate: 1000/s, burst: 1000}}
callers:
%shooks:
%s`, &callers, &hooks)
	mustSucceed(t, os.WriteFile(o.dir+"/sallyport.yaml", []byte(config), 0o600))
	if out, err := program(t, o.dir, "check", "--config", "sallyport.yaml").CombinedOutput(); err != nil || strings.Contains(string(out), "warning") {
		t.Fatalf("check: %v\n%s", err, out)
	}
	for name := range o.issuers {
		if o.countRequests("/"+name+"/.well-known/openid-configuration") > 0 {
			t.Fatal("the check of a file sent a request to a provider")
		}
	}
	o.server = program(t, o.dir, "serve", "--config", "sallyport.yaml")
	o.url = startListening(t, o.dir, o.server)
}

// requestToken requests a token from a provider, as its client.
func (o *providers) requestToken(t *testing.T, name, scope, audience string) string {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {scope}, "resource": {audience}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, o.address+"/"+name+"/token", strings.NewReader(form.Encode()))
	mustSucceed(t, err)
	req.SetBasicAuth("job", "secret")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: o.roots, MinVersion: tls.VersionTLS13}, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	mustSucceed(t, err)
	defer func() { mustSucceed(t, res.Body.Close()) }()
	var answer struct {
		Token string `json:"access_token"`
		Error string `json:"error_description"`
	}
	mustSucceed(t, json.NewDecoder(res.Body).Decode(&answer))
	if answer.Token == "" {
		t.Fatalf("%s did not issue a token: %s", name, answer.Error)
	}
	return answer.Token
}

func (o *providers) requestGoodToken(t *testing.T, name string) string {
	t.Helper()
	return o.requestToken(t, name, "main", audience)
}

const refused = 77 // the exit code of a call

// callHook sends a token to an issuer's hook with "sallyport call", and returns its exit code.
func (o *providers) callHook(t *testing.T, name, token string) (int, string) {
	t.Helper()
	file := filepath.Join(o.dir, rand.Text())
	mustSucceed(t, os.WriteFile(file, []byte(token), 0o600))
	defer func() { mustSucceed(t, os.Remove(file)) }()
	cmd := program(t, o.dir, "call", "--ca", "certs/ca.pem", "--scheme", "token", "--key-file", file, o.url+"/"+name)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func (o *providers) checkAccepted(t *testing.T, name, token string) {
	t.Helper()
	if code, out := o.callHook(t, name, token); code != 0 || !strings.Contains(out, `"caller": "`+name+`"`) {
		t.Errorf("%s: exit code %d, want a run\n%s", name, code, out)
	}
}

func (o *providers) checkRefused(t *testing.T, why, name, token string) {
	t.Helper()
	if code, out := o.callHook(t, name, token); code != refused {
		t.Errorf("%s: exit code %d, want %d\n%s", why, code, refused, out)
	}
}

// awaitAccepted sends new tokens until one is accepted, and returns how long that took.
func (o *providers) awaitAccepted(t *testing.T, name string) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for time.Since(start) < 2*time.Minute {
		code, out := o.callHook(t, name, o.requestGoodToken(t, name))
		switch code {
		case 0:
			return time.Since(start)
		case refused:
			<-tick.C
		default:
			t.Fatalf("%s: exit code %d\n%s", name, code, out)
		}
	}
	t.Fatalf("%s is never accepted", name)
	return 0
}

func (o *providers) readLog(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(o.dir, "log"))
	mustSucceed(t, err)
	return string(text)
}

// awaitLogLine waits for a line of the log that contains all the parts.
func (o *providers) awaitLogLine(t *testing.T, parts ...string) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 1200 {
	lines:
		for line := range strings.Lines(o.readLog(t)) {
			for _, part := range parts {
				if !strings.Contains(line, part) {
					continue lines
				}
			}
			return
		}
		<-tick.C
	}
	t.Errorf("no line of the log has %q", parts)
}

func (o *providers) testGood(t *testing.T) {
	t.Helper()
	o.checkAccepted(t, "good", o.requestGoodToken(t, "good"))
	o.checkRefused(t, "another audience", "good", o.requestToken(t, "good", "main", "https://other.example.com"))
	o.checkRefused(t, "another claim", "good", o.requestToken(t, "good", "dev", audience))
	token := o.requestGoodToken(t, "good")
	o.checkRefused(t, "a changed signature", "good", flipCharacter(token))
	if code, out := o.callHook(t, "flooded", token); code != refused { // a caller, but not of this hook
		t.Errorf("another hook: exit code %d\n%s", code, out)
	}
	// A reload keeps the fetched keys.
	before := o.countRequests("/good/jwks")
	mustSucceed(t, o.server.Process.Signal(syscall.SIGHUP))
	o.awaitLogLine(t, `"msg":"reloaded"`)
	o.checkAccepted(t, "good", token)
	if n := o.countRequests("/good/jwks"); n != before {
		t.Errorf("a reload fetched the keys %d times", n-before)
	}
}

func (o *providers) testRotation(t *testing.T) {
	t.Helper()
	const name = "rotated"
	spare := []string{o.requestGoodToken(t, name), o.requestGoodToken(t, name)}
	o.checkAccepted(t, name, o.requestGoodToken(t, name))
	o.publish(t, name, "rotated-2", "rotated-1")
	t.Logf("the first new key worked after %s", o.awaitAccepted(t, name))
	o.checkAccepted(t, name, spare[0])
	second := o.requestGoodToken(t, name)
	o.publish(t, name, "rotated-3")
	t.Logf("the second new key, right after it, worked after %s", o.awaitAccepted(t, name))
	o.checkRefused(t, "the first key is withdrawn", name, spare[1])
	o.checkRefused(t, "the second key is withdrawn", name, second)
	t.Logf("%d fetches in all", o.countRequests("/rotated/jwks"))
}

func (o *providers) testFlood(t *testing.T) {
	t.Helper()
	const name, many = "flooded", 60
	o.checkAccepted(t, name, o.requestGoodToken(t, name))
	before := o.countRequests("/flooded/jwks")
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: o.roots, MinVersion: tls.VersionTLS13}, MaxConnsPerHost: 60}
	defer transport.CloseIdleConnections()
	start := time.Now()
	var wg sync.WaitGroup
	for range many {
		raw := o.forgeToken(t, name, rand.Text(), jwt.SigningMethodRS256, o.evil)
		wg.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, o.url+"/"+name, http.NoBody)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+raw)
			res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = res.Body.Close() }()
			if res.StatusCode != http.StatusUnauthorized {
				t.Errorf("status %d for a forged token", res.StatusCode)
			}
		})
	}
	wg.Wait()
	n := o.countRequests("/flooded/jwks") - before
	t.Logf("%d forged tokens in %s led to %d fetches", many, time.Since(start), n)
	if n > 3 {
		t.Errorf("%d fetches", n)
	}
	o.checkAccepted(t, name, o.requestGoodToken(t, name))
}

// poison adds keys to a provider's set that must never verify a token, one of them with the kid of the good key.
func (o *providers) poison(res *http.Response) error {
	if res.Request.URL.Path != "/poisoned/jwks" {
		return nil
	}
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	if err := json.NewDecoder(res.Body).Decode(&set); err != nil {
		return err
	}
	encode := base64.RawURLEncoding.EncodeToString
	secret := encode([]byte(published))
	set.Keys = append(set.Keys,
		map[string]any{"kty": "oct", "kid": "poisoned-1", "k": secret},
		map[string]any{"kty": "oct", "kid": "secret", "alg": "HS256", "k": secret},
		map[string]any{"kty": "RSA", "kid": "enc", "use": "enc", "n": encode(o.evil.N.Bytes()), "e": "AQAB"},
		map[string]any{"kty": "RSA", "kid": "ops", "key_ops": []string{"encrypt"}, "n": encode(o.evil.N.Bytes()), "e": "AQAB"},
		map[string]any{"kty": "RSA", "kid": "private", "n": encode(o.evil.N.Bytes()), "e": "AQAB", "d": encode(o.evil.D.Bytes())},
		map[string]any{"kty": "RSA", "kid": "x5u", "x5u": o.address + "/poisoned/x5u"},
	)
	text, err := json.Marshal(set)
	res.Body = io.NopCloser(bytes.NewReader(text))
	res.ContentLength = int64(len(text))
	res.Header.Set("Content-Length", strconv.Itoa(len(text)))
	return err
}

const published = "a secret that the provider's set tells everybody"

func (o *providers) testPoison(t *testing.T) {
	t.Helper()
	const name = "poisoned"
	o.checkAccepted(t, name, o.requestGoodToken(t, name))
	o.awaitLogLine(t, `"level":"WARN","msg":"keys fetched"`, `"keys":["poisoned-1"]`, "is a secret or private key")
	for _, kid := range []string{"poisoned-1", "secret"} {
		o.checkRefused(t, "a secret that is published, as "+kid, name, o.forgeToken(t, name, kid, jwt.SigningMethodHS256, []byte(published)))
	}
	for _, kid := range []string{"poisoned-1", "enc", "ops", "private"} {
		o.checkRefused(t, "a key for something else, as "+kid, name, o.forgeToken(t, name, kid, jwt.SigningMethodRS256, o.evil))
	}
	if n := o.countRequests("/poisoned/x5u"); n > 0 {
		t.Errorf("the addresses in the key set were fetched %d times", n)
	}
}

// forgeToken returns a good token that is signed with another key.
func (o *providers) forgeToken(t *testing.T, name, kid string, method jwt.SigningMethod, key any) string {
	t.Helper()
	now := time.Now()
	token := jwt.NewWithClaims(method, jwt.MapClaims{
		"iss": o.issuers[name], "aud": audience, "project_id": "1234", "ref": "main",
		"jti": rand.Text(), "iat": now.Unix(), "exp": now.Unix() + 300,
	})
	token.Header["kid"] = kid
	raw, err := token.SignedString(key)
	mustSucceed(t, err)
	return raw
}

// testRecovery checks that tokens of an issuer are refused while its keys cannot be fetched, that the log says why, and
// that they are accepted once it answers properly.
func (o *providers) testRecovery(name, why string) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		o.checkRefused(t, "while it misbehaves", name, o.requestGoodToken(t, name))
		o.awaitLogLine(t, `"level":"WARN"`, `"msg":"keys not fetched"`, `"issuer":"`+o.issuers[name]+`"`, why)
		o.misbehave(name, nil)
		t.Logf("accepted %s after the issuer answered properly again", o.awaitAccepted(t, name))
	}
}

func (o *providers) testDead(port string) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		o.checkRefused(t, "while it is dead", "dead", o.requestGoodToken(t, "dead"))
		o.awaitLogLine(t, `"msg":"keys not fetched"`, `"issuer":"`+o.issuers["dead"]+`"`, "connection refused")
		o.listen(t, port)
		t.Logf("accepted %s after the issuer started", o.awaitAccepted(t, "dead"))
	}
}
