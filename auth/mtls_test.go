package auth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"sallyport/auth"
)

type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert = a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}).Leaf
	return a
}

// issue signs a certificate; the first one is the authority's own.
func (a *authority) issue(template *x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer, a.key = template, key, key
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) client(subject pkix.Name, dns []string, uris ...string) tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{Subject: subject, DNSNames: dns, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, text := range uris {
		u, err := url.Parse(text)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	return a.issue(template)
}

// line is a TLS server and its client; each call is a new connection.
type line struct {
	t      *testing.T
	server *tls.Config
	client *tls.Config
}

func (a *authority) line(cert *tls.Certificate) *line {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	server := a.issue(&x509.Certificate{DNSNames: []string{"localhost"}})
	l := &line{
		a.t,
		&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool},
		&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(1)},
	}
	if cert != nil {
		l.client.Certificates = []tls.Certificate{*cert}
	}
	return l
}

// connect returns the server's state of a connection over which data went both ways.
func (l *line) connect() (*tls.ConnectionState, error) {
	l.t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(l.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // of a test
	type answer struct {
		state tls.ConnectionState
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			answers <- answer{err: err}
			return
		}
		defer conn.Close() //nolint:errcheck // of a test
		server := tls.Server(conn, l.server)
		_, err = server.Write([]byte("x"))
		answers <- answer{server.ConnectionState(), err}
	}()
	dialer := tls.Dialer{Config: l.client}
	conn, err := dialer.DialContext(l.t.Context(), "tcp", listener.Addr().String())
	if err == nil {
		_, _ = io.ReadAll(conn) // takes the session ticket, too
		_ = conn.Close()
	}
	got := <-answers
	return &got.state, got.err
}

func (l *line) deliver() *auth.Delivery {
	l.t.Helper()
	state, err := l.connect()
	if err != nil {
		l.t.Fatal(err)
	}
	return &auth.Delivery{Header: http.Header{}, Body: []byte("{}"), TLS: state, Now: time.Now()}
}

func mtlsBench(t *testing.T) *auth.Callers {
	t.Helper()
	b := newBench(t)
	b.caller("etl").MTLS = &auth.MTLSSpec{URI: "spiffe://corp/etl"}
	b.caller("quay").MTLS = &auth.MTLSSpec{DNS: "Quay.example.com"}
	b.caller("cron").MTLS = &auth.MTLSSpec{CN: "cron"}
	return b.compile()
}

func TestACertificateIsWhomItNamesExactly(t *testing.T) {
	a, c := newAuthority(t), mtlsBench(t)
	cn := func(s string) pkix.Name { return pkix.Name{CommonName: s} }
	second := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "other"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "cron"},
	}}
	for _, x := range []struct {
		want string
		cert tls.Certificate
	}{
		{"etl", a.client(cn("x"), nil, "spiffe://corp/etl")},
		{"quay", a.client(cn("x"), []string{"other.example.com", "quay.EXAMPLE.com"})},
		{"cron", a.client(cn("cron"), nil)},
		{"", a.client(cn("x"), nil, "spiffe://corp/etl/2")},
		{"", a.client(cn("x"), nil, "spiffe://corp/ETL")},
		{"", a.client(cn("x"), nil, "spiffe://corp/other", "spiffe://corp/etl")}, // two are no SVID
		{"", a.client(cn("x"), []string{"*.example.com"})},
		{"", a.client(cn("x"), []string{"quay.example.com.evil.example"})},
		{"", a.client(cn("quay.example.com"), nil)},
		{"", a.client(cn("spiffe://corp/etl"), nil)},
		{"", a.client(cn("Cron"), nil)},
		{"", a.client(cn("x"), []string{"cron"})},
		{"", a.client(second, nil)},
		{"", a.client(pkix.Name{}, nil)},
	} {
		d := a.line(&x.cert).deliver()
		if x.want == "" {
			refuse(t, c, d, auth.Wrong)
			continue
		}
		if id := allow(t, c, d, x.want); id.Scheme != "mtls" || id.Key == "" || id.Replay != "" {
			t.Errorf("identity %+v", id)
		}
	}
}

func TestAResumedSessionIsJudgedAnew(t *testing.T) {
	a, c := newAuthority(t), mtlsBench(t)
	cert := a.client(pkix.Name{CommonName: "cron"}, nil)
	l := a.line(&cert)
	l.deliver()
	d := l.deliver()
	if !d.TLS.DidResume {
		t.Fatal("the session was not resumed")
	}
	allow(t, c, d, "cron")
	for _, at := range []time.Time{cert.Leaf.NotAfter.Add(time.Second), cert.Leaf.NotBefore.Add(-time.Second)} {
		d.Now = at
		refuse(t, c, d, auth.Stale)
	}
}

func TestACertificateThatIsNotVerifiedIsNone(t *testing.T) {
	a, c := newAuthority(t), mtlsBench(t)
	forged := newAuthority(t).client(pkix.Name{CommonName: "cron"}, nil)
	if _, err := a.line(&forged).connect(); err == nil {
		t.Error("the handshake took a certificate of another CA")
	}
	l := a.line(&forged)
	l.server.ClientAuth = tls.RequireAnyClientCert // a server that does not verify
	refuse(t, c, l.deliver(), auth.Wrong)
	refuse(t, c, a.line(nil).deliver(), auth.Absent)
	// Without a caller that has one, a certificate is not looked at.
	b := newBench(t)
	b.token("t", "X-T", secretA)
	good := a.client(pkix.Name{CommonName: "cron"}, nil)
	refuse(t, b.compile(), a.line(&good).deliver(), auth.Absent)
}

func TestARightCertificateDoesNotMakeGoodAWrongSignature(t *testing.T) {
	a := newAuthority(t)
	b := newBench(t)
	b.hmac("github", "github", secretA)
	b.jwt("ci", nil, b.key("", ring().hs256))
	b.caller("cron").MTLS = &auth.MTLSSpec{CN: "cron"}
	c := b.compile()
	cert := a.client(pkix.Name{CommonName: "cron"}, nil)
	d := a.line(&cert).deliver()
	allow(t, c, d, "cron")
	d.Header = signed(t, "github", secretB, "{}")
	refuse(t, c, d, auth.Wrong, "cron")
	d.Header = headers("Authorization", "Bearer x")
	refuse(t, c, d, auth.Malformed, "cron")
}
