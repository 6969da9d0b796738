package certs_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // signs what must be refused
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/diag"
)

// crl makes a CRL that revokes these serial numbers.
func (c ca) crl(t testing.TB, change func(*x509.RevocationList), serials ...int64) string {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: c.now.Add(-time.Hour), NextUpdate: c.now.Add(24 * time.Hour)}
	for _, n := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: c.now})
	}
	if change != nil {
		change(list)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, c.cert, c.key)
	must(t, err)
	return encode("X509 CRL", der)
}

// signed makes a CRL that the current Go does not make: without an end, or signed with SHA-1.
func (c ca) signed(t testing.TB, endless bool) string {
	t.Helper()
	hash, id := crypto.SHA1, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
	list := pkix.TBSCertificateList{ //nolint:staticcheck // SA1019: RevocationList makes no such CRL
		Version: 1, ThisUpdate: c.now.Add(-time.Hour).UTC(), NextUpdate: c.now.Add(time.Hour).UTC(),
	}
	if endless {
		hash, id = crypto.SHA256, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
		list.NextUpdate = time.Time{}
	}
	list.Signature.Algorithm = id
	_, err := asn1.Unmarshal(c.cert.RawSubject, &list.Issuer)
	must(t, err)
	tbs, err := asn1.Marshal(list)
	must(t, err)
	h := hash.New()
	h.Write(tbs)
	sum, err := c.key.Sign(rand.Reader, h.Sum(nil), hash)
	must(t, err)
	der, err := asn1.Marshal(struct {
		List      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, list.Signature, asn1.BitString{Bytes: sum, BitLength: 8 * len(sum)}})
	must(t, err)
	return encode("X509 CRL", der)
}

func decodePEM(t *testing.T, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatal("no PEM")
	}
	return block.Bytes
}

// flipped changes a bit of the signature.
func flipped(der []byte) []byte {
	der[len(der)-1] ^= 1
	return der
}

func listing(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }

// between makes an intermediate CA that c signs.
func (c ca) between(t testing.TB, name string, serial int64) ca {
	t.Helper()
	key := newKey(t)
	p := c.issue(t, key, func(tmpl *x509.Certificate) {
		*tmpl = x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: tmpl.NotBefore, NotAfter: tmpl.NotAfter,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	})
	return ca{p.cert, parseOne(t, p.cert), key, c.now}
}

// client makes the certificate of a client.
func (c ca) client(t testing.TB, serial int64) *x509.Certificate {
	t.Helper()
	return parseOne(t, c.issue(t, nil, func(tmpl *x509.Certificate) {
		tmpl.SerialNumber, tmpl.ExtKeyUsage = big.NewInt(serial), []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}).cert)
}

