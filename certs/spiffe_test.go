package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/diag"
	"sallyport/internal/spiffetest"
)

// spiffe is a Workload API, and a server that uses it.
type spiffe struct {
	t         *testing.T
	agent     *spiffetest.Agent
	socket    string
	corp      *spiffetest.Domain
	workloads *certs.Workloads
}

func newSPIFFE(t *testing.T) *spiffe {
	t.Helper()
	s := &spiffe{t: t, socket: "unix://" + filepath.Join(t.TempDir(), "agent.sock"), workloads: certs.NewWorkloads(slog.New(slog.DiscardHandler))}
	s.listen()
	s.corp = s.domain("spiffe://corp")
	t.Cleanup(func() { s.workloads.Retain("") })
	return s
}

func (s *spiffe) listen() {
	s.t.Helper()
	agent, err := spiffetest.Listen(strings.TrimPrefix(s.socket, "unix://"))
	must(s.t, err)
	s.agent = agent
	s.t.Cleanup(agent.Stop)
}

func (s *spiffe) domain(id string) *spiffetest.Domain {
	s.t.Helper()
	d, err := spiffetest.NewDomain(id)
	must(s.t, err)
	return d
}

func (s *spiffe) svid(d *spiffetest.Domain, id string) tls.Certificate {
	s.t.Helper()
	pair, err := d.SVID(id, "localhost")
	must(s.t, err)
	return pair
}

// issue issues a new certificate to the server.
func (s *spiffe) issue(federated ...*spiffetest.Domain) {
	s.t.Helper()
	must(s.t, s.agent.Issue(s.svid(s.corp, "spiffe://corp/sallyport"), s.corp, federated...))
}

func (s *spiffe) load() (*tls.Config, *certs.Clients, []string) {
	s.t.Helper()
	var p diag.List
	spec := certs.Spec{SPIFFE: &certs.SPIFFESpec{Socket: s.socket}}
	cfg, _ := certs.Load(spec, s.t.TempDir(), time.Now(), p.At("tls"))
	clients := certs.LoadClients(spec, certs.Named{}, s.t.TempDir(), time.Now(), s.workloads, p.At("tls"))
	return clients.AddTo(cfg), clients, problemTexts(&p)
}

// connect connects to the server with a certificate. The client trusts the bundle of a domain.
func (s *spiffe) connect(cfg *tls.Config, by *spiffetest.Domain, show *tls.Certificate) (tls.ConnectionState, error) {
	s.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(by.CA)
	client := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	if show != nil {
		client.Certificates = []tls.Certificate{*show}
	}
	state, err, serverErr := handshake(s.t, cfg, client)
	return state, errors.Join(err, serverErr)
}

