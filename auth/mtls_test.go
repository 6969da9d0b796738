package auth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
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
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(30*24*time.Hour)
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

// uri issues a client certificate with a URI of exactly these bytes.
func (a *authority) uri(text string) tls.Certificate {
	a.t.Helper()
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(text)}})
	if err != nil {
		a.t.Fatal(err)
	}
	return a.issue(&x509.Certificate{
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}},
	})
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
		&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert}, // it verifies nothing
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

// trusted returns a bench with the authority as tls.client_ca.
func (a *authority) trusted() *bench {
	a.t.Helper()
	b := newBench(a.t)
	b.clientCA = a.file(b)
	return b
}

// file keeps the authority's certificate in a file.
func (a *authority) file(b *bench) string {
	a.t.Helper()
	name := a.cert.SerialNumber.String() + ".pem"
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	if err := os.WriteFile(filepath.Join(b.dir, name), text, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return name
}

func (a *authority) bench() *auth.Callers {
	a.t.Helper()
	b := a.trusted()
	b.caller("etl").MTLS = &auth.MTLSSpec{URI: "spiffe://corp/etl"}
	b.caller("web").MTLS = &auth.MTLSSpec{URI: "https://etl.example.com/%7Ea?b"}
	b.caller("quay").MTLS = &auth.MTLSSpec{DNS: "Quay.example.com"}
	b.caller("cron").MTLS = &auth.MTLSSpec{CN: "cron"}
	return b.compile()
}

func TestACertificateIsWhomItNamesExactly(t *testing.T) {
	a := newAuthority(t)
	c := a.bench()
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
		{"etl", a.uri("spiffe://corp/etl")},
		{"web", a.uri("https://etl.example.com/%7Ea?b")},
		{"", a.uri("spiffe://corp/etl#")},
		{"", a.uri("SPIFFE://corp/etl")},
		{"", a.uri("spiffe://corp/etl?")},
		{"", a.uri("spiffe://corp/%65tl")},
		{"", a.uri("spiffe://@corp/etl")},
		{"", a.uri("HTTPS://etl.example.com/%7Ea?b")},
		{"", a.uri("https://etl.example.com/%7Ea?b#")},
		{"", a.uri("https://etl.example.com/~a?b")},
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
	a := newAuthority(t)
	c := a.bench()
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
	a := newAuthority(t)
	c := a.bench()
	forged := newAuthority(t).client(pkix.Name{CommonName: "cron"}, nil)
	refuse(t, c, a.line(&forged).deliver(), auth.Wrong)
	refuse(t, c, a.line(nil).deliver(), auth.Absent)
	// Without a caller that has one, a certificate is not looked at.
	b := newBench(t)
	b.token("t", "X-T", secretA)
	good := a.client(pkix.Name{CommonName: "cron"}, nil)
	refuse(t, b.compile(), a.line(&good).deliver(), auth.Absent)
}

func TestARightCertificateDoesNotMakeGoodAWrongSignature(t *testing.T) {
	a := newAuthority(t)
	b := a.trusted()
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

func TestACallerIsBelievedByItsOwnCAsAlone(t *testing.T) {
	ours, partner := newAuthority(t), newAuthority(t)
	b := ours.trusted()
	b.caller("etl").MTLS = &auth.MTLSSpec{URI: "spiffe://corp/etl"}
	b.caller("cron").MTLS = &auth.MTLSSpec{CN: "cron"}
	b.caller("partner").MTLS = &auth.MTLSSpec{CN: "job", CA: partner.file(b)}
	b.caller("pinned").MTLS = &auth.MTLSSpec{CN: "cron", CA: partner.file(b)} // another one of that name
	c := b.compile()
	cert := func(a *authority, cn, uri string) *auth.Delivery {
		t.Helper()
		one := a.client(pkix.Name{CommonName: cn}, nil, uri)
		return a.line(&one).deliver()
	}
	allow(t, c, cert(ours, "x", "spiffe://corp/etl"), "etl")
	allow(t, c, cert(partner, "job", "x:y"), "partner")
	allow(t, c, cert(ours, "cron", "x:y"), "cron")
	allow(t, c, cert(partner, "cron", "x:y"), "pinned")
	allow(t, c, cert(partner, "cron", "x:y"), "pinned", "cron") // whichever hook it is for
	refuse(t, c, cert(partner, "x", "spiffe://corp/etl"), auth.Wrong)
	refuse(t, c, cert(ours, "job", "x:y"), auth.Wrong)
}

func TestAPinnedCertificateNeedsACAUnlessItSignedItself(t *testing.T) {
	ca := newAuthority(t)
	self := newAuthority(t) // its first certificate, as openssl req -x509 makes them
	selfPair := tls.Certificate{Certificate: [][]byte{self.cert.Raw}, PrivateKey: self.key, Leaf: self.cert}
	signed, other := ca.client(pkix.Name{CommonName: "x"}, nil), ca.client(pkix.Name{CommonName: "x"}, nil)
	child := self.client(pkix.Name{CommonName: "ca"}, nil)
	sum := func(c tls.Certificate) string {
		s := sha256.Sum256(c.Leaf.Raw)
		return strings.ToUpper(strings.Join(strings.Split(fmt.Sprintf("% x", s), " "), ":"))
	}
	b := ca.trusted()
	b.caller("self").MTLS = &auth.MTLSSpec{Fingerprint: auth.Fingerprints{sum(selfPair), sum(signed)}}
	c := b.compile()
	if id := allow(t, c, ca.line(&selfPair).deliver(), "self"); len(id.Key) != 64 {
		t.Errorf("key %q", id.Key)
	}
	allow(t, c, ca.line(&signed).deliver(), "self")
	refuse(t, c, ca.line(&other).deliver(), auth.Wrong)
	refuse(t, c, ca.line(&child).deliver(), auth.Wrong) // that it may sign is nothing to us
	late := ca.line(&selfPair).deliver()
	late.Now = self.cert.NotAfter.Add(time.Second)
	refuse(t, c, late, auth.Stale)

	// Without a CA, what a CA signed is believed by nobody.
	b.clientCA = ""
	c = b.compile()
	allow(t, c, ca.line(&selfPair).deliver(), "self")
	refuse(t, c, ca.line(&signed).deliver(), auth.Wrong)
	// With one that the caller names, nothing stands for itself.
	b.specs["self"].MTLS.CA = ca.file(b)
	c = b.compile()
	allow(t, c, ca.line(&signed).deliver(), "self")
	refuse(t, c, ca.line(&selfPair).deliver(), auth.Wrong)
}

func TestCallersOfOneNameAndOneCAAreToldApartByNobody(t *testing.T) {
	ours, partner := newAuthority(t), newAuthority(t)
	b := ours.trusted()
	b.caller("a").MTLS = &auth.MTLSSpec{DNS: "x.example.com"}
	b.caller("b").MTLS = &auth.MTLSSpec{DNS: "X.example.com", CA: partner.file(b)}
	if got := b.problems(); got != "" {
		t.Error(got)
	}
	b.caller("c").MTLS = &auth.MTLSSpec{DNS: "X.example.com"}
	b.wantProblem("warning callers.c.mtls", `the caller "a"`)
}
