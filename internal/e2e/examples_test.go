package e2e_test

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth"
	"sallyport/auth/webhook"
	"sallyport/certs"
	"sallyport/internal/client"
	"sallyport/internal/config"
)

// sent is the delivery of an example's sender. Everything else, such as its credential, comes from the example.
type sent struct {
	path   string
	body   string
	header map[string]string
	claims map[string]any // in addition to those that the example requires
}

func exampleDeliveries() map[string]sent {
	const commit = exampleCommit
	return map[string]sent{
		"alertmanager.yaml": {
			path: "/hooks/remedy",
			body: `{"version":"4","status":"firing","receiver":"sallyport","groupLabels":{"alertname":"QueueStuck"},` +
				`"commonLabels":{"alertname":"QueueStuck","service":"mail-out"},"alerts":[]}`,
		},
		"ci-jwt.yaml": {path: "/hooks/release", claims: map[string]any{"sha": commit, "actor": "octocat"}},
		"gitea.yaml": {
			path:   "/hooks/build",
			body:   `{"ref":"refs/heads/main","after":"` + commit + `","total_commits":1,"repository":{"id":1,"full_name":"example/app"}}`,
			header: map[string]string{"X-Gitea-Event": "push", "X-Gitea-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958"},
		},
		"github.yaml": {
			path:   "/hooks/build",
			body:   `{"ref":"refs/heads/main","after":"` + commit + `","deleted":false,"repository":{"id":1,"full_name":"example/app"}}`,
			header: map[string]string{"X-GitHub-Event": "push", "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958"},
		},
		"gitlab.yaml": {
			path:   "/hooks/deploy",
			body:   `{"object_kind":"tag_push","ref":"refs/tags/v1.2.3","checkout_sha":"` + commit + `","project_id":15}`,
			header: map[string]string{"X-Gitlab-Event": "Tag Push Hook"},
		},
		"issuers.yaml":           {path: "/hooks/load", body: `{"region":"eu"}`},
		"mtls.yaml":              {path: "/hooks/report?region=us", body: `{"date":"2026-11-23"}`, header: map[string]string{"Idempotency-Key": "2026-11-23-us"}},
		"sallyport.yaml":         {path: "/start", body: `{"seconds":0}`},
		"signature.yaml":         {path: "/hooks/load", body: `{"table":"orders"}`},
		"standard-webhooks.yaml": {path: "/hooks/import", body: `{"type":"contact.created","timestamp":"2026-11-23T20:26:10Z","data":{"id":1}}`},
	}
}

// TestExamples_Deliveries copies each example next to new keys and certificates, and sends a delivery of each of its
// callers.
func TestExamples_Deliveries(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("examples/*")
	mustSucceed(t, err)
	deliveries := exampleDeliveries()
	var names []string
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && !info.IsDir() { // make run creates the folder of secrets
			names = append(names, filepath.Base(file))
		}
	}
	if want := slices.Sorted(maps.Keys(deliveries)); !slices.Equal(names, want) {
		t.Fatalf("examples are %v, and this test knows what is sent to %v", names, want)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := copyExampleTo(t, name)
			e.serve(t, name)
			e.test(t)
		})
	}
}

// example is a copy of an example that a test serves.
type example struct {
	sent

	dir     string
	url     string
	roots   *x509.CertPool
	signers map[string]client.Signer    // by caller
	certs   map[string]*tls.Certificate // by caller
}

