package certs_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/diag"
)

func makeDevCerts(t *testing.T, dir string, now time.Time) {
	t.Helper()
	made, err := certs.Dev(dir, now, false)
	if err != nil || !made {
		t.Fatalf("Dev: made %v, %v", made, err)
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(data)
	}
	return all
}

// TestDev_Files: Dev creates its five files and no other.
func TestDev_Files(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "certs")
	makeDevCerts(t, dir, time.Now())
	want := map[string]os.FileMode{"ca.pem": 0o644, "server.pem": 0o644, "server.key": 0o600, "client.pem": 0o644, "client.key": 0o600}
	for name, text := range contents(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if mode, ok := want[name]; !ok || info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v (known: %v)", name, info.Mode(), mode, ok)
		}
		if key := strings.Contains(text, "PRIVATE KEY"); key != strings.HasSuffix(name, ".key") {
			t.Errorf("%s holds a private key: %v", name, key)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

// handshake runs a real TLS connection between a server with cfg and a client.
func handshake(t *testing.T, cfg, client *tls.Config) (server tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback, in a test
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // test
	done := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		conn := tls.Server(raw, cfg)
		defer conn.Close() //nolint:errcheck // test
		if err := conn.HandshakeContext(t.Context()); err != nil {
			done <- err
			return
		}
		server = conn.ConnectionState()
		_, err = conn.Write([]byte("ok"))
		done <- err
	}()
	d := tls.Dialer{Config: client}
	conn, clientErr := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if clientErr == nil {
		// In TLS 1.3 the server's verdict on the client comes after the handshake.
		_, clientErr = io.ReadFull(conn, make([]byte, 2))
		conn.Close() //nolint:errcheck // test
	}
	return server, clientErr, <-done
}

func devCA(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(contents(t, dir)["ca.pem"])) {
		t.Fatal("ca.pem does not contain a certificate")
	}
	return pool
}

func devServer(t *testing.T, dir string) *tls.Config {
	t.Helper()
	var p diag.List
	spec := certs.Spec{Cert: "server.pem", Key: "server.key", ClientCA: "ca.pem"}
	cfg, _ := certs.Load(spec, dir, time.Now(), &p)
	cfg = certs.LoadClients(spec, certs.Named{}, dir, time.Now(), nil, &p).AddTo(cfg)
	if cfg == nil || len(p.All()) > 0 {
		t.Fatalf("loading what Dev made: %v", p.All())
	}
	return cfg
}

// TestDev_ServerNames: the server certificate is valid for each local name.
func TestDev_ServerNames(t *testing.T) {
	dir := t.TempDir()
	makeDevCerts(t, dir, time.Now())
	cfg := devServer(t, dir)
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		state, err, _ := handshake(t, cfg, &tls.Config{RootCAs: devCA(t, dir), ServerName: name, MinVersion: tls.VersionTLS13})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(state.PeerCertificates) > 0 {
			t.Errorf("%s: a client without a certificate has one", name)
		}
	}
	if _, err, _ := handshake(t, cfg, &tls.Config{RootCAs: devCA(t, dir), ServerName: "example.com", MinVersion: tls.VersionTLS13}); err == nil {
		t.Error("trusted as example.com")
	}
}

