package certs_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/diag"
)

type ca struct {
	pem  string
	cert *x509.Certificate
	key  crypto.Signer
	now  time.Time
}

type pair struct{ cert, key string }

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func parseOne(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatal("no PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCA(t testing.TB, now time.Time, change ...func(*x509.Certificate)) ca {
	t.Helper()
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "Corp CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * 365 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	for _, f := range change {
		f(tmpl)
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := encode("CERTIFICATE", der)
	return ca{text, parseOne(t, text), key, now}
}

// issue makes a server's certificate, with an ECDSA key when key is nil.
func (c ca) issue(t testing.TB, key crypto.Signer, change ...func(*x509.Certificate)) pair {
	t.Helper()
	if key == nil {
		key = newKey(t)
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "hooks.example.com"}, DNSNames: []string{"hooks.example.com"},
		NotBefore: c.now.Add(-time.Hour), NotAfter: c.now.Add(90 * 24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, f := range change {
		f(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, dir, name, text string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, []byte(text), mode))
	must(t, os.Chmod(path, mode)) // independent of the umask
}

func fullSpec() certs.Spec { return certs.Spec{Cert: "s.pem", Key: "s.key", ClientCA: "c.pem"} }

// writeValidFiles writes valid files, and returns the CA that signed them.
func writeValidFiles(t *testing.T, dir string, now time.Time) ca {
	t.Helper()
	c := newCA(t, now)
	leaf := c.issue(t, nil)
	write(t, dir, "s.pem", leaf.cert, 0o644)
	write(t, dir, "s.key", leaf.key, 0o600)
	write(t, dir, "c.pem", c.pem, 0o644)
	return c
}

func load(t *testing.T, dir string, s certs.Spec, now time.Time) (*tls.Config, []string) {
	t.Helper()
	var p diag.List
	cfg, _ := certs.Load(s, dir, now, p.At("tls"))
	if (cfg == nil) != p.Bad() {
		t.Errorf("configuration given: %v, although problems are %q", cfg != nil, problemTexts(&p))
	}
	cfg = certs.LoadClients(s, certs.Named{}, dir, now, nil, p.At("tls")).AddTo(cfg)
	return cfg, problemTexts(&p)
}

func problemTexts(p *diag.List) (got []string) {
	for _, one := range p.All() {
		level := "error "
		if one.Warning {
			level = "warning "
		}
		got = append(got, level+strings.Join(one.Path, ".")+": "+one.Text)
	}
	return got
}

// TestLoad_NoClientCA: without a client_ca, the server requests no client certificate.
func TestLoad_NoClientCA(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	writeValidFiles(t, dir, now)
	cfg, got := load(t, dir, certs.Spec{Cert: "s.pem", Key: filepath.Join(dir, "s.key")}, now)
	if len(got) > 0 {
		t.Fatal(got)
	}
	if cfg.MinVersion != tls.VersionTLS13 || cfg.ClientAuth != tls.NoClientCert || cfg.ClientCAs != nil || !slices.Equal(cfg.NextProtos, []string{"h2", "http/1.1"}) {
		t.Errorf("%+v", cfg)
	}
}

// TestLoad_TLS12: TLS 1.2 needs the option, and then allows AEAD suites only.
func TestLoad_TLS12(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	c := writeValidFiles(t, dir, now)
	roots := x509.NewCertPool()
	roots.AddCert(c.cert)
	old := &tls.Config{RootCAs: roots, ServerName: "hooks.example.com", MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}

	cfg, _ := load(t, dir, fullSpec(), now)
	if _, err, _ := handshake(t, cfg, old); err == nil {
		t.Error("TLS 1.2 spoken by default")
	}
	s := fullSpec()
	s.MinVersion = "1.2"
	cfg, _ = load(t, dir, s, now)
	if _, err, serverErr := handshake(t, cfg, old); err != nil || serverErr != nil {
		t.Errorf("TLS 1.2 by option: %v, %v", err, serverErr)
	}
	cbc := old.Clone()
	cbc.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
	if _, err, _ := handshake(t, cfg, cbc); err == nil {
		t.Error("a suite without AEAD spoken")
	}
	anew := old.Clone()
	anew.MaxVersion = 0
	if state, err, _ := handshake(t, cfg, anew); err != nil || state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
		t.Errorf("%v, version %x, key exchange %v", err, state.Version, state.CurveID)
	}
}

// TestLoad_Problems: each problem is reported at its key.
func TestLoad_Problems(t *testing.T) {
	now := time.Now()
	rsaKey := func(t *testing.T, bits int) crypto.Signer {
		t.Helper()
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	leaf := func(change func(*x509.Certificate)) func(*testing.T, string, ca) {
		return func(t *testing.T, dir string, c ca) {
			t.Helper()
			p := c.issue(t, nil, change)
			write(t, dir, "s.pem", p.cert, 0o644)
			write(t, dir, "s.key", p.key, 0o600)
		}
	}
	file := func(name, text string, mode os.FileMode) func(*testing.T, string, ca) {
		return func(t *testing.T, dir string, _ ca) { t.Helper(); write(t, dir, name, text, mode) }
	}
	chmod := func(name string, mode os.FileMode) func(*testing.T, string, ca) {
		return func(t *testing.T, dir string, _ ca) { t.Helper(); must(t, os.Chmod(filepath.Join(dir, name), mode)) }
	}
	remove := func(name string) func(*testing.T, string, ca) {
		return func(t *testing.T, dir string, _ ca) { t.Helper(); must(t, os.Remove(filepath.Join(dir, name))) }
	}
	for name, row := range map[string]struct {
		spoil func(t *testing.T, dir string, c ca)
		want  string // path and part of the text of the only problem; empty: no problem
	}{
		"group may read the key":   {chmod("s.key", 0o640), ""},
		"others may read the key":  {chmod("s.key", 0o644), "error tls.key: s.key may be read by others (its mode is 0644): chmod 0640"},
		"group may change the key": {chmod("s.key", 0o660), "error tls.key: s.key may be changed by its group (its mode is 0660): chmod 0640"},
		"others may add a CA":      {chmod("c.pem", 0o646), "error tls.client_ca: c.pem may be changed by others (its mode is 0646): chmod 0644"},
		"its group may add a CA":   {chmod("c.pem", 0o664), "error tls.client_ca: c.pem may be changed by its group (its mode is 0664): chmod 0644"},
		"no certificate":           {remove("s.pem"), "error tls.cert: open "},
		"a folder": {func(t *testing.T, dir string, _ ca) {
			t.Helper()
			must(t, os.Remove(dir+"/c.pem"))
			must(t, os.Mkdir(dir+"/c.pem", 0o755))
		}, "error tls.client_ca: c.pem is not a regular file"},
		"a FIFO does not block": {func(t *testing.T, dir string, _ ca) {
			t.Helper()
			must(t, os.Remove(dir+"/s.pem"))
			must(t, syscall.Mkfifo(dir+"/s.pem", 0o644))
		}, "error tls.cert: s.pem is not a regular file"},
		"a huge file":            {file("c.pem", strings.Repeat("x", 16<<20+1), 0o644), "error tls.client_ca: c.pem is over 1024 KiB"},
		"another key":            {func(t *testing.T, dir string, c ca) { t.Helper(); write(t, dir, "s.key", c.issue(t, nil).key, 0o600) }, "error tls.key: using s.key with s.pem: tls: private key does not match"},
		"no key in the key file": {file("s.key", "hello", 0o600), "error tls.key: using s.key with s.pem: "},
		"an encrypted key":       {file("s.key", encode("ENCRYPTED PRIVATE KEY", []byte("x")), 0o600), "error tls.key: s.key is encrypted"},
		"an old encrypted key":   {file("s.key", "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n", 0o600), "error tls.key: s.key is encrypted"},
		"the key for the CA":     {func(t *testing.T, dir string, c ca) { t.Helper(); write(t, dir, "c.pem", c.issue(t, nil).key, 0o644) }, "error tls.client_ca: c.pem contains a PRIVATE KEY"},
		"an empty CA file":       {file("c.pem", "# none yet\n", 0o644), "error tls.client_ca: c.pem does not contain a certificate"},
		"a broken certificate":   {file("c.pem", encode("CERTIFICATE", []byte("x")), 0o644), "error tls.client_ca: parsing certificate 1 of c.pem: "},
		"a CA cut short": {func(t *testing.T, dir string, c ca) {
			t.Helper()
			write(t, dir, "c.pem", c.pem+"\n"+c.pem[:200], 0o644)
		}, "error tls.client_ca: c.pem contains 2 PEM blocks, and 1 of them"},
		"comments between CAs": {func(t *testing.T, dir string, c ca) {
			t.Helper()
			write(t, dir, "c.pem", "# a\n"+c.pem+"\n# b\n"+c.pem, 0o644)
		}, ""},
		"a leaf for a CA": {func(t *testing.T, dir string, c ca) {
			t.Helper()
			write(t, dir, "c.pem", c.pem+c.issue(t, nil).cert, 0o644)
		}, "error tls.client_ca: certificate 2 of c.pem is not a CA certificate"},
		"a CA that may not sign": {func(t *testing.T, dir string, _ ca) {
			t.Helper()
			write(t, dir, "c.pem", newCA(t, now, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }).pem, 0o644)
		}, "error tls.client_ca: certificate 1 of c.pem is not a CA certificate"},
		"expired":                {leaf(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }), "error tls.cert: certificate 1 of s.pem expired on "},
		"not yet valid":          {leaf(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }), "error tls.cert: certificate 1 of s.pem is not valid before "},
		"13 days left":           {leaf(func(c *x509.Certificate) { c.NotAfter = now.Add(13*24*time.Hour + time.Hour) }), "warning tls.cert: certificate 1 of s.pem expires in 13 days"},
		"15 days left":           {leaf(func(c *x509.Certificate) { c.NotAfter = now.Add(15 * 24 * time.Hour) }), ""},
		"a client's certificate": {leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "error tls.cert: certificate 1 of s.pem is not for servers"},
		"a name only in its CN":  {leaf(func(c *x509.Certificate) { c.DNSNames = nil }), "error tls.cert: certificate 1 of s.pem has no DNS name"},
		"an address for a name":  {leaf(func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(10, 0, 0, 1)} }), ""},
		"no intermediate":        {leaf(func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://ca.example.com/r1.der"} }), `warning tls.cert: s.pem contains only the server's certificate, which "Corp CA" signed: append`},
		"its intermediate": {func(t *testing.T, dir string, c ca) {
			t.Helper()
			p := c.issue(t, nil, func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://ca.example.com/r1.der"} })
			write(t, dir, "s.pem", p.cert+c.pem, 0o644)
			write(t, dir, "s.key", p.key, 0o600)
		}, ""},
		"another intermediate": {func(t *testing.T, dir string, c ca) {
			t.Helper()
			p := c.issue(t, nil)
			other := newCA(t, now, func(c *x509.Certificate) { c.Subject.CommonName = "Old CA" })
			write(t, dir, "s.pem", p.cert+other.pem, 0o644)
			write(t, dir, "s.key", p.key, 0o600)
		}, `warning tls.cert: certificate 2 of s.pem did not sign the one before it, which "Corp CA" signed`},
		"RSA of 1024 bits": {func(t *testing.T, dir string, c ca) {
			t.Helper()
			p := c.issue(t, rsaKey(t, 1024))
			write(t, dir, "s.pem", p.cert, 0o644)
			write(t, dir, "s.key", p.key, 0o600)
		}, "error tls.cert: certificate 1 of s.pem has an RSA key of 1024 bits"},
		"RSA of 2048 bits": {func(t *testing.T, dir string, c ca) {
			t.Helper()
			p := c.issue(t, rsaKey(t, 2048))
			write(t, dir, "s.pem", p.cert, 0o644)
			write(t, dir, "s.key", p.key, 0o600)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			row.spoil(t, dir, writeValidFiles(t, dir, now))
			_, got := load(t, dir, fullSpec(), now)
			if row.want == "" && len(got) > 0 || row.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], row.want)) {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
		})
	}
}