// copyExample copies the example, lets it listen on any port, and creates the files that it names.
func (e *example) copyExample(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("examples", name))
	mustSucceed(t, err)
	var f config.File
	mustSucceed(t, yaml.Unmarshal(text, &f))
	dir := filepath.Join(e.dir, "examples")
	mustSucceed(t, os.Mkdir(dir, 0o755))
	pki := filepath.Join(dir, filepath.Dir(f.TLS.Cert))
	_, err = certs.Dev(pki, time.Now(), false)
	mustSucceed(t, err)
	e.roots = roots(t, filepath.Join(pki, "ca.pem"))
	text = e.createCredentials(t, text, f.Callers, dir, pki)
	listen := regexp.MustCompile(`(?m)^listen: .*$`)
	if len(listen.FindAll(text, -1)) != 1 {
		t.Fatal("there is no one line with listen")
	}
	mustSucceed(t, os.WriteFile(filepath.Join(dir, name), listen.ReplaceAll(text, []byte(`listen: "localhost:0"`)), 0o644))
}

// createCredentials creates the files that callers name, and their signers. It returns the text with the addresses of the
// issuers that the test starts.
func (e *example) createCredentials(t *testing.T, text []byte, callers map[string]*config.CallerSpec, dir, pki string) []byte {
	t.Helper()
	for name, caller := range callers {
		if caller.JWT != nil { // the test is its issuer, at its own address
			var lines string
			e.signers[name], lines = e.startIssuer(t, pki, caller.JWT)
			block := regexp.MustCompile(`(?m)(^  ` + name + `:\n    jwt:\n      preset: .*\n)(?:      issuer: .*\n)?`)
			text = block.ReplaceAll(text, []byte("${1}"+lines))
		}
		var err error
		switch {
		case caller.HMAC != nil:
			e.signers[name], err = client.HMAC(caller.HMAC.Scheme, writeHMACKeys(t, dir, caller.HMAC))
		case caller.Signature != nil:
			e.signers[name] = e.newRequestSigner(t, dir, caller.Signature)
		case caller.Token != nil:
			token := string(writeSecrets(t, dir, caller.Token.Keys))
			if caller.Token.Header == "" {
				token = "Bearer " + token
			}
			e.signers[name], err = client.Static(cmp.Or(caller.Token.Header, "Authorization"), token)
		case caller.MTLS != nil:
			var pair tls.Certificate
			pair, err = tls.LoadX509KeyPair(filepath.Join(pki, "client.pem"), filepath.Join(pki, "client.key"))
			e.certs[name] = &pair
		}
		mustSucceed(t, err)
	}
	return text
}

// roots returns the certificates in a file.
func roots(t testing.TB, file string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(file)
	mustSucceed(t, err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		t.Fatalf("%s does not contain a certificate", file)
	}
	return pool
}

// exampleHost is the host name in the requests of the examples' senders.
const exampleHost = "hooks.example.com"

// newRequestSigner returns a signer of deliveries with a new private key.
func (e *example) newRequestSigner(t *testing.T, dir string, spec *auth.SignatureSpec) client.Signer {
	t.Helper()
	key, err := auth.GenerateKey("signature", "")
	mustSucceed(t, err)
	write(t, filepath.Join(dir, spec.Keys[0].File), key.Public)
	sign, err := client.Signature(spec.Keys[0].ID, spec.Tag, key.Secret)
	mustSucceed(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+exampleHost+e.path, http.NoBody)
	mustSucceed(t, err)
	req.Header.Set("Content-Type", "application/json")
	return func(id string, body []byte, at time.Time) (http.Header, error) { return sign(req, id, body, at) }
}

// writeHMACKeys creates the files of keys and returns what the sender signs with: the last secret, which is the newest,
// in a form that suits every preset with secrets; or the private key, if the file has the public key.
func writeHMACKeys(t *testing.T, dir string, spec *auth.HMACSpec) []byte {
	t.Helper()
	scheme, isPreset := webhook.Preset(spec.Scheme)
	if !isPreset || !scheme.IsAsymmetric() {
		return writeSecrets(t, dir, spec.Keys)
	}
	key, err := auth.GenerateKey(spec.Scheme, "")
	mustSucceed(t, err)
	write(t, filepath.Join(dir, spec.Keys[0].File), key.Public)
	return bytes.TrimSpace(key.Secret)
}

