package e2e_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"sallyport/certs"
	"sallyport/internal/testenv"
)

// TestACME_Obtain obtains certificates from Pebble, the ACME server that Let's Encrypt tests with.
func TestACME_Obtain(t *testing.T) {
	t.Parallel()
	w := newACMEWorld(t, 90*24*time.Hour)
	w.setAddress(t, "bad.example.com", "127.0.0.2") // no server listens there

	// The CA does not run yet. The other names are served.
	w.configure(t, "cert: pki/server.pem, key: pki/server.key", "bad.example.com", "hooks.example.com")
	server := w.serve(t)
	server.awaitLog(t, `"msg":"ACME server not reached"`, `"msg":"obtaining a certificate"`, `"again_in":"10s"`)
	if _, err := w.fetchCertificate(t, "localhost", w.dev); err != nil {
		t.Error("the name of the pair:", err)
	}
	if _, err := w.fetchCertificate(t, "hooks.example.com", w.dev); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Error("a name without a certificate yet:", err)
	}

	// The CA starts. It does not validate one name, and the log says why.
	w.startCA(t)
	server.awaitLog(t, `"msg":"certificate obtained","domain":"hooks.example.com"`, `"msg":"ACME validation failed","domain":"bad.example.com"`, "127.0.0.2")
	roots := w.acmeRoots(t)
	first, err := w.fetchCertificate(t, "hooks.example.com", roots)
	if err != nil {
		t.Fatal("the name that was obtained:", err)
	}
	if _, err := w.fetchCertificate(t, "HOOKS.example.COM", roots); err != nil {
		t.Error("the same in capitals:", err)
	}
	if _, err := w.fetchCertificate(t, "other.example.com", roots); err == nil || !strings.Contains(err.Error(), "is valid for localhost") {
		t.Error("an unknown name is not shown the pair:", err)
	}
	if text := w.ca.readLog(t); strings.Contains(text, "other.example.com") {
		t.Error("the server requested a certificate for a name that is not configured")
	}
	w.checkPrivateFiles(t)
	w.checkReload(t, server, roots, first)
	server.stop()
	w.ca.stop()
	w.checkRestart(t, roots, first)
}

// checkReload checks that the server obtains a certificate for a name that a reload adds.
func (w *acmeWorld) checkReload(t *testing.T, server *daemon, roots *x509.CertPool, first *x509.Certificate) {
	t.Helper()
	w.configure(t, "cert: pki/server.pem, key: pki/server.key", "late.example.com", "hooks.example.com")
	server.awaitLog(t, `"msg":"certificate obtained","domain":"late.example.com"`)
	if _, err := w.fetchCertificate(t, "late.example.com", roots); err != nil {
		t.Error("the name that was added:", err)
	}
	if again, err := w.fetchCertificate(t, "hooks.example.com", roots); err != nil || !again.Equal(first) {
		t.Error("the name that stayed:", err)
	}
}

// checkRestart checks that a restarted server shows stored certificates without the CA, and refuses all other names if
// it has no pairs.
func (w *acmeWorld) checkRestart(t *testing.T, roots *x509.CertPool, first *x509.Certificate) {
	t.Helper()
	w.configure(t, "", "hooks.example.com")
	server := w.serve(t)
	again, err := w.fetchCertificate(t, "hooks.example.com", roots)
	if err != nil || !again.Equal(first) {
		t.Error("not the same certificate after a restart:", err)
	}
	for why, name := range map[string]string{"an unknown name": "other.example.com", "no name": "", "a former name": "late.example.com"} {
		if _, err := w.fetchCertificate(t, name, roots); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%s: %v, want unrecognized name", why, err)
		}
	}
	// The ACME protocol answers challenges only, and there is none.
	if _, err := w.fetchCertificate(t, "hooks.example.com", roots, acme.ALPNProto); err == nil {
		t.Error("the server answered a challenge that does not exist")
	}
	if text := server.readLog(t); strings.Contains(text, "ACME") || strings.Contains(text, "obtain") {
		t.Errorf("the server asked the CA again:\n%s", text)
	}
}

// TestACME_Renew: the server renews a certificate while it serves.
func TestACME_Renew(t *testing.T) {
	t.Parallel()
	w := newACMEWorld(t, 45*time.Second)
	w.startCA(t)
	w.configure(t, "", "hooks.example.com")
	server := w.serve(t)
	const obtained = `"msg":"certificate obtained"`
	server.awaitLog(t, obtained)
	roots := w.acmeRoots(t)
	first, err := w.fetchCertificate(t, "hooks.example.com", roots)
	mustSucceed(t, err)
	eventually(t, "a second certificate", func() bool { return strings.Count(server.readLog(t), obtained) == 2 })
	second, err := w.fetchCertificate(t, "hooks.example.com", roots)
	mustSucceed(t, err)
	if !second.NotAfter.After(first.NotAfter) {
		t.Errorf("the next certificate ends at %s, the first at %s", second.NotAfter, first.NotAfter)
	}
}

