package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/diag"
	"sallyport/internal/testenv"
)

// directory is an ACME server that answers each request with an error.
func directory(t *testing.T) (url string) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	return s.URL
}

func obtain(t *testing.T, s *certs.Renewals, state string, spec certs.ACMESpec) *certs.ACME {
	t.Helper()
	var p diag.List
	spec.AcceptTOS = true
	a := certs.LoadACME(&spec, t.TempDir(), state, s, time.Now(), &p)
	if a == nil {
		t.Fatal(p.All())
	}
	return a
}

// TestRenewals_SharedOrder: an order that two configurations share continues, and others end.
func TestRenewals_SharedOrder(t *testing.T) {
	url, other := directory(t), directory(t)
	const state = "/dev/null" // a goroutine that runs on for a moment after the test can leave no file there
	s := certs.NewRenewals(slog.New(slog.DiscardHandler))
	first := obtain(t, s, state, certs.ACMESpec{Domains: []string{"a.example.com", "b.example.com"}, Directory: url})
	s.Use(first)
	second := obtain(t, s, state, certs.ACMESpec{Domains: []string{"c.example.com", "a.example.com"}, Directory: url})
	if _, goesOn := first.Renewing("b.example.com"); !goesOn {
		t.Error("loading another configuration ended what the first still needs")
	}
	s.Use(second)
	was, _ := first.Renewing("a.example.com")
	is, goesOn := second.Renewing("a.example.com")
	if was != is || !goesOn {
		t.Error("what both have does not go on")
	}
	if _, goesOn := first.Renewing("b.example.com"); goesOn {
		t.Error("what the second has not goes on")
	}

	third := obtain(t, s, state, certs.ACMESpec{Domains: []string{"a.example.com"}, Directory: other})
	s.Use(third)
	if is, _ := third.Renewing("a.example.com"); is == was {
		t.Error("another CA, and the same renewal")
	}
	s.Use(nil)
	for _, a := range []*certs.ACME{first, third} {
		if _, goesOn := a.Renewing("a.example.com"); goesOn {
			t.Error("something goes on that nothing needs")
		}
	}
}

// renewing returns the stacks of the goroutines that request something from a CA.
func renewing() []string {
	return testenv.FindGoroutines("certs.(*renewal)", "crypto/acme")
}

// TestRenewals_HangingOrder: a CA never answers the requests for several names. Each name has a separate request in
// progress, which ends with the renewals, and the log has no error about a request that was ended.
func TestRenewals_HangingOrder(t *testing.T) {
	var held atomic.Int64
	ca := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		held.Add(1)
		defer held.Add(-1)
		<-r.Context().Done()
	}))
	t.Cleanup(ca.Close)
	roots := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw}), 0o600))
	var log testenv.Log
	s := certs.NewRenewals(slog.New(slog.NewJSONHandler(&log, nil)))
	s.Use(obtain(t, s, t.TempDir(), certs.ACMESpec{Domains: []string{"a.example.com", "b.example.com", "c.example.com"}, Directory: ca.URL, CA: roots}))
	testenv.WaitUntil(t, "three requests at once", func() bool { return held.Load() == 3 })
	s.Use(nil)
	testenv.WaitUntil(t, "the end of the requests", func() bool { return held.Load() == 0 })
	testenv.WaitUntil(t, "the end of the renewals", func() bool { return len(renewing()) == 0 })
	if text := log.String(); text != "" {
		t.Errorf("the log has\n%s", text)
	}
}

// TestRenewals_StopConnecting: a CA accepts connections and sends nothing. The end of the renewals closes them.
func TestRenewals_StopConnecting(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	var log testenv.Log
	s := certs.NewRenewals(slog.New(slog.NewJSONHandler(&log, nil)))
	s.Use(obtain(t, s, t.TempDir(), certs.ACMESpec{Domains: []string{"a.example.com"}, Directory: "https://" + l.Addr().String()}))
	conn, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { must(t, conn.Close()) })
	s.Use(nil)
	must(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Error("the connection stays open:", err)
	}
	testenv.WaitUntil(t, "the end of the renewals", func() bool { return len(renewing()) == 0 })
	if text := log.String(); text != "" {
		t.Errorf("the log has\n%s", text)
	}
}

// storeCertificate stores a certificate as if it was obtained before.
func storeCertificate(t *testing.T, state, folder, name string, notAfter time.Time) *x509.Certificate {
	t.Helper()
	p := newCA(t, time.Now()).issue(t, nil, func(c *x509.Certificate) {
		c.DNSNames, c.NotBefore, c.NotAfter = []string{name}, notAfter.Add(-90*day), notAfter
	})
	dir := filepath.Join(state, "acme", folder)
	must(t, os.MkdirAll(dir, 0o700))
	write(t, dir, name, p.key+p.cert, 0o600)
	return parseOne(t, p.cert)
}

// TestLoadACME_StoredCertificate: a stored certificate is shown at once.
func TestLoadACME_StoredCertificate(t *testing.T) {
	state, now := t.TempDir(), time.Now()
	good := storeCertificate(t, state, "ca.example.com_dir", "good.example.com", now.Add(10*day))
	storeCertificate(t, state, "ca.example.com_dir", "ended.example.com", now.Add(-time.Hour))
	storeCertificate(t, state, "staging.example.com_dir", "staging.example.com", now.Add(10*day))
	domains := []string{"good.example.com", "ended.example.com", "staging.example.com", "none.example.com"}
	a := obtain(t, certs.NewRenewals(slog.New(slog.DiscardHandler)), state, certs.ACMESpec{Domains: domains, Directory: "https://ca.example.com/dir"})
	want := certs.Expiry{What: "server certificate", File: "acme", Subject: "good.example.com", NotAfter: good.NotAfter, Ahead: 14 * day}
	if got := a.Expiries(); !slices.Equal(got, []certs.Expiry{want}) {
		t.Errorf("ends are %v, want %v", got, want)
	}
	dir := t.TempDir()
	makeDevCerts(t, dir, now)
	others := devServer(t, dir)
	others.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &others.Certificates[0], nil }
	cfg := a.AddTo(others)
	if _, err, _ := handshake(t, cfg, &tls.Config{RootCAs: devCA(t, dir), ServerName: "localhost", MinVersion: tls.VersionTLS13}); err != nil {
		t.Error("what was served before:", err)
	}
	for _, name := range domains {
		var shown *x509.Certificate
		_, err, _ := handshake(t, cfg, &tls.Config{
			ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"acme-tls/1", "h2"},
			VerifyConnection: func(s tls.ConnectionState) error {
				shown = s.PeerCertificates[0]
				if s.NegotiatedProtocol != "h2" {
					t.Errorf("speaks %q", s.NegotiatedProtocol)
				}
				return nil
			},
		})
		switch {
		case name == "good.example.com" && (err != nil || !shown.Equal(good)):
			t.Errorf("%s: %v", name, err)
		case name != "good.example.com" && (err == nil || !strings.Contains(err.Error(), "internal error")):
			t.Errorf("%s: %v, want no certificate", name, err)
		}
	}
}

// TestACME_AddToWithoutACME: without acme, the server does not offer the ACME protocol.
func TestACME_AddToWithoutACME(t *testing.T) {
	dir := t.TempDir()
	makeDevCerts(t, dir, time.Now())
	client := &tls.Config{RootCAs: devCA(t, dir), ServerName: "localhost", NextProtos: []string{"acme-tls/1"}, MinVersion: tls.VersionTLS13}
	var none *certs.ACME
	if _, err, _ := handshake(t, none.AddTo(devServer(t, dir)), client); err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("%v, want no application protocol", err)
	}
}
