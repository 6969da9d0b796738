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
	a.cert = a.issueCertificate(&x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}).Leaf
	return a
}

// issueCertificate signs a certificate; the first one is the authority's own.
func (a *authority) issueCertificate(template *x509.Certificate) tls.Certificate {
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

func (a *authority) issueClient(subject pkix.Name, dns []string, uris ...string) tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{Subject: subject, DNSNames: dns, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, text := range uris {
		u, err := url.Parse(text)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	return a.issueCertificate(template)
}

// issueURI issues a client certificate with a URI of exactly these bytes.
func (a *authority) issueURI(text string) tls.Certificate {
	a.t.Helper()
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(text)}})
	if err != nil {
		a.t.Fatal(err)
	}
	return a.issueCertificate(&x509.Certificate{
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}},
	})
}

// connection is a TLS server and its client; each call is a new connection.
type connection struct {
	t      *testing.T
	server *tls.Config
	client *tls.Config
}

func (a *authority) newConnection(cert *tls.Certificate) *connection {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	server := a.issueCertificate(&x509.Certificate{DNSNames: []string{"localhost"}})
	l := &connection{
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
func (l *connection) connect() (*tls.ConnectionState, error) {
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

func (l *connection) deliver() *auth.Delivery {
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
	b.clientCA = a.writeCA(b)
	return b
}

// writeCA keeps the authority's certificate in a file.
func (a *authority) writeCA(b *bench) string {
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

func TestMTLS_NamesCompareWhole(t *testing.T) {
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
		{"etl", a.issueClient(cn("x"), nil, "spiffe://corp/etl")},
		{"quay", a.issueClient(cn("x"), []string{"other.example.com", "quay.EXAMPLE.com"})},
		{"cron", a.issueClient(cn("cron"), nil)},
		{"etl", a.issueURI("spiffe://corp/etl")},
		{"web", a.issueURI("https://etl.example.com/%7Ea?b")},
		{"", a.issueURI("spiffe://corp/etl#")},
		{"", a.issueURI("SPIFFE://corp/etl")},
		{"", a.issueURI("spiffe://corp/etl?")},
		{"", a.issueURI("spiffe://corp/%65tl")},
		{"", a.issueURI("spiffe://@corp/etl")},
		{"", a.issueURI("HTTPS://etl.example.com/%7Ea?b")},
		{"", a.issueURI("https://etl.example.com/%7Ea?b#")},
		{"", a.issueURI("https://etl.example.com/~a?b")},
		{"", a.issueClient(cn("x"), nil, "spiffe://corp/etl/2")},
		{"", a.issueClient(cn("x"), nil, "spiffe://corp/ETL")},
		{"", a.issueClient(cn("x"), nil, "spiffe://corp/other", "spiffe://corp/etl")}, // an SVID has exactly one
		{"", a.issueClient(cn("x"), []string{"*.example.com"})},
		{"", a.issueClient(cn("x"), []string{"quay.example.com.evil.example"})},
		{"", a.issueClient(cn("quay.example.com"), nil)},
		{"", a.issueClient(cn("spiffe://corp/etl"), nil)},
		{"", a.issueClient(cn("Cron"), nil)},
		{"", a.issueClient(cn("x"), []string{"cron"})},
		{"", a.issueClient(second, nil)},
		{"", a.issueClient(pkix.Name{}, nil)},
	} {
		d := a.newConnection(&x.cert).deliver()
		if x.want == "" {
			newRefusal(t, c, d, auth.Wrong)
			continue
		}
		if id := wantCaller(t, c, d, x.want); id.Kind != "mtls" || id.Key == "" || id.Replay != "" {
			t.Errorf("identity %+v", id)
		}
	}
}

func TestMTLS_ResumedSession(t *testing.T) {
	a := newAuthority(t)
	c := a.bench()
	cert := a.issueClient(pkix.Name{CommonName: "cron"}, nil)
	l := a.newConnection(&cert)
	l.deliver()
	d := l.deliver()
	if !d.TLS.DidResume {
		t.Fatal("the session was not resumed")
	}
	wantCaller(t, c, d, "cron")
	for _, at := range []time.Time{cert.Leaf.NotAfter.Add(time.Second), cert.Leaf.NotBefore.Add(-time.Second)} {
		d.Now = at
		newRefusal(t, c, d, auth.Stale)
	}
}

func TestMTLS_Unverified(t *testing.T) {
	a := newAuthority(t)
	c := a.bench()
	forged := newAuthority(t).issueClient(pkix.Name{CommonName: "cron"}, nil)
	newRefusal(t, c, a.newConnection(&forged).deliver(), auth.Wrong)
	newRefusal(t, c, a.newConnection(nil).deliver(), auth.Absent)
	// If no caller has a certificate, the client's certificate is ignored.
	b := newBench(t)
	b.addToken("t", "X-T", secretA)
	good := a.issueClient(pkix.Name{CommonName: "cron"}, nil)
	newRefusal(t, b.compile(), a.newConnection(&good).deliver(), auth.Absent)
}

func TestMTLS_WrongSignatureDecides(t *testing.T) {
	a := newAuthority(t)
	b := a.trusted()
	b.addHMAC("github", "github", secretA)
	b.addJWT("ci", nil, b.writeKey("", testKeys().hs256))
	b.caller("cron").MTLS = &auth.MTLSSpec{CN: "cron"}
	c := b.compile()
	cert := a.issueClient(pkix.Name{CommonName: "cron"}, nil)
	d := a.newConnection(&cert).deliver()
	wantCaller(t, c, d, "cron")
	d.Header = signed(t, "github", secretB, "{}")
	newRefusal(t, c, d, auth.Wrong, "cron")
	d.Header = headers("Authorization", "Bearer x")
	newRefusal(t, c, d, auth.Malformed, "cron")
}

func TestMTLS_OwnCA(t *testing.T) {
	ours, partner := newAuthority(t), newAuthority(t)
	b := ours.trusted()
	b.caller("etl").MTLS = &auth.MTLSSpec{URI: "spiffe://corp/etl"}
	b.caller("cron").MTLS = &auth.MTLSSpec{CN: "cron"}
	b.caller("partner").MTLS = &auth.MTLSSpec{CN: "job", CA: partner.writeCA(b)}
	b.caller("pinned").MTLS = &auth.MTLSSpec{CN: "cron", CA: partner.writeCA(b)} // another one of that name
	c := b.compile()
	cert := func(a *authority, cn, uri string) *auth.Delivery {
		t.Helper()
		one := a.issueClient(pkix.Name{CommonName: cn}, nil, uri)
		return a.newConnection(&one).deliver()
	}
	wantCaller(t, c, cert(ours, "x", "spiffe://corp/etl"), "etl")
	wantCaller(t, c, cert(partner, "job", "x:y"), "partner")
	wantCaller(t, c, cert(ours, "cron", "x:y"), "cron")
	wantCaller(t, c, cert(partner, "cron", "x:y"), "pinned")
	wantCaller(t, c, cert(partner, "cron", "x:y"), "pinned", "cron") // for any hook
	newRefusal(t, c, cert(partner, "x", "spiffe://corp/etl"), auth.Wrong)
	newRefusal(t, c, cert(ours, "job", "x:y"), auth.Wrong)
}

func TestMTLS_Fingerprint(t *testing.T) {
	ca := newAuthority(t)
	self := newAuthority(t) // its first certificate, as openssl req -x509 makes them
	selfPair := tls.Certificate{Certificate: [][]byte{self.cert.Raw}, PrivateKey: self.key, Leaf: self.cert}
	signed, other := ca.issueClient(pkix.Name{CommonName: "x"}, nil), ca.issueClient(pkix.Name{CommonName: "x"}, nil)
	child := self.issueClient(pkix.Name{CommonName: "ca"}, nil)
	sum := func(c tls.Certificate) string {
		s := sha256.Sum256(c.Leaf.Raw)
		return strings.ToUpper(strings.Join(strings.Split(fmt.Sprintf("% x", s), " "), ":"))
	}
	b := ca.trusted()
	b.caller("self").MTLS = &auth.MTLSSpec{Fingerprint: auth.Fingerprints{sum(selfPair), sum(signed)}}
	c := b.compile()
	if id := wantCaller(t, c, ca.newConnection(&selfPair).deliver(), "self"); len(id.Key) != 64 {
		t.Errorf("key %q", id.Key)
	}
	wantCaller(t, c, ca.newConnection(&signed).deliver(), "self")
	newRefusal(t, c, ca.newConnection(&other).deliver(), auth.Wrong)
	newRefusal(t, c, ca.newConnection(&child).deliver(), auth.Wrong) // the pinned certificate may sign, but is not a CA here
	late := ca.newConnection(&selfPair).deliver()
	late.Now = self.cert.NotAfter.Add(time.Second)
	newRefusal(t, c, late, auth.Stale)

	// Without a CA, a certificate that a CA signed is not trusted.
	b.clientCA = ""
	c = b.compile()
	wantCaller(t, c, ca.newConnection(&selfPair).deliver(), "self")
	newRefusal(t, c, ca.newConnection(&signed).deliver(), auth.Wrong)
	// With a CA of the caller, a self-signed certificate is not trusted by itself.
	b.specs["self"].MTLS.CA = ca.writeCA(b)
	c = b.compile()
	wantCaller(t, c, ca.newConnection(&signed).deliver(), "self")
	newRefusal(t, c, ca.newConnection(&selfPair).deliver(), auth.Wrong)
}

func TestMTLS_SharedName(t *testing.T) {
	ours, partner := newAuthority(t), newAuthority(t)
	b := ours.trusted()
	b.caller("a").MTLS = &auth.MTLSSpec{DNS: "x.example.com"}
	b.caller("b").MTLS = &auth.MTLSSpec{DNS: "X.example.com", CA: partner.writeCA(b)}
	if got := b.problems(); got != "" {
		t.Error(got)
	}
	b.caller("c").MTLS = &auth.MTLSSpec{DNS: "X.example.com"}
	b.wantProblem("warning callers.c.mtls", `the caller "a"`)
}
