package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/diag"
)

// directory is an ACME server that is of no use.
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

func TestWhatTwoConfigurationsObtainAlikeGoesOn(t *testing.T) {
	url, other := directory(t), directory(t)
	const state = "/dev/null" // where nothing can be left by what goes on for a moment after the test
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

// kept puts a certificate where one is kept that was obtained before.
func kept(t *testing.T, state, folder, name string, notAfter time.Time) *x509.Certificate {
	t.Helper()
	p := newCA(t, time.Now()).issue(t, nil, func(c *x509.Certificate) {
		c.DNSNames, c.NotBefore, c.NotAfter = []string{name}, notAfter.Add(-90*day), notAfter
	})
	dir := filepath.Join(state, "acme", folder)
	must(t, os.MkdirAll(dir, 0o700))
	write(t, dir, name, p.key+p.cert, 0o600)
	return parseOne(t, p.cert)
}

func TestWhatWasObtainedIsShownAtOnce(t *testing.T) {
	state, now := t.TempDir(), time.Now()
	good := kept(t, state, "ca.example.com_dir", "good.example.com", now.Add(10*day))
	kept(t, state, "ca.example.com_dir", "ended.example.com", now.Add(-time.Hour))
	kept(t, state, "staging.example.com_dir", "staging.example.com", now.Add(10*day))
	domains := []string{"good.example.com", "ended.example.com", "staging.example.com", "none.example.com"}
	a := obtain(t, certs.NewRenewals(slog.New(slog.DiscardHandler)), state, certs.ACMESpec{Domains: domains, Directory: "https://ca.example.com/dir"})
	want := certs.Expiry{What: "server certificate", File: "acme", Subject: "good.example.com", NotAfter: good.NotAfter, Ahead: 14 * day}
	if got := a.Expiries(); !slices.Equal(got, []certs.Expiry{want}) {
		t.Errorf("ends are %v, want %v", got, want)
	}
	dir := t.TempDir()
	dev(t, dir, now)
	others := devServer(t, dir)
	others.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &others.Certificates[0], nil }
	cfg := a.Serve(others)
	if _, err, _ := handshake(t, cfg, &tls.Config{RootCAs: trust(t, dir), ServerName: "localhost", MinVersion: tls.VersionTLS13}); err != nil {
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

func TestWithoutACMEItsProtocolIsNotSpoken(t *testing.T) {
	dir := t.TempDir()
	dev(t, dir, time.Now())
	client := &tls.Config{RootCAs: trust(t, dir), ServerName: "localhost", NextProtos: []string{"acme-tls/1"}, MinVersion: tls.VersionTLS13}
	var none *certs.ACME
	if _, err, _ := handshake(t, none.Serve(devServer(t, dir)), client); err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("%v, want no application protocol", err)
	}
}