// writeSecrets creates the files of keys and returns the last key.
func writeSecrets(t *testing.T, dir string, keys []auth.KeySpec) (last []byte) {
	t.Helper()
	for _, k := range keys {
		last = make([]byte, 32)
		_, _ = rand.Read(last) // never fails
		last = []byte("whsec_" + base64.StdEncoding.EncodeToString(last))
		write(t, filepath.Join(dir, k.File), last)
	}
	return last
}

func write(t *testing.T, file string, text []byte) {
	t.Helper()
	mustSucceed(t, os.MkdirAll(filepath.Dir(file), 0o700))
	mustSucceed(t, os.WriteFile(file, text, 0o600))
}

// startIssuer starts an issuer of tokens for a caller. It returns a signer, and the lines that direct the caller's jwt
// section to the issuer.
func (e *example) startIssuer(t *testing.T, pki string, spec *auth.JWTSpec) (sign client.Signer, lines string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	mustSucceed(t, err)
	encode := base64.RawURLEncoding.EncodeToString
	pair, err := tls.LoadX509KeyPair(filepath.Join(pki, "server.pem"), filepath.Join(pki, "server.key"))
	mustSucceed(t, err)
	answers := map[string]any{"/jwks": map[string]any{"keys": []any{map[string]any{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1", "n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes()),
	}}}}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(answers[r.URL.Path])
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	answers["/.well-known/openid-configuration"] = map[string]string{"issuer": srv.URL, "jwks_uri": srv.URL + "/jwks"}
	return func(id string, _ []byte, at time.Time) (http.Header, error) {
		// The claims of a GitHub Actions token that rules usually require.
		claims := jwt.MapClaims{
			"iss": srv.URL, "aud": spec.Audience, "jti": id, "sub": "repo:example/app:ref:refs/heads/main",
			"iat": at.Unix(), "nbf": at.Unix() - 600, "exp": at.Unix() + 300,
		}
		maps.Copy(claims, spec.Claims)
		maps.Copy(claims, e.claims)
		token := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
		token.Header["kid"] = "1"
		text, err := token.SignedString(key)
		return http.Header{"Authorization": {"Bearer " + text}}, err
	}, fmt.Sprintf("      issuer: %s\n      ca: %s/ca.pem\n", srv.URL, pki)
}

func (e *example) serve(t *testing.T, name string) {
	t.Helper()
	if out, err := program(t, e.dir, "check", "--config", "examples/"+name).CombinedOutput(); err != nil || strings.Contains(string(out), "warning") {
		t.Fatalf("check: %v\n%s", err, out)
	}
	e.url = startListening(t, e.dir, program(t, e.dir, "serve", "--config", "examples/"+name))
}

// startListening starts a server, ends it with the test, and returns its address.
func startListening(t testing.TB, dir string, serve *exec.Cmd) (url string) {
	t.Helper()
	name := filepath.Join(dir, "log")
	log, err := os.Create(name)
	mustSucceed(t, err)
	serve.Stdout, serve.Stderr = log, log
	mustSucceed(t, serve.Start())
	t.Cleanup(func() {
		_ = serve.Process.Signal(syscall.SIGTERM)
		if err := serve.Wait(); err != nil {
			t.Errorf("ending the server: %v", err)
		}
		if text, err := os.ReadFile(name); err == nil && t.Failed() {
			t.Logf("log:\n%s", text)
		}
		mustSucceed(t, log.Close())
	})
	address := regexp.MustCompile(`"msg":"serving","address":"(https://[^"]+)"`)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1500 {
		text, err := os.ReadFile(name)
		mustSucceed(t, err)
		if found := address.FindSubmatch(text); found != nil {
			return string(found[1])
		}
		<-tick.C
	}
	t.Fatal("the server does not serve")
	return ""
}