// TestCRL_Malformed: a file of CRLs is read as a whole or not at all.
func TestCRL_Malformed(t *testing.T) {
	now := time.Now()
	corp, stranger := newCA(t, now, listing), newCA(t, now, listing)
	namesake := newCA(t, now, func(c *x509.Certificate) { listing(c); c.Subject.CommonName = "Other CA" })
	mute := newCA(t, now, func(c *x509.Certificate) { c.Subject.CommonName = "Mute CA" })
	extended := func(critical bool, id ...int) string {
		return corp.crl(t, func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier(id), Critical: critical, Value: []byte{0x30, 0}}}
		})
	}
	entry := func(critical bool, id ...int) string {
		return corp.crl(t, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier(id), Critical: critical, Value: []byte{0x30, 0}}}
		}, 1)
	}
	times := func(from, until time.Duration) string {
		return corp.crl(t, func(l *x509.RevocationList) { l.ThisUpdate, l.NextUpdate = now.Add(from), now.Add(until) })
	}
	const at, list = "error tls.client_crl.0: ", "the CRL of CN=Corp CA in c.crl "
	for name, row := range map[string]struct{ text, want string }{
		"PEM":                         {corp.crl(t, nil, 1), ""},
		"DER":                         {string(decodePEM(t, corp.crl(t, nil, 1))), ""},
		"of several, one in all":      {corp.crl(t, nil) + "# and\n" + mute.pem, at + "reading c.crl: it contains a CERTIFICATE"},
		"there twice":                 {corp.crl(t, nil) + corp.crl(t, nil), at + "the CRL of CN=Corp CA is in c.crl, but also in c.crl"},
		"cut short":                   {corp.crl(t, nil) + corp.crl(t, nil)[:100], at + "reading c.crl: it contains 2 PEM blocks, and 1 of them cannot be parsed"},
		"more after DER":              {string(decodePEM(t, corp.crl(t, nil))) + "x", at + "reading c.crl: there is data after the CRL"},
		"nothing":                     {"", at + "reading c.crl: "},
		"a broken one":                {encode("X509 CRL", []byte("x")), at + "reading c.crl: parsing CRL 1: "},
		"of the name, not of the key": {stranger.crl(t, nil), at + list + "is not signed by that CA: "},
		"of another CA":               {namesake.crl(t, nil), at + "the CRL of CN=Other CA in c.crl is not of a CA in client_ca"},
		"of a CA that may not":        {"", ""}, // made below
		"without an end":              {corp.signed(t, true), at + list + "has no nextUpdate"},
		"signed with SHA-1":           {corp.signed(t, false), at + list + "is signed with ECDSA-SHA1, which can be forged"},
		"changed":                     {encode("X509 CRL", flipped(decodePEM(t, corp.crl(t, nil, 1)))), at + list + "is not signed by that CA: "},
		"delta":                       {extended(true, 2, 5, 29, 27), at + list + "is a delta CRL"},
		"delta, not critical":         {extended(false, 2, 5, 29, 27), at + list + "is a delta CRL"},
		"partial or indirect":         {extended(true, 2, 5, 29, 28), at + list + "is indirect, or for a part"},
		"critical and unknown":        {extended(true, 1, 2, 3), at + list + "has the critical extension 1.2.3"},
		"unknown":                     {extended(false, 1, 2, 3), ""},
		"entry of another CA":         {entry(false, 2, 5, 29, 29), at + list + "has an entry with the unsupported extension 2.5.29.29"},
		"critical in an entry":        {entry(true, 1, 2, 3), at + list + "has an entry with the unsupported extension 1.2.3"},
		"unknown in an entry":         {entry(false, 1, 2, 3), ""},
		"not yet valid":               {times(time.Hour, 2*time.Hour), at + list + "is not valid before "},
		"ended":                       {times(-2*time.Hour, -time.Hour), "warning tls.client_crl.0: " + list + "expired on "},
		"in its last quarter":         {times(-80*time.Hour, 20*time.Hour), "warning tls.client_crl.0: " + list + "expires soon, on "},
		"just before that":            {times(-70*time.Hour, 30*time.Hour), ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeValidFiles(t, dir, now)
			write(t, dir, "c.pem", corp.pem, 0o644)
			write(t, dir, "c.crl", row.text, 0o644)
			if name == "of a CA that may not" {
				write(t, dir, "c.pem", mute.pem, 0o644)
				forged := ca{mute.pem, &x509.Certificate{}, mute.key, now}
				*forged.cert = *mute.cert
				forged.cert.KeyUsage |= x509.KeyUsageCRLSign
				forged.cert.SubjectKeyId = []byte{1}
				write(t, dir, "c.crl", forged.crl(t, nil), 0o644)
				row.want = at + "the CRL of CN=Mute CA in c.crl is of a CA that may not sign CRLs"
			}
			s := fullSpec()
			s.ClientCRL = []string{"c.crl"}
			_, got := load(t, dir, s, now)
			if row.want == "" && len(got) > 0 || row.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], row.want)) {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
		})
	}
}