// eventually repeats ask until it returns no error.
func (s *spiffe) eventually(what string, ask func() error) {
	s.t.Helper()
	deadline := time.After(time.Minute)
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			s.t.Fatalf("timed out waiting for %s: %v", what, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestSPIFFEID_Exact shows certificates with a URI that is only equal to a SPIFFE ID after it is parsed.
func TestSPIFFEID_Exact(t *testing.T) {
	s := newSPIFFE(t)
	s.issue()
	_, clients, found := s.load()
	if len(found) > 0 {
		t.Fatal(found)
	}
	for uri, want := range map[string]bool{
		"spiffe://corp/etl": true, "spiffe://corp/etl#": false, "SPIFFE://corp/etl": false, "spiffe://corp/etl?": false, "spiffe://CORP/etl": false,
		"spiffe://corp:1/etl": false, "spiffe://corp/%65tl": false, "spiffe://corp/../etl": false, "https://corp/etl": false,
	} {
		pair, err := s.corp.Raw(uri)
		must(t, err)
		if err := clients.BySPIFFE()([]*x509.Certificate{pair.Leaf}, time.Now()); (err == nil) != want {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// TestWorkloads_ServerSVID: the server shows the SVID that the Workload API issued last.
func TestWorkloads_ServerSVID(t *testing.T) {
	s := newSPIFFE(t)
	s.issue()
	cfg, clients, found := s.load()
	if len(found) > 0 {
		t.Fatal(found)
	}
	if ends := clients.Expiries(); len(ends) != 2 || ends[0].What != "SVID" || ends[0].Subject != "spiffe://corp/sallyport" || ends[0].Ahead > time.Until(ends[0].NotAfter) ||
		ends[1].What != "client CA" || ends[1].Subject != "the bundle of spiffe://corp" {
		t.Errorf("what ends is %v", ends)
	}
	etl := s.svid(s.corp, "spiffe://corp/etl")
	state, err := s.connect(cfg, s.corp, &etl)
	must(t, err)
	must(t, clients.BySPIFFE()(state.PeerCertificates, time.Now()))
	if lines := clients.Describe(); len(lines) != 1 || !strings.Contains(lines[0], "this server is spiffe://corp/sallyport until ") || !strings.HasSuffix(lines[0], "; trust domains corp") {
		t.Errorf("%q", lines)
	}

	// The next bundle and certificate are used without a reload, and the old CA is not trusted any more, also on open
	// connections.
	old := s.corp
	s.corp = s.domain("spiffe://corp")
	s.issue()
	s.eventually("the new certificate", func() error { _, err := s.connect(cfg, s.corp, nil); return err })
	if err := clients.BySPIFFE()(state.PeerCertificates, time.Now()); err == nil {
		t.Error("a certificate of a CA that is in the bundle no more is believed")
	}
	if _, err := s.connect(cfg, s.corp, &etl); err == nil {
		t.Error("and gets through the handshake")
	}
	if _, err := s.connect(cfg, old, nil); err == nil {
		t.Error("the server shows what it showed before")
	}
	renewed := s.svid(s.corp, "spiffe://corp/etl")
	_, err = s.connect(cfg, s.corp, &renewed)
	must(t, err)
}

// TestSPIFFE_TrustDomains: the bundle of a trust domain verifies only SVIDs of that domain.
func TestSPIFFE_TrustDomains(t *testing.T) {
	s := newSPIFFE(t)
	partner := s.domain("spiffe://partner")
	s.issue(partner)
	cfg, clients, found := s.load()
	if len(found) > 0 {
		t.Fatal(found)
	}
	trust := clients.BySPIFFE()
	for name, row := range map[string]struct {
		by   *spiffetest.Domain
		id   string
		want bool
	}{
		"own":                      {s.corp, "spiffe://corp/etl", true},
		"federated":                {partner, "spiffe://partner/etl", true},
		"federated, of another's":  {partner, "spiffe://corp/etl", false},
		"own, of another's":        {s.corp, "spiffe://partner/etl", false},
		"unknown":                  {s.corp, "spiffe://stranger/etl", false},
		"of the name, by a forger": {s.domain("spiffe://corp"), "spiffe://corp/etl", false},
		"no SPIFFE ID":             {s.corp, "https://corp/etl", false},
	} {
		pair := s.svid(row.by, row.id)
		if err := trust([]*x509.Certificate{pair.Leaf}, time.Now()); (err == nil) != row.want {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.connect(cfg, s.corp, &pair); (err == nil) != row.want {
			t.Errorf("%s, in the handshake: %v", name, err)
		}
	}
	if err := trust([]*x509.Certificate{s.corp.CA}, time.Now()); err == nil {
		t.Error("the CA itself is believed")
	}
	// After a domain is removed from the federation, it is not trusted.
	pair := s.svid(partner, "spiffe://partner/etl")
	s.issue()
	s.eventually("the smaller bundle", func() error {
		if trust([]*x509.Certificate{pair.Leaf}, time.Now()) == nil {
			return errors.New("believed")
		}
		return nil
	})
}

// TestWorkloads_KeepConnection: configurations with one socket share its connection.
func TestWorkloads_KeepConnection(t *testing.T) {
	s := newSPIFFE(t)
	s.issue()
	cfg, _, _ := s.load()
	s.agent.Stop() // so a second connection could not be made
	again, _, found := s.load()
	if len(found) > 0 {
		t.Fatal(found)
	}
	for _, c := range []*tls.Config{cfg, again} {
		_, err := s.connect(c, s.corp, nil)
		must(t, err)
	}
	// The agent listens again, with a new certificate.
	s.listen()
	s.corp = s.domain("spiffe://corp")
	s.issue()
	s.eventually("the certificate after the agent's absence", func() error { _, err := s.connect(again, s.corp, nil); return err })
	s.workloads.Retain(s.socket)
	if !slices.Equal(s.workloads.Open(), []string{s.socket}) {
		t.Errorf("connected: %v", s.workloads.Open())
	}
	s.workloads.Retain("")
	if len(s.workloads.Open()) > 0 {
		t.Errorf("connected: %v", s.workloads.Open())
	}
}

// TestWorkloads_WatchAgain: a watch that the Workload API ends begins again.
func TestWorkloads_WatchAgain(t *testing.T) {
	s := newSPIFFE(t)
	s.workloads.PauseFor(time.Millisecond)
	s.issue()
	cfg, _, _ := s.load()
	s.agent.Cancel() // the library treats this as the end
	s.corp = s.domain("spiffe://corp")
	s.issue()
	s.eventually("the certificate after the end of the watch", func() error { _, err := s.connect(cfg, s.corp, nil); return err })
}

// TestWorkloads_NoCertificate: without a certificate from the Workload API, nothing is served.
func TestWorkloads_NoCertificate(t *testing.T) {
	s := newSPIFFE(t)
	s.workloads.WaitFor(100 * time.Millisecond)
	refused := func(want string) {
		t.Helper()
		_, _, found := s.load()
		if len(found) != 1 || !strings.HasPrefix(found[0], "error tls.spiffe.socket: ") || !strings.Contains(found[0], want) {
			t.Errorf("%q, want %q", found, want)
		}
	}
	refused("no identity issued") // it answers, but has nothing for this server
	s.agent.Stop()
	refused("waiting 100ms for a certificate from unix://")
	for _, socket := range []string{"", "tcp://127.0.0.1:1", "/run/agent.sock", "unix:agent.sock", "unix://agent.sock", "unix:///a?b"} {
		s.socket = socket
		refused(map[bool]string{true: "is missing", false: "is not a Unix socket"}[socket == ""])
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777))
	s.socket = "unix://" + dir + "/agent.sock"
	refused("in a folder that other users may write to")
	if len(s.workloads.Open()) > 0 {
		t.Errorf("connected: %v", s.workloads.Open())
	}
}

// TestWorkloads_CancelWait stops a server while it waits for a Workload API that does not answer.
func TestWorkloads_CancelWait(t *testing.T) {
	s := &spiffe{t: t, socket: "unix://" + filepath.Join(t.TempDir(), "agent.sock"), workloads: certs.NewWorkloads(slog.New(slog.DiscardHandler))}
	accepted, stop, err := spiffetest.Hang(strings.TrimPrefix(s.socket, "unix://"))
	must(t, err)
	t.Cleanup(stop)
	ctx, cancel := context.WithCancel(t.Context())
	s.workloads.WaitFor(time.Hour)
	s.workloads.Until(ctx)
	go func() { <-accepted; cancel() }()
	if _, _, found := s.load(); len(found) != 1 {
		t.Errorf("%q", found)
	}
	if len(s.workloads.Open()) > 0 {
		t.Errorf("connected: %v", s.workloads.Open())
	}
}

// TestWorkloads_WithFiles: with a certificate from a file, the server does not show the SVID.
func TestWorkloads_WithFiles(t *testing.T) {
	s := newSPIFFE(t)
	s.issue()
	dir, now := t.TempDir(), time.Now()
	writeValidFiles(t, dir, now)
	spec := certs.Spec{Cert: "s.pem", Key: "s.key", SPIFFE: &certs.SPIFFESpec{Socket: s.socket}}
	var p diag.List
	cfg, _ := certs.Load(spec, dir, now, p.At("tls"))
	cfg = certs.LoadClients(spec, certs.Named{}, dir, now, s.workloads, p.At("tls")).AddTo(cfg)
	if len(p.All()) > 0 || cfg.GetCertificate != nil || len(cfg.Certificates) != 1 {
		t.Errorf("%q", problemTexts(&p))
	}
}