// TestLoad_SHA1Signature: a certificate with a SHA-1 signature is refused.
func TestLoad_SHA1Signature(t *testing.T) {
	// Go signs nothing with SHA-1 any more, so this one is kept in testdata.
	data, err := os.ReadFile("testdata/sha1.txt")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	now := parseOne(t, string(data)).NotBefore.Add(time.Hour)
	writeValidFiles(t, dir, now)
	write(t, dir, "s.pem", string(data), 0o644)
	_, got := load(t, dir, fullSpec(), now)
	if len(got) != 1 || !strings.HasPrefix(got[0], "error tls.cert: certificate 1 of s.pem is signed with SHA1-RSA") {
		t.Errorf("got %q", got)
	}
}

// TestLoad_AllProblemsAtOnce: all problems are reported at once.
func TestLoad_AllProblemsAtOnce(t *testing.T) {
	_, got := load(t, t.TempDir(), certs.Spec{Key: "s.key", ClientCA: "c.pem", MinVersion: "1.1"}, time.Now())
	for i, prefix := range []string{"error tls.min_version: ", "error tls.cert: is missing", "error tls.key: open ", "error tls.client_ca: open "} {
		if i >= len(got) || !strings.HasPrefix(got[i], prefix) {
			t.Fatalf("problem %d is not %q in %q", i, prefix, got)
		}
	}
}

// TestLoad_ProblemsElsewhere: a problem elsewhere in the file does not make Load refuse a good pair.
func TestLoad_ProblemsElsewhere(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	writeValidFiles(t, dir, now)
	var p diag.List
	p.At("hooks").Errorf("none")
	if cfg, _ := certs.Load(fullSpec(), dir, now, &p); cfg == nil {
		t.Error("nil, although the certificates are good")
	}
}
