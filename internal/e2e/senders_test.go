package e2e_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/internal/testenv"
)

// order is a line of input of testdata/senders/sign.mjs.
type order struct {
	Sender string         `json:"sender"`
	Secret string         `json:"secret,omitempty"`
	Key    string         `json:"key,omitempty"`
	Alg    string         `json:"alg,omitempty"`
	Body   string         `json:"body"`
	ID     string         `json:"id"`
	At     int64          `json:"at"`
	Claims map[string]any `json:"claims,omitempty"`
	URL    string         `json:"url"`
}

// delivery is a request to a hook.
type delivery struct {
	header http.Header
	body   string
}

// sender is a library that signs, with its caller in the configuration.
type sender struct {
	name      string // name of the caller, the hook and the witness folder
	order     order
	other     order             // the same with an unknown secret or key
	signature string            // the header that holds the signature
	caller    string            // YAML
	files     map[string]string // files that caller names
	signedID  string            // header with the id, if the signature covers it
	signedAt  string            // header with the time, likewise
	public    string            // PEM, of an asymmetric key
}

const (
	issuer   = "https://issuer.example/"
	audience = "https://hooks.example.com"
)

// TestSenders sends what the senders' own libraries sign, and what an attacker without the key could make of it.
func TestSenders(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "node", "internal/e2e/testdata/senders/node_modules/.package-lock.json")
	all := slices.Concat(hmacSenders(), signatureSenders(t), jwtSenders(t))
	dir := t.TempDir()
	url, client := startServer(t, dir, all)
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			h := &senderHook{sender: s, url: url + "/hooks/" + s.name, client: client, witness: filepath.Join(dir, "ran", s.name)}
			h.startSigner(t)
			h.test(t)
		})
	}
}

func hmacSenders() []*sender {
	secret := func() string { // Standard Webhooks needs this form; the others accept any text
		b := make([]byte, 32)
		_, _ = rand.Read(b) // never fails
		return "whsec_" + base64.StdEncoding.EncodeToString(b)
	}
	all := []*sender{
		{name: "github", signature: "X-Hub-Signature-256"},
		{name: "standard-webhooks", signature: "Webhook-Signature", signedID: "Webhook-Id", signedAt: "Webhook-Timestamp"},
		{name: "svix", signature: "Svix-Signature", signedID: "Svix-Id", signedAt: "Svix-Timestamp"},
		{name: "stripe", signature: "Stripe-Signature", signedAt: "Stripe-Signature"},
	}
	for _, s := range all {
		s.order = order{Sender: s.name, Secret: secret()}
		s.other = order{Sender: s.name, Secret: secret()}
		s.caller = fmt.Sprintf("hmac: {scheme: %s, keys: [{file: %s.key}]}", s.name, s.name)
		s.files = map[string]string{s.name + ".key": s.order.Secret}
	}
	return all
}

func signatureSenders(t *testing.T) []*sender {
	t.Helper()
	var all []*sender
	for alg, kind := range map[string]string{"hmac-sha256": "", "ed25519": "EdDSA", "ecdsa-p256-sha256": "ES256"} {
		s := &sender{name: "http-message-signatures-" + alg, signature: "Signature", signedAt: "Signature-Input"}
		s.order = order{Sender: "http-message-signatures", Alg: alg}
		s.other = s.order
		text := rand.Text() + rand.Text()
		if s.order.Secret, s.other.Secret = text, rand.Text()+rand.Text(); kind != "" {
			s.order.Key, text = keyPair(t, kind)
			s.other.Key, _ = keyPair(t, kind)
		}
		s.caller = fmt.Sprintf(`signature: {authority: ["localhost:$PORT"], keys: [{id: sender, file: %s.key}]}`, s.name)
		s.files = map[string]string{s.name + ".key": text}
		all = append(all, s)
	}
	return all
}