// TestACME_HangingOrder never answers the order of one name. Meanwhile the server obtains another name, applies the
// rest of a reload, and ends.
func TestACME_HangingOrder(t *testing.T) {
	t.Parallel()
	const pair = "cert: pki/server.pem, key: pki/server.key"
	w := newACMEWorld(t, 90*24*time.Hour)
	w.startCA(t)
	roots := w.acmeRoots(t)
	held, givenUp := w.holdOrders(t, "slow.example.com")
	w.configure(t, pair, "slow.example.com")
	server := w.serve(t)
	eventually(t, "the order that hangs", func() bool { return held.Load() == 1 })
	w.configure(t, pair, "slow.example.com", "fast.example.com", "quick.example.com")
	for _, name := range []string{"fast.example.com", "quick.example.com"} {
		server.awaitLog(t, `"msg":"certificate obtained","domain":"`+name+`"`)
		if _, err := w.fetchCertificate(t, name, roots); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if held.Load() != 1 || givenUp.Load() != 0 {
		t.Errorf("the hanging order had %d requests and %d cancelled ones before the other certificates were obtained", held.Load(), givenUp.Load())
	}
	server.stop()
	if text := w.ca.readLog(t); strings.Count(text, "There are now 1 accounts") != 1 || strings.Contains(text, "There are now 2 accounts") {
		t.Error("the names do not share one account")
	}
}

// holdOrders puts a proxy before the CA that never answers requests for a name.
func (w *acmeWorld) holdOrders(t *testing.T, name string) (held, givenUp *atomic.Int64) {
	t.Helper()
	held, givenUp = new(atomic.Int64), new(atomic.Int64)
	ca := &url.URL{Scheme: "https", Host: w.api}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.dev, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	forward := &httputil.ReverseProxy{
		Transport: transport, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(ca)
			r.Out.Host = r.In.Host // the CA builds its URLs from it
		},
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(w.dir, "pki", "server.pem"), filepath.Join(w.dir, "pki", "server.key"))
	mustSucceed(t, err)
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var signed struct{ Payload string }
		if err == nil && json.Unmarshal(body, &signed) == nil {
			if payload, err := base64.RawURLEncoding.DecodeString(signed.Payload); err == nil && bytes.Contains(payload, []byte(name)) {
				held.Add(1)
				<-r.Context().Done()
				givenUp.Add(1)
				return
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		forward.ServeHTTP(rw, r)
	}))
	proxy.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	proxy.StartTLS()
	t.Cleanup(proxy.Close)
	w.api = proxy.Listener.Addr().String()
	return held, givenUp
}

// acmeWorld is a CA, a DNS server for it, and the folder of a server that obtains certificates from it.
type acmeWorld struct {
	dir                             string
	dev                             *x509.CertPool // CAs of the pair and of the CA's own certificate
	life                            time.Duration  // of certificates
	server, dns, dnsAdmin, api, adm string         // addresses
	ca                              *daemon
}

func newACMEWorld(t *testing.T, life time.Duration) *acmeWorld {
	t.Helper()
	testenv.Need(t, "bin/test/pebble", "bin/test/pebble-challtestsrv")
	w := &acmeWorld{dir: t.TempDir(), life: life}
	addresses(t, &w.server, &w.dns, &w.dnsAdmin, &w.api, &w.adm)
	_, err := certs.Dev(filepath.Join(w.dir, "pki"), time.Now(), false)
	mustSucceed(t, err)
	w.dev = roots(t, filepath.Join(w.dir, "pki", "ca.pem"))
	startDaemon(t, w.dir, "dns", exec.CommandContext(t.Context(), testTool(t, "pebble-challtestsrv"),
		"-dnsserver", w.dns, "-management", w.dnsAdmin, "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""))
	waitFor(t, w.dnsAdmin)
	return w
}

// addresses finds distinct free addresses to listen on.
func addresses(t *testing.T, all ...*string) {
	t.Helper()
	for _, address := range all {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		mustSucceed(t, err)
		defer func() { mustSucceed(t, l.Close()) }()
		*address = l.Addr().String()
	}
}

// testTool returns the path of a program that the Makefile builds for the tests.
func testTool(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("bin/test/" + name)
	mustSucceed(t, err)
	return path
}

// setAddress sets the address of a name in the DNS server.
func (w *acmeWorld) setAddress(t *testing.T, name, address string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"host": name + ".", "addresses": []string{address}})
	mustSucceed(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+w.dnsAdmin+"/add-a", bytes.NewReader(body))
	mustSucceed(t, err)
	res, err := new(http.Client).Do(req)
	mustSucceed(t, err)
	mustSucceed(t, res.Body.Close())
	if res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
}