// TestCRL_WritableByOthers: a file of CRLs that other users may write is refused.
func TestCRL_WritableByOthers(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	corp := newCA(t, now, listing)
	writeValidFiles(t, dir, now)
	write(t, dir, "c.pem", corp.pem, 0o644)
	s := fullSpec()
	s.ClientCRL = []string{"c.crl"}
	for mode, who := range map[os.FileMode]string{0o646: "others", 0o664: "its group"} {
		write(t, dir, "c.crl", corp.crl(t, nil), mode)
		if _, got := load(t, dir, s, now); len(got) != 1 || !strings.HasPrefix(got[0], "error tls.client_crl.0: c.crl may be changed by "+who+" (") {
			t.Errorf("%q", got)
		}
	}
}

// believed has two CAs: corp, which has an intermediate CA, and partner.
type believed struct {
	now                    time.Time
	corp, between, partner ca
}

func newBelieved(t testing.TB) *believed {
	t.Helper()
	now := time.Now()
	b := &believed{now: now, corp: newCA(t, now, listing), partner: newCA(t, now, listing, func(c *x509.Certificate) { c.Subject.CommonName = "Partner CA" })}
	b.between = b.corp.between(t, "Issuing CA", 9)
	return b
}

// namedFile returns what callers name: one file of CAs.
func namedFile(file string, p *diag.List) certs.Named {
	return certs.Named{CAs: []certs.NamedCA{{File: file, At: p}}}
}

// trust returns the trust in the certificates of callers without a ca. The file of client_ca has the CAs in clientCA,
// and the file of a partner has those in partner.
func (b *believed) trust(t *testing.T, clientCA, partner, crls string) certs.Trust {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "c.pem", clientCA, 0o644)
	write(t, dir, "p.pem", partner, 0o644)
	spec := certs.Spec{ClientCA: "c.pem"}
	if crls != "" {
		write(t, dir, "c.crl", crls, 0o644)
		spec.ClientCRL = []string{"c.crl"}
	}
	var p diag.List
	c := certs.LoadClients(spec, namedFile("p.pem", p.At("callers")), dir, b.now, nil, p.At("tls"))
	if p.Bad() {
		t.Fatal(problemTexts(&p))
	}
	return c.ByDefault()
}

// TestClients_CANotLoaded: a file that neither the tls section nor a caller names is trusted by nothing.
func TestClients_CANotLoaded(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	writeValidFiles(t, dir, now)
	var p diag.List
	clients := certs.LoadClients(certs.Spec{}, namedFile("c.pem", &p), dir, now, nil, &p)
	if p.Bad() || clients.ByCA("c.pem") == nil {
		t.Fatalf("no trust in a file that was named: %q", problemTexts(&p))
	}
	for name, trust := range map[string]certs.Trust{"another file": clients.ByCA("s.pem"), "client_ca": clients.ByDefault()} {
		if trust != nil {
			t.Errorf("there is a trust in %s, which was not named", name)
		}
	}
}

// TestCRL_WholeChain: each certificate of the chain is looked up in the CRL of its issuer.
func TestCRL_WholeChain(t *testing.T) {
	b := newBelieved(t)
	leaf := b.between.client(t, 5)
	for name, row := range map[string]struct {
		clientCA, partner, crls string
		want                    error
	}{
		"no CRL":                        {b.corp.pem, b.partner.pem, "", nil},
		"another is revoked":            {b.corp.pem + b.between.pem, b.partner.pem, b.corp.crl(t, nil, 1) + b.between.crl(t, nil, 1), nil},
		"the leaf is revoked":           {b.corp.pem + b.between.pem, b.partner.pem, b.between.crl(t, nil, 1, 5), certs.ErrRevoked},
		"its number, but by the root":   {b.corp.pem + b.between.pem, b.partner.pem, b.corp.crl(t, nil, 5), nil},
		"the CA between is revoked":     {b.corp.pem, b.partner.pem, b.corp.crl(t, nil, 9), certs.ErrRevoked},
		"and stands in the file":        {b.corp.pem + b.between.pem, b.partner.pem, b.corp.crl(t, nil, 9), certs.ErrRevoked},
		"and is trusted without a root": {b.between.pem, b.corp.pem, b.corp.crl(t, nil, 9), certs.ErrRevoked},
		"trusted without a root":        {b.between.pem, b.corp.pem, b.corp.crl(t, nil, 5), nil},
		"on hold is revoked, too": {b.corp.pem + b.between.pem, b.partner.pem, b.between.crl(t, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ReasonCode = 6
		}, 5), certs.ErrRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			trust := b.trust(t, row.clientCA, row.partner, row.crls)
			err := trust([]*x509.Certificate{leaf, b.between.cert}, b.now)
			if !errors.Is(err, row.want) {
				t.Errorf("%v, want %v", err, row.want)
			}
		})
	}
}