func jwtSenders(t *testing.T) []*sender {
	t.Helper()
	var all []*sender
	for _, library := range []string{"jose", "jsonwebtoken"} {
		for _, alg := range []string{"HS256", "RS256", "ES256", "EdDSA"} {
			if library == "jsonwebtoken" && alg == "EdDSA" {
				continue // it has no signature
			}
			name := library + "-" + strings.ToLower(alg)
			s := &sender{name: name, signature: "Authorization", order: order{Sender: library, Alg: alg}, other: order{Sender: library, Alg: alg}}
			if alg == "HS256" {
				s.order.Secret, s.other.Secret = rand.Text()+rand.Text(), rand.Text()+rand.Text()
				s.files = map[string]string{name + ".key": s.order.Secret}
			} else {
				s.order.Key, s.public = keyPair(t, alg)
				s.other.Key, _ = keyPair(t, alg)
				s.files = map[string]string{name + ".key": s.public}
			}
			s.caller = fmt.Sprintf("jwt: {issuer: %q, audience: %q, keys: [{file: %s.key}]}", issuer+name, audience, name)
			all = append(all, s)
		}
	}
	return all
}

// keyPair returns a new private key (PKCS #8) and its public key, as PEM.
func keyPair(t *testing.T, alg string) (private, public string) {
	t.Helper()
	var key crypto.Signer
	var err error
	switch alg {
	case "RS256":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	mustSucceed(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	mustSucceed(t, err)
	pkix, err := x509.MarshalPKIXPublicKey(key.Public())
	mustSucceed(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix}))
}

func mustSucceed(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startServer runs the program with one hook for each sender. The hook's command stores the body of each run in
// ran/SENDER/RUN.
func startServer(t *testing.T, dir string, all []*sender) (url string, client *http.Client) {
	t.Helper()
	held, port := socket(t)
	var callers, hooks strings.Builder
	for _, s := range all {
		_, _ = fmt.Fprintf(&callers, "  %s: {%s}\n", s.name, strings.ReplaceAll(s.caller, "$PORT", port))
		ran := filepath.Join(dir, "ran", s.name)
		_, _ = fmt.Fprintf(&hooks, "  %s: {callers: [%s], command: [%q, %q], stdin: body}\n", s.name, s.name, dir+"/job.sh", ran)
		mustSucceed(t, os.MkdirAll(ran, 0o700))
		for name, text := range s.files {
			mustSucceed(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		}
	}
	// The limits would stop so many refusals from one address.
	config := fmt.Sprintf(`state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {address: {rate: 1000/s, burst: 1000}, failures: {rate: 1000/s, burst: 1000}, caller: {rate: 1000/s, burst: 1000}}
callers:
%shooks:
%s`, &callers, &hooks)
	mustSucceed(t, os.WriteFile(dir+"/sallyport.yaml", []byte(config), 0o600))
	mustSucceed(t, os.WriteFile(dir+"/job.sh", []byte("#!/bin/sh\ncat >\"$1/$SALLYPORT_RUN\"\n"), 0o700))
	if out, err := program(t, dir, "certs", "dev").CombinedOutput(); err != nil {
		t.Fatalf("making certificates: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("configuration:\n%s", config)
		}
	})
	// The variable LISTEN_PID must name the server, so the shell sets it to its own pid and executes the server.
	serve := exec.Command("/bin/sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec sallyport serve --config sallyport.yaml`) //nolint:noctx // ended by a signal
	serve.Dir, serve.ExtraFiles = dir, []*os.File{held}
	startListening(t, dir, serve)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots(t, dir+"/certs/ca.pem"), MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return "https://localhost:" + port, &http.Client{Transport: transport, Timeout: time.Minute}
}

// socket listens before the server starts, so that its port, which senders sign, is known and reserved.
func socket(t *testing.T) (socket *os.File, port string) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "localhost:0")
	mustSucceed(t, err)
	_, port, err = net.SplitHostPort(l.Addr().String())
	mustSucceed(t, err)
	socket, err = l.(*net.TCPListener).File()
	mustSucceed(t, errors.Join(err, l.Close()))
	t.Cleanup(func() { _ = socket.Close() })
	return socket, port
}