// TestDev_ClientURI: the client certificate is accepted, with its URI.
func TestDev_ClientURI(t *testing.T) {
	dir := t.TempDir()
	makeDevCerts(t, dir, time.Now())
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	client := &tls.Config{RootCAs: devCA(t, dir), ServerName: "localhost", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	state, err, serverErr := handshake(t, devServer(t, dir), client)
	if err != nil || serverErr != nil {
		t.Fatal(err, serverErr)
	}
	if len(state.PeerCertificates) == 0 || state.PeerCertificates[0].URIs[0].String() != "spiffe://localhost/dev" {
		t.Errorf("not verified as spiffe://localhost/dev: %+v", state.PeerCertificates)
	}
}

// TestDev_ClientOfAnotherCA: a client of another CA is refused although its names are the same.
func TestDev_ClientOfAnotherCA(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	makeDevCerts(t, dir, time.Now())
	makeDevCerts(t, other, time.Now())
	pair, err := tls.LoadX509KeyPair(filepath.Join(other, "client.pem"), filepath.Join(other, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	// The server sends its list of CAs, so an ordinary client would not send this certificate.
	force := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	client := &tls.Config{RootCAs: devCA(t, dir), ServerName: "localhost", GetClientCertificate: force, MinVersion: tls.VersionTLS13}
	if _, err, serverErr := handshake(t, devServer(t, dir), client); err == nil || serverErr == nil {
		t.Error("accepted")
	}
}

// TestDev_ServerAsClient: the server certificate is not accepted as a client certificate.
func TestDev_ServerAsClient(t *testing.T) {
	dir := t.TempDir()
	makeDevCerts(t, dir, time.Now())
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	client := &tls.Config{RootCAs: devCA(t, dir), ServerName: "localhost", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	if _, err, serverErr := handshake(t, devServer(t, dir), client); err == nil || serverErr == nil {
		t.Error("accepted")
	}
}

// TestDev_NameConstraints: the CA is restricted to the names of this machine.
func TestDev_NameConstraints(t *testing.T) {
	dir := t.TempDir()
	makeDevCerts(t, dir, time.Now())
	ca := parseOne(t, contents(t, dir)["ca.pem"])
	if !ca.IsCA || !ca.MaxPathLenZero || !ca.PermittedDNSDomainsCritical ||
		len(ca.PermittedDNSDomains) != 1 || len(ca.PermittedIPRanges) != 2 || len(ca.PermittedURIDomains) != 1 {
		t.Errorf("constraints are %+v", ca)
	}
}

// TestDev_FilesPresent: existing files are not touched without renew.
func TestDev_FilesPresent(t *testing.T) {
	dir := t.TempDir()
	makeDevCerts(t, dir, time.Now())
	before := contents(t, dir)
	made, err := certs.Dev(dir, time.Now(), false)
	if err == nil || made || !strings.Contains(err.Error(), "ca.pem exists already; --renew") {
		t.Errorf("made %v, %v", made, err)
	}
	wantSame(t, before, contents(t, dir))
}

func wantSame(t *testing.T, a, b map[string]string) {
	t.Helper()
	for name := range a {
		if a[name] != b[name] {
			t.Errorf("%s has changed", name)
		}
	}
}

// TestDevRenew_KeepFresh: renew keeps certificates that are valid for another week.
func TestDevRenew_KeepFresh(t *testing.T) {
	now := time.Now()
	for _, row := range []struct {
		name  string
		gone  string
		later time.Duration
		made  bool
	}{
		{"fresh", "", 0, false},
		{"8 days before the end", "", 82 * 24 * time.Hour, false},
		{"6 days before the end", "", 84 * 24 * time.Hour, true},
		{"a key is gone", "client.key", 0, true},
		{"the CA is gone", "ca.pem", 0, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			makeDevCerts(t, dir, now)
			if row.gone != "" {
				must(t, os.Remove(filepath.Join(dir, row.gone)))
			}
			before := contents(t, dir)
			made, err := certs.Dev(dir, now.Add(row.later), true)
			if err != nil || made != row.made {
				t.Fatalf("made %v, %v", made, err)
			}
			if !made {
				wantSame(t, before, contents(t, dir))
			} else if row.later == 0 {
				devServer(t, dir)
			}
		})
	}
}

// TestDevRenew_AfterCrash: renew replaces what a crash left incomplete.
func TestDevRenew_AfterCrash(t *testing.T) {
	now := time.Now()
	dir, anew := t.TempDir(), t.TempDir()
	makeDevCerts(t, dir, now)
	makeDevCerts(t, anew, now)
	must(t, os.Rename(filepath.Join(anew, "ca.pem"), filepath.Join(dir, "ca.pem")))
	must(t, os.Rename(filepath.Join(anew, "server.pem"), filepath.Join(dir, "server.pem")))
	if made, err := certs.Dev(dir, now, true); err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	devServer(t, dir)
}

// TestDevRenew_ForeignFiles: renew never replaces files that Dev did not create.
func TestDevRenew_ForeignFiles(t *testing.T) {
	now := time.Now()
	corp := newCA(t, now).issue(t, nil)
	for _, row := range []struct {
		name  string
		files map[string]string
	}{
		{"a real pair", map[string]string{"server.pem": corp.cert, "server.key": corp.key}},
		{"a key alone", map[string]string{"server.key": corp.key}},
		{"something else", map[string]string{"ca.pem": "notes"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range row.files {
				write(t, dir, name, text, 0o600)
			}
			if made, err := certs.Dev(dir, now, true); err == nil || made {
				t.Errorf("made %v, %v", made, err)
			}
			got := contents(t, dir)
			wantSame(t, row.files, got)
			if len(got) != len(row.files) {
				t.Errorf("files are now %v", got)
			}
		})
	}
}

// TestDev_NewKeys: each call makes new keys.
func TestDev_NewKeys(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	makeDevCerts(t, a, time.Now())
	makeDevCerts(t, b, time.Now())
	for name, text := range contents(t, a) {
		if bytes.Equal([]byte(text), []byte(contents(t, b)[name])) {
			t.Errorf("%s is the same in both", name)
		}
	}
}