// TestTrust_NameConstraints: an intermediate CA in the file is still bound by the constraints of its root.
func TestTrust_NameConstraints(t *testing.T) {
	now := time.Now()
	root := newCA(t, now, func(c *x509.Certificate) {
		c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"corp.example"}, true
	})
	between := root.between(t, "Issuing CA", 9)
	beyond := between.client(t, 5) // hooks.example.com
	inside := parseOne(t, between.issue(t, nil, func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{"etl.corp.example"}, nil
	}).cert)
	b := &believed{now: now}
	trust := b.trust(t, root.pem+between.pem, root.pem, "") // in the file of its root
	if err := trust([]*x509.Certificate{beyond}, now); err == nil || !strings.Contains(err.Error(), "name constraints") {
		t.Errorf("a name that the root does not allow: %v", err)
	}
	must(t, trust([]*x509.Certificate{inside}, now))
}

// handshakeError makes a handshake with a client that shows these certificates, its own first, and returns the reason if
// the server refuses.
func handshakeError(t *testing.T, cfg *tls.Config, server ca, own pair, more ...string) error {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(server.cert)
	p, err := tls.X509KeyPair([]byte(own.cert+strings.Join(more, "")), []byte(own.key))
	must(t, err)
	client := &tls.Config{RootCAs: roots, ServerName: "hooks.example.com", MinVersion: tls.VersionTLS13}
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &p, nil }
	_, clientErr, serverErr := handshake(t, cfg, client)
	if serverErr == nil && clientErr != nil {
		t.Error(clientErr)
	}
	return serverErr
}

func forClients(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

// holder makes a certificate for a key, which need not be one that can sign.
func (c ca) holder(t *testing.T, name string, key crypto.PublicKey) string {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: c.now.Add(-time.Hour), NotAfter: c.now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, c.cert, key, c.key)
	must(t, err)
	return encode("CERTIFICATE", der)
}