// program runs the program, which TestMain has put into the PATH.
func program(t testing.TB, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sallyport", args...) //nolint:noctx // it is ended by a signal, after the test's context
	cmd.Dir = dir
	return cmd
}

func freeTCPPort(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "localhost:0")
	mustSucceed(t, err)
	defer func() { mustSucceed(t, l.Close()) }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	mustSucceed(t, err)
	return port
}

func waitFor(t *testing.T, address string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err == nil {
			mustSucceed(t, conn.Close())
			return
		}
		<-tick.C
	}
	t.Fatal("the server does not answer")
}

// senderHook is a hook with its sender.
type senderHook struct {
	*sender

	url, witness string
	client       *http.Client
	orders       *json.Encoder // input of sign.mjs
	signatures   *json.Decoder // output of sign.mjs
}

// startSigner runs sign.mjs until the end of the test.
func (h *senderHook) startSigner(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", "internal/e2e/testdata/senders/sign.mjs")
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
	h.orders, h.signatures = json.NewEncoder(in), json.NewDecoder(out)
}

func (h *senderHook) test(t *testing.T) {
	t.Helper()
	first, second := h.signDelivery(t, nil), h.signDelivery(t, nil)
	h.checkAccepted(t, "a good delivery", first)
	h.checkReplayed(t, "the same delivery again", first)
	for why, d := range h.forgeDeliveries(t, second) {
		h.checkRefused(t, why, d)
	}
	if h.usesToken() {
		// A token proves the sender and not the body: it is good for one body only.
		h.checkRefused(t, "a token used again with another body", changeDelivery(first, func(d *delivery) { d.body += " " }))
	}
	if h.name == "github" {
		// The id is not signed, so another id must not make it a new delivery.
		h.checkReplayed(t, "the same delivery under another id", changeDelivery(first, func(d *delivery) { d.header.Set("X-Github-Delivery", "other") }))
	}
	// The refused deliveries did not use up the good one.
	h.checkAccepted(t, "what the tampered ones were made of", second)
}

// usesToken reports whether the sender authenticates with a JWT.
func (s *sender) usesToken() bool { return s.signature == "Authorization" }