func (e *example) test(t *testing.T) {
	t.Helper()
	callers := slices.Sorted(maps.Keys(e.signers))
	callers = append(callers, slices.Sorted(maps.Keys(e.certs))...)
	if len(callers) == 0 {
		t.Fatal("the hook has no caller")
	}
	for _, name := range callers {
		header := http.Header{}
		if sign := e.signers[name]; sign != nil {
			var err error
			header, err = sign(rand.Text(), []byte(e.body), time.Now())
			mustSucceed(t, err)
		}
		if status, text := e.send(t, header, e.certs[name]); status != http.StatusOK ||
			!strings.Contains(text, `"caller":"`+name+`"`) || !strings.Contains(text, `"state":"succeeded"`) {
			t.Errorf("%s: %d %s, want a run that succeeded", name, status, text)
		}
	}
	if status, text := e.send(t, http.Header{}, nil); status != http.StatusUnauthorized {
		t.Errorf("without a credential: %d %s, want 401", status, text)
	}
}

// send posts the delivery and waits for the end of its run.
func (e *example) send(t *testing.T, header http.Header, cert *tls.Certificate) (status int, text string) {
	t.Helper()
	conf := &tls.Config{RootCAs: e.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.url+e.path, strings.NewReader(e.body))
	mustSucceed(t, err)
	req.Header, req.Host = header, exampleHost
	req.Header.Set("Prefer", "wait=60")
	if e.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range e.header {
		req.Header.Set(name, value)
	}
	res, err := (&http.Client{Transport: transport, Timeout: 2 * time.Minute}).Do(req)
	mustSucceed(t, err)
	defer func() { mustSucceed(t, res.Body.Close()) }()
	b, err := io.ReadAll(res.Body)
	mustSucceed(t, err)
	return res.StatusCode, string(b)
}

// TestExamples_Redelivery: each example says what a repeated delivery does.
func TestExamples_Redelivery(t *testing.T) {
	t.Parallel()
	for name := range exampleDeliveries() {
		text, err := os.ReadFile(filepath.Join("examples", name))
		mustSucceed(t, err)
		if !regexp.MustCompile(`(?m)^# .*Redelivery: `).Match(text) {
			t.Errorf("%s does not say what a redelivery does", name)
		}
	}
}