// TestHandshake_Bounds: valid certificates are refused because of what is shown with them: an attacker chooses that,
// and the server would verify it at the cost of sending it.
func TestHandshake_Bounds(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	c := writeValidFiles(t, dir, now)
	cfg, _ := load(t, dir, fullSpec(), now)
	leaf := c.issue(t, nil, forClients)
	a := c.between(t, "A", 2)
	b := a.between(t, "B", 3)
	far := b.issue(t, nil, forClients)
	rsaKey := func(bits uint, e int) *rsa.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: e}
	}
	public, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	// X25519 (RFC 8410, section 3) can sign nothing.
	mute := bytes.Replace(decodePEM(t, c.holder(t, "X", public)), []byte{0x2b, 0x65, 0x70}, []byte{0x2b, 0x65, 0x6e}, 1)
	for name, row := range map[string]struct {
		own  pair
		more []string
		want string // part of the reason for the refusal
	}{
		"itself":                     {leaf, nil, ""},
		"three CAs":                  {far, []string{b.pem, a.pem, c.pem}, ""},
		"and four others":            {far, []string{b.pem, a.pem, c.pem, b.between(t, "C", 4).pem}, "is one of 5 certificates, but at most 4 are allowed"},
		"itself twice":               {leaf, []string{leaf.cert}, ""},
		"one CA twice":               {far, []string{b.pem, a.pem, b.pem}, "two CAs of one name (the second is certificate 4)"},
		"two keys of one name":       {far, []string{b.pem, a.pem, a.between(t, "A", 5).pem}, "two CAs of one name (the second is certificate 4)"},
		"RSA of 4096 bits":           {leaf, []string{c.holder(t, "R", rsaKey(4096, 65537))}, ""},
		"RSA of more":                {leaf, []string{c.holder(t, "R", rsaKey(4097, 65537))}, "an RSA key (certificate 2) of 4097 bits"},
		"RSA with a large exponent":  {leaf, []string{c.holder(t, "R", rsaKey(2048, 1<<31-1))}, "an RSA key (certificate 2) of 2048 bits and exponent 2147483647"},
		"an unsupported kind of key": {leaf, []string{encode("CERTIFICATE", mute)}, "a key (certificate 2) that is not RSA, ECDSA or Ed25519"},
		"together with a good chain": {far, []string{b.pem, a.pem, c.holder(t, "X", rsaKey(8192, 65537))}, "an RSA key (certificate 4) of 8192 bits"},
	} {
		err := handshakeError(t, cfg, c, row.own, row.more...)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

// TestHandshake_Errors: the error says why a certificate is refused, because the client only gets an alert.
func TestHandshake_Errors(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	c := writeValidFiles(t, dir, now)
	partner := newCA(t, now, func(c *x509.Certificate) { c.Subject.CommonName = "Partner CA" })
	namesake := newCA(t, now)
	write(t, dir, "p.pem", partner.pem, 0o644)
	var p diag.List
	cfg, _ := certs.Load(fullSpec(), dir, now, &p)
	cfg = certs.LoadClients(fullSpec(), namedFile("p.pem", &p), dir, now, nil, &p).AddTo(cfg)
	if p.Bad() {
		t.Fatal(problemTexts(&p))
	}
	ended := func(c *x509.Certificate) { forClients(c); c.NotAfter = now.Add(-time.Minute) }
	for name, row := range map[string]struct {
		own  pair
		want string
	}{
		"good":                   {c.issue(t, nil, forClients), ""},
		"of the other file":      {partner.issue(t, nil, forClients), ""},
		"ended":                  {partner.issue(t, nil, ended), "is outside its validity period: from "},
		"of a name, not its key": {namesake.issue(t, nil, forClients), "does not lead to a CA of c.pem that is valid now"},
		"a server's":             {c.issue(t, nil), "is not for clients: an extended key usage lacks clientAuth"},
		"unknown CA, expired":    {newCA(t, now, func(c *x509.Certificate) { c.Subject.CommonName = "Nobody" }).issue(t, nil, ended), "does not lead to a CA that is known here, and is not pinned"},
		"a CA's":                 {func() pair { b := c.between(t, "A", 2); return pair{b.pem, keyPEM(t, b.key)} }(), "is a CA certificate, not a client certificate"},
	} {
		err := handshakeError(t, cfg, c, row.own)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

func keyPEM(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return encode("PRIVATE KEY", der)
}

// TestClientCA_Expired: an expired CA is a warning, as an expired CRL is, so that the callers of the other CAs are
// served after the next start.
func TestClientCA_Expired(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	c := writeValidFiles(t, dir, now)
	old := newCA(t, now.Add(-366*day), func(c *x509.Certificate) { c.Subject.CommonName = "Old CA" })
	older := newCA(t, now.Add(-400*day), func(c *x509.Certificate) { c.Subject.CommonName = "Older CA" })
	write(t, dir, "c.pem", old.pem+c.pem, 0o644)
	cfg, got := load(t, dir, fullSpec(), now)
	const warning = "warning tls.client_ca: certificate 1 of c.pem expired on "
	if len(got) != 1 || !strings.HasPrefix(got[0], warning) || !strings.HasSuffix(got[0], ": certificates that it signed are refused") {
		t.Fatalf("%q", got)
	}
	if err := handshakeError(t, cfg, c, c.issue(t, nil, forClients)); err != nil {
		t.Errorf("a client of the CA that is left: %v", err)
	}
	old.now = now // so that the client's certificate is still valid
	if err := handshakeError(t, cfg, c, old.issue(t, nil, forClients)); err == nil || !strings.Contains(err.Error(), "leads to a CA that is outside its validity period: from ") {
		t.Errorf("a client of the CA that has ended: %v", err)
	}
	write(t, dir, "c.pem", old.pem+older.pem, 0o644)
	cfg, got = load(t, dir, fullSpec(), now)
	if len(got) != 3 || got[2] != "warning tls.client_ca: all CAs of c.pem have expired: certificates that they signed are refused" {
		t.Errorf("%q", got)
	}
	if err := handshakeError(t, cfg, c, old.issue(t, nil, forClients)); err == nil {
		t.Error("believed by a file of CAs that have all ended")
	}
}

// TestCRL_Expired: with an expired CRL, all certificates of its CA are refused, and those of other CAs are not.
func TestCRL_Expired(t *testing.T) {
	b := newBelieved(t)
	trust := b.trust(t, b.corp.pem+b.between.pem+b.partner.pem, b.partner.pem, b.between.crl(t, nil, 6)+b.partner.crl(t, func(l *x509.RevocationList) {
		l.NextUpdate = b.now.Add(48 * time.Hour)
	}))
	later := b.now.Add(25 * time.Hour)
	for name, row := range map[string]struct {
		leaf *x509.Certificate
		at   time.Time
		want error
	}{
		"in time":                   {b.between.client(t, 5), b.now, nil},
		"too late":                  {b.between.client(t, 5), later, certs.ErrStale},
		"too late, and revoked":     {b.between.client(t, 6), later, certs.ErrRevoked},
		"of another CA":             {b.partner.client(t, 5), later, nil},
		"of the CA above, unlisted": {b.corp.client(t, 5), later, nil},
	} {
		if err := trust([]*x509.Certificate{row.leaf}, row.at); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
	}
}

// TestTrust_TimeOfRequest: a certificate is verified at the time of the request.
func TestTrust_TimeOfRequest(t *testing.T) {
	b := newBelieved(t)
	trust := b.trust(t, b.corp.pem, b.partner.pem, "")
	leaf := b.corp.client(t, 5) // valid for 90 days, and the CA for a year
	for at, want := range map[time.Time]error{
		b.now: nil, leaf.NotAfter: nil, leaf.NotAfter.Add(time.Second): certs.ErrStale, leaf.NotBefore.Add(-time.Second): certs.ErrStale,
	} {
		if err := trust([]*x509.Certificate{leaf}, at); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", at, err, want)
		}
	}
	old := parseOne(t, b.corp.issue(t, nil, func(c *x509.Certificate) {
		c.ExtKeyUsage, c.NotAfter = nil, b.corp.cert.NotAfter.Add(time.Hour)
	}).cert)
	if err := trust([]*x509.Certificate{old}, b.corp.cert.NotAfter.Add(time.Minute)); err == nil {
		t.Error("believed by a CA whose time is over")
	}
}

// BenchmarkTrust reports the cost of verifying the certificates of a request, compared to verifying one signature.
func BenchmarkTrust(b *testing.B) {
	w := newBelieved(b)
	leaf, dir := w.between.client(b, 5), b.TempDir()
	write(b, dir, "c.pem", w.corp.pem+w.between.pem, 0o644)
	write(b, dir, "c.crl", w.corp.crl(b, nil, 1)+w.between.crl(b, nil, 1), 0o644)
	var p diag.List
	c := certs.LoadClients(certs.Spec{ClientCA: "c.pem", ClientCRL: []string{"c.crl"}}, certs.Named{}, dir, w.now, nil, p.At("tls"))
	trust := c.ByDefault()
	var judging, signature time.Duration
	for b.Loop() {
		start := time.Now()
		must(b, trust([]*x509.Certificate{leaf, w.between.cert}, w.now))
		judged := time.Now()
		must(b, leaf.CheckSignatureFrom(w.between.cert))
		judging, signature = judging+judged.Sub(start), signature+time.Since(judged)
	}
	b.ReportMetric(float64(judging)/float64(signature), "signatures/op")
}