func (w *acmeWorld) startCA(t *testing.T) {
	t.Helper()
	_, port, err := net.SplitHostPort(w.server)
	mustSucceed(t, err)
	config := fmt.Sprintf(`{"pebble": {"listenAddress": %q, "managementListenAddress": %q, "certificate": "pki/server.pem", "privateKey": "pki/server.key",
		"httpPort": 1, "tlsPort": %s, "retryAfter": {"authz": 1, "order": 1}, "keyAlgorithm": "ecdsa", "profiles": {"default": {"validityPeriod": %d}}}}`,
		w.api, w.adm, port, int(w.life/time.Second))
	mustSucceed(t, os.WriteFile(filepath.Join(w.dir, "pebble.json"), []byte(config), 0o600))
	pebble := exec.CommandContext(t.Context(), testTool(t, "pebble"), "-config", "pebble.json", "-strict", "-dnsserver", w.dns)
	pebble.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1")
	w.ca = startDaemon(t, w.dir, "pebble", pebble)
	waitFor(t, w.adm)
	waitFor(t, w.api)
}

func (w *acmeWorld) acmeRoots(t *testing.T) *x509.CertPool {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.adm+"/roots/0", http.NoBody)
	mustSucceed(t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.dev, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Do(req)
	mustSucceed(t, err)
	defer func() { mustSucceed(t, res.Body.Close()) }()
	text, err := io.ReadAll(res.Body)
	mustSucceed(t, err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatalf("no root: %s", text)
	}
	return roots
}

func (w *acmeWorld) configure(t *testing.T, pair string, domains ...string) {
	t.Helper()
	if pair != "" {
		pair += ", "
	}
	config := fmt.Sprintf(`listen: %q
state: state
tls: {%sacme: {domains: [%s], directory: "https://%s/dir", ca: pki/ca.pem, accept_tos: true}}
callers:
  dev: {hmac: {scheme: github, keys: [{file: key}]}}
hooks:
  start: {callers: [dev], command: [/bin/true]}
`, w.server, pair, strings.Join(domains, ", "), w.api)
	mustSucceed(t, os.WriteFile(filepath.Join(w.dir, "sallyport.yaml"), []byte(config), 0o600))
	mustSucceed(t, os.WriteFile(filepath.Join(w.dir, "key"), bytes.Repeat([]byte("k"), 32), 0o600))
}

func (w *acmeWorld) serve(t *testing.T) *daemon {
	t.Helper()
	d := startDaemon(t, w.dir, "sallyport", program(t, w.dir, "serve"))
	d.awaitLog(t, `"msg":"serving"`)
	return d
}

// fetchCertificate returns the certificate that the server shows for a name, if the client trusts it.
func (w *acmeWorld) fetchCertificate(t *testing.T, name string, roots *x509.CertPool, protos ...string) (*x509.Certificate, error) {
	t.Helper()
	conf := &tls.Config{ServerName: name, RootCAs: roots, NextProtos: protos, MinVersion: tls.VersionTLS13}
	if name == "" {
		conf.InsecureSkipVerify = true // else the client would verify this name, too
	}
	conn, err := (&tls.Dialer{Config: conf}).DialContext(t.Context(), "tcp", w.server)
	if err != nil {
		return nil, err
	}
	defer func() { mustSucceed(t, conn.Close()) }()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// checkPrivateFiles checks that no other user can read the stored keys and certificates.
func (w *acmeWorld) checkPrivateFiles(t *testing.T) {
	t.Helper()
	var names []string
	mustSucceed(t, filepath.Walk(filepath.Join(w.dir, "state", "acme"), func(path string, info os.FileInfo, err error) error {
		mustSucceed(t, err)
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			t.Errorf("%s has mode %04o", path, mode)
		}
		names = append(names, info.Name())
		return nil
	}))
	if !slices.Contains(names, "hooks.example.com") || !slices.Contains(names, "acme_account+key") {
		t.Errorf("the stored files are %q", names)
	}
}

// daemon is a process that a test starts.
type daemon struct {
	file string // its log
	stop func() // ends it; the end of the test calls it, too
}

// startDaemon starts a process, which writes to DIR/NAME.log.
func startDaemon(t *testing.T, dir, name string, cmd *exec.Cmd) *daemon {
	t.Helper()
	d := &daemon{file: filepath.Join(dir, name+".log")}
	log, err := os.Create(d.file)
	mustSucceed(t, err)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	mustSucceed(t, cmd.Start())
	d.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err := cmd.Wait()
		if name == "sallyport" && err != nil {
			t.Errorf("ending %s: %v", name, err)
		}
		mustSucceed(t, log.Close())
	})
	t.Cleanup(func() {
		d.stop()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, d.readLog(t))
		}
	})
	return d
}

func (d *daemon) readLog(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(d.file)
	mustSucceed(t, err)
	return string(text)
}

// awaitLog waits until the log contains all of the texts.
func (d *daemon) awaitLog(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		eventually(t, text+" in "+filepath.Base(d.file), func() bool { return strings.Contains(d.readLog(t), text) })
	}
}

// awaitURL returns the address that the server logs.
func (d *daemon) awaitURL(t *testing.T) string {
	t.Helper()
	address := regexp.MustCompile(`"msg":"serving","address":"(https://[^"]+)"`)
	d.awaitLog(t, `"msg":"serving"`)
	return address.FindStringSubmatch(d.readLog(t))[1]
}

// eventually calls ask until it returns true.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(2 * time.Minute); !ask(); {
		select {
		case <-deadline:
			t.Fatal("timed out waiting for ", what)
		case <-tick.C:
		}
	}
}