// TestExamples_OtherDeliveries sends other deliveries of the examples' senders: pings, other branches, tags and
// deletions, and groups of alerts that have no service in common.
func TestExamples_OtherDeliveries(t *testing.T) {
	t.Parallel()
	const (
		none    = "0000000000000000000000000000000000000000"
		commit  = exampleCommit
		app     = `"repository":{"id":1,"full_name":"example/app"}`
		ignored = `^\{"ignored":true,"hook":"[a-z]+","reason":"the condition `
	)
	for name, rows := range map[string][]otherDelivery{
		"github.yaml": {
			{"github", "ping", `{"zen":"Keep it logically awesome.",` + app + `}`, `^\{"handshake":"ping"\}`},
			{"github", "push", `{"ref":"refs/heads/dev","after":"` + commit + `","deleted":false,` + app + `}`, ignored + `body.ref `},
			{"github", "push", `{"ref":"refs/tags/main","after":"` + commit + `","deleted":false,` + app + `}`, ignored + `body.ref `},
			{"github", "push", `{"ref":"refs/heads/main","after":"` + none + `","deleted":true,` + app + `}`, ignored + `body.deleted `},
			{"github", "issues", `{"action":"opened",` + app + `}`, ignored + `event `},
			{"github", "push", `{"ref":"refs/heads/main","commit_oid":"` + commit + `",` + app + `}`, ignored + `body.deleted `}, // a code_scanning_alert
			{"github", "push", `{"ref":"refs/heads/main","after":"` + commit + `","deleted":false,"repository":{"full_name":"example/web"}}`, ignored + `body.repository.full_name `},
		},
		"gitea.yaml": {
			{"gitea", "ping", `{` + app + `}`, `^\{"handshake":"ping"\}`},
			{"gitea", "push", `{"ref":"refs/heads/dev","after":"` + commit + `",` + app + `}`, ignored + `body.ref `},
			{"gitea", "push", `{"ref":"refs/tags/v1","after":"` + commit + `",` + app + `}`, ignored + `body.ref `},
			{"gitea", "push", `{"ref":"refs/heads/main","after":"` + none + `",` + app + `}`, ignored + `body.after `},
			{"gitea", "delete", `{"ref":"main","ref_type":"branch",` + app + `}`, ignored + `event `},
			{"gitea", "push", `{"ref":"main","ref_type":"branch",` + app + `}`, ignored + `body.after `}, // the header is not signed
		},
		"gitlab.yaml": {
			{"gitlab", "Tag Push Hook", `{"object_kind":"tag_push","ref":"refs/tags/v1.2.3","after":"` + none + `","checkout_sha":null,"project_id":15}`, ignored + `body.checkout_sha `},
			{"gitlab", "Tag Push Hook", `{"object_kind":"tag_push","ref":"refs/tags/test","checkout_sha":"` + commit + `","project_id":15}`, ignored + `body.ref `},
			{"gitlab", "Push Hook", `{"object_kind":"push","ref":"refs/heads/main","checkout_sha":"` + commit + `","project_id":15}`, ignored + `body.object_kind `},
			{"gitlab", "Push Hook", `{"object_kind":"push","ref":"refs/heads/main","after":"` + none + `","checkout_sha":null,"project_id":15}`, ignored + `body`},
			{"gitlab-old", "Push Hook", `{"object_kind":"push","ref":"refs/heads/main","checkout_sha":"` + commit + `","project_id":15}`, ignored + `body.object_kind `},
		},
		"alertmanager.yaml": {{
			"alertmanager", "",
			`{"version":"4","status":"firing","groupLabels":{"alertname":"QueueStuck"},"commonLabels":{"alertname":"QueueStuck"},"alerts":[]}`,
			`"params":\{"service":"mixed","status":"firing"\}`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := copyExampleTo(t, name)
			e.serve(t, name)
			for _, row := range rows {
				e.body = row.body
				e.header = map[string]string{}
				if row.event != "" {
					e.header[eventHeader(name)] = row.event
				}
				if status, text := e.deliver(t, row.caller); status != 200 || !regexp.MustCompile(row.want).MatchString(text) {
					t.Errorf("%s %s: %d %s, want 200 %s", row.event, row.body, status, text, row.want)
				}
			}
		})
	}
}

// otherDelivery is a delivery that an example does not start its command for, or not as usual.
type otherDelivery struct{ caller, event, body, want string }

// eventHeader is the header with the event name that the sender of an example sends.
func eventHeader(example string) string {
	return map[string]string{"github.yaml": "X-GitHub-Event", "gitea.yaml": "X-Gitea-Event", "gitlab.yaml": "X-Gitlab-Event"}[example]
}

// copyExampleTo copies an example to a new folder.
func copyExampleTo(t *testing.T, name string) *example {
	t.Helper()
	e := &example{sent: exampleDeliveries()[name], dir: t.TempDir(), certs: map[string]*tls.Certificate{}, signers: map[string]client.Signer{}}
	e.copyExample(t, name)
	return e
}

// deliver signs the delivery as a caller does, sends it, and waits for the end of its run.
func (e *example) deliver(t *testing.T, caller string) (status int, text string) {
	t.Helper()
	header, err := e.signers[caller](rand.Text(), []byte(e.body), time.Now())
	mustSucceed(t, err)
	return e.send(t, header, nil)
}

// TestExamples_BusyAndRedelivered: in the examples of git forges, two deliveries during a run lead to one more run, with
// the newer commit; and a delivery whose run failed starts another run when it is sent again.
func TestExamples_BusyAndRedelivered(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"github.yaml", "gitea.yaml", "gitlab.yaml"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := copyExampleTo(t, name)
			e.replaceCommand(t, name)
			e.serve(t, name)
			e.testJoin(t, strings.TrimSuffix(name, ".yaml"))
			e.testRedelivery(t, strings.TrimSuffix(name, ".yaml"))
		})
	}
}