// signDelivery gets a new delivery from the sender's library.
func (h *senderHook) signDelivery(t *testing.T, change func(*order)) *delivery {
	t.Helper()
	now := time.Now()
	o := h.order
	o.URL = h.url
	o.ID, o.At, o.Body = "msg_"+rand.Text(), now.Unix(), fmt.Sprintf(`{"type":"push","text":"%s é"}`, rand.Text())
	if h.usesToken() {
		o.Claims = map[string]any{
			"iss": issuer + h.name, "aud": audience, "sub": "job", "jti": rand.Text(),
			"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		}
	}
	if change != nil {
		change(&o)
	}
	mustSucceed(t, h.orders.Encode(o))
	var fields map[string]string
	mustSucceed(t, h.signatures.Decode(&fields))
	d := &delivery{header: http.Header{"Content-Type": {"application/json"}}, body: o.Body}
	for name, value := range fields {
		d.header.Set(name, value)
	}
	return d
}

// changeDelivery returns a changed copy of d.
func changeDelivery(d *delivery, change func(*delivery)) *delivery {
	c := &delivery{header: d.header.Clone(), body: d.body}
	change(c)
	return c
}

// forgeDeliveries returns forgeries that are made from a good delivery, or without one.
func (h *senderHook) forgeDeliveries(t *testing.T, good *delivery) map[string]*delivery {
	t.Helper()
	sig := good.header.Get(h.signature)
	all := map[string]*delivery{
		"no signature":          changeDelivery(good, func(d *delivery) { d.header.Del(h.signature) }),
		"an empty signature":    changeDelivery(good, func(d *delivery) { d.header.Set(h.signature, "") }),
		"a bit of it flipped":   changeDelivery(good, func(d *delivery) { d.header.Set(h.signature, flipCharacter(sig)) }),
		"a signature cut short": changeDelivery(good, func(d *delivery) { d.header.Set(h.signature, sig[:len(sig)-8]) }),
		"the header twice":      changeDelivery(good, func(d *delivery) { d.header.Add(h.signature, sig) }),
		"a wrong one before it": changeDelivery(good, func(d *delivery) { d.header[h.signature] = []string{flipCharacter(sig), sig} }),
		"another secret":        h.signDelivery(t, func(o *order) { o.Secret, o.Key = h.other.Secret, h.other.Key }),
	}
	if h.usesToken() {
		maps.Copy(all, h.forgeTokens(t, good))
		return all
	}
	if h.signature == "Signature" {
		maps.Copy(all, h.forgeSignatures(t, good))
	}
	all["the body changed"] = changeDelivery(good, func(d *delivery) { d.body = strings.Replace(d.body, "push", "pusH", 1) })
	all["the body longer"] = changeDelivery(good, func(d *delivery) { d.body += "\n" })
	all["no body"] = changeDelivery(good, func(d *delivery) { d.body = "" })
	if h.signedID != "" {
		all["the id changed"] = changeDelivery(good, func(d *delivery) { d.header.Set(h.signedID, "msg_other") })
		all["the id twice"] = changeDelivery(good, func(d *delivery) { d.header.Add(h.signedID, d.header.Get(h.signedID)) })
	}
	if h.signedAt != "" {
		all["signed too long ago"] = h.signDelivery(t, func(o *order) { o.At -= 360 })
		all["signed in the future"] = h.signDelivery(t, func(o *order) { o.At += 360 })
		old := h.signDelivery(t, func(o *order) { o.At -= 3600 })
		fresh := good.header.Get(h.signedAt)
		if h.signedAt == h.signature { // t=…,v1=…
			ts, _, _ := strings.Cut(fresh, ",")
			_, v1, _ := strings.Cut(old.header.Get(h.signature), ",")
			fresh = ts + "," + v1
		}
		all["an old signature under a new time"] = changeDelivery(old, func(d *delivery) { d.header.Set(h.signedAt, fresh) })
	}
	return all
}

func (h *senderHook) forgeSignatures(t *testing.T, good *delivery) map[string]*delivery {
	t.Helper()
	return map[string]*delivery{
		"for another server":      h.signDelivery(t, func(o *order) { o.URL = "https://other.example.com/hooks/" + h.name }),
		"for another hook":        h.signDelivery(t, func(o *order) { o.URL += "2" }),
		"with another query":      h.signDelivery(t, func(o *order) { o.URL += "?a=b" }),
		"of another content type": changeDelivery(good, func(d *delivery) { d.header.Set("Content-Type", "text/plain") }),
		"without its digest":      changeDelivery(good, func(d *delivery) { d.header.Del("Content-Digest") }),
		"without its input":       changeDelivery(good, func(d *delivery) { d.header.Del("Signature-Input") }),
		"with its input twice":    changeDelivery(good, func(d *delivery) { d.header.Add("Signature-Input", d.header.Get("Signature-Input")) }),
		"with a second signature": changeDelivery(good, func(d *delivery) {
			d.header.Set("Signature-Input", d.header.Get("Signature-Input")+", b=()")
			d.header.Set("Signature", d.header.Get("Signature")+", b=:AAAA:")
		}),
	}
}

func (h *senderHook) forgeTokens(t *testing.T, good *delivery) map[string]*delivery {
	t.Helper()
	claim := func(name string, value any) func(*order) { return func(o *order) { o.Claims[name] = value } }
	now := time.Now()
	token := strings.TrimPrefix(good.header.Get("Authorization"), "Bearer ")
	parts := strings.Split(token, ".")
	all := map[string]*delivery{
		"alg none":                h.signDelivery(t, func(o *order) { o.Alg = "none" }),
		"its signature taken off": changeDelivery(good, func(d *delivery) { d.header.Set("Authorization", "Bearer "+parts[0]+"."+parts[1]+".") }),
		"another audience":        h.signDelivery(t, claim("aud", "https://other.example.com")),
		"an audience in a longer": h.signDelivery(t, claim("aud", audience+".evil.example")),
		"another issuer":          h.signDelivery(t, claim("iss", "https://evil.example/")),
		"expired": h.signDelivery(t, func(o *order) {
			o.Claims["iat"], o.Claims["exp"] = now.Add(-8*time.Minute).Unix(), now.Add(-3*time.Minute).Unix()
		}),
		"not yet valid":             h.signDelivery(t, claim("nbf", now.Add(5*time.Minute).Unix())),
		"without an end":            h.signDelivery(t, func(o *order) { delete(o.Claims, "exp") }),
		"without a beginning":       h.signDelivery(t, func(o *order) { delete(o.Claims, "iat") }),
		"signed a day ago":          h.signDelivery(t, claim("iat", now.Add(-24*time.Hour).Unix())),
		"under the name of another": changeDelivery(good, func(d *delivery) { d.header.Del("Authorization"); d.header.Set("X-Authorization", "Bearer "+token) }),
	}
	if h.public != "" {
		// The public key is not secret: as an HMAC secret it must prove nothing.
		all["HS256 with the public key"] = h.signDelivery(t, func(o *order) {
			o.Sender, o.Alg, o.Key, o.Secret = "jose", "HS256", "", h.public
		})
	}
	return all
}

// flipCharacter replaces a character near the end of sig, where every sender has its signature, by another one that is
// valid in hex and base64.
func flipCharacter(sig string) string {
	i := len(sig) - 10
	if sig[i] == '0' {
		return sig[:i] + "1" + sig[i+1:]
	}
	return sig[:i] + "0" + sig[i+1:]
}

// answer is the result of a delivery.
type answer struct {
	status   int
	replayed bool
	text     string
	ran      []string // bodies of the new runs
}

// send posts a delivery and waits for the end of its run.
func (h *senderHook) send(t *testing.T, d *delivery) answer {
	t.Helper()
	before := h.readRuns(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url, strings.NewReader(d.body))
	mustSucceed(t, err)
	req.Header = d.header.Clone()
	req.Header.Set("Prefer", "wait=30")
	res, err := h.client.Do(req)
	mustSucceed(t, err)
	defer func() { mustSucceed(t, res.Body.Close()) }()
	b, err := io.ReadAll(res.Body)
	mustSucceed(t, err)
	a := answer{status: res.StatusCode, replayed: res.Header.Get("Idempotent-Replayed") == "true", text: string(b)}
	for name, text := range h.readRuns(t) {
		if _, ok := before[name]; !ok {
			a.ran = append(a.ran, text)
		}
	}
	return a
}

// readRuns returns the body of each run.
func (h *senderHook) readRuns(t *testing.T) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(h.witness)
	mustSucceed(t, err)
	all := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(h.witness, e.Name()))
		mustSucceed(t, err)
		all[e.Name()] = string(b)
	}
	return all
}

func (h *senderHook) checkAccepted(t *testing.T, why string, d *delivery) {
	t.Helper()
	a := h.send(t, d)
	if a.status != http.StatusOK || a.replayed || !strings.Contains(a.text, `"succeeded"`) {
		t.Errorf("%s: got %d, want 200 and a run that succeeded\n%v\n%s", why, a.status, d.header, a.text)
	}
	if len(a.ran) != 1 || a.ran[0] != d.body {
		t.Errorf("%s: the command ran with %q, want once with %q", why, a.ran, d.body)
	}
}

func (h *senderHook) checkReplayed(t *testing.T, why string, d *delivery) {
	t.Helper()
	if a := h.send(t, d); a.status != http.StatusOK || !a.replayed || len(a.ran) != 0 {
		t.Errorf("%s: got %d (ran: %q), want the first run and no other\n%s", why, a.status, a.ran, a.text)
	}
}

func (h *senderHook) checkRefused(t *testing.T, why string, d *delivery) {
	t.Helper()
	if a := h.send(t, d); a.status != http.StatusUnauthorized || len(a.ran) != 0 {
		t.Errorf("%s: got %d (ran: %q), want 401 and no run\n%v\n%s", why, a.status, a.ran, d.header, a.text)
	}
}