// replaceCommand lets the hook start a script that appends its arguments to the file ran, is in progress while the file
// hold exists, and fails while the file broken exists.
func (e *example) replaceCommand(t *testing.T, name string) {
	t.Helper()
	const script = "#!/bin/sh\ncd %q || exit 9\necho \"$@\" >>ran\nwhile [ -e hold ]; do sleep 0.05; done\n[ ! -e broken ]\n"
	job := filepath.Join(e.dir, "job.sh")
	mustSucceed(t, os.WriteFile(job, fmt.Appendf(nil, script, e.dir), 0o755))
	file := filepath.Join(e.dir, "examples", name)
	text, err := os.ReadFile(file)
	mustSucceed(t, err)
	changed := strings.Replace(string(text), "[/bin/echo, ", "["+job+", ", 1)
	if changed == string(text) {
		t.Fatal("the example has another command")
	}
	mustSucceed(t, os.WriteFile(file, []byte(changed), 0o644))
}

// exampleCommit is the commit in the deliveries of the examples.
const exampleCommit = "6dcb09b5b57875f334f61aebed695e2e4193db5e"

// testJoin sends three deliveries with commits of their own while the first one's run is in progress, and one after
// that.
func (e *example) testJoin(t *testing.T, caller string) {
	t.Helper()
	hold, first := filepath.Join(e.dir, "hold"), e.body
	write(t, hold, nil)
	push := func(digit, want string) {
		t.Helper()
		e.body = strings.ReplaceAll(first, exampleCommit, strings.Repeat(digit, 40))
		if status, text := e.deliver(t, caller); status >= 300 || !strings.Contains(text, want) {
			t.Errorf("push %s: %d %s, want %s", digit, status, text, want)
		}
	}
	e.header["Prefer"] = "wait=0"
	push("1", `"state":"running"`)
	push("2", `"state":"queued"`)
	push("3", `"joined":true`)
	mustSucceed(t, os.Remove(hold))
	e.waitForCommits(t, "1", "3")
	push("4", "")
	e.waitForCommits(t, "1", "3", "4")
	e.body = first
}

// waitForCommits waits until as many runs have started, and compares their commits.
func (e *example) waitForCommits(t *testing.T, digits ...string) {
	t.Helper()
	var got []string
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1500 {
		text, _ := os.ReadFile(filepath.Join(e.dir, "ran"))
		got = nil
		for _, m := range regexp.MustCompile(`(\d)\d{39}\n`).FindAllSubmatch(text, -1) {
			got = append(got, string(m[1]))
		}
		if len(got) >= len(digits) {
			break
		}
		<-tick.C
	}
	if !slices.Equal(got, digits) {
		t.Fatalf("runs for %v, want %v", got, digits)
	}
}

// testRedelivery sends a delivery whose run fails, and the same again after the command was repaired.
func (e *example) testRedelivery(t *testing.T, caller string) {
	t.Helper()
	broken := filepath.Join(e.dir, "broken")
	write(t, broken, nil)
	e.header["Prefer"] = "wait=60"
	var runs []string
	for _, want := range []string{"failed", "failed", "succeeded", "succeeded"} {
		header, err := e.signers[caller]("msg-1", []byte(e.body), time.Now())
		mustSucceed(t, err)
		status, text := e.send(t, header, nil)
		if status != http.StatusOK || !strings.Contains(text, `"state":"`+want+`"`) {
			t.Fatalf("%d %s, want a run that %s", status, text, want)
		}
		if runs = append(runs, cutBetween(t, text, `"id":"`, `"`)); len(runs) == 2 {
			mustSucceed(t, os.Remove(broken))
		}
	}
	if slices.Sort(runs); len(slices.Compact(runs)) != 3 {
		t.Errorf("runs are %v, want one for each failure and one that succeeded", runs)
	}
}
