package certs_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"sallyport/certs"
)

// several writes a pair for each entry, "NAME TYPE", and returns the section that
// lists them.
func several(t *testing.T, dir string, entries ...string) certs.Spec {
	t.Helper()
	c := newCA(t, time.Now())
	var spec certs.Spec
	for i, entry := range entries {
		file := string(rune('a' + i))
		name, kind, _ := strings.Cut(entry, " ")
		key := newKey(t)
		if kind == "RSA" {
			rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
			must(t, err)
			key = rsaKey
		}
		p := c.issue(t, key, func(c *x509.Certificate) { c.DNSNames = strings.Split(name, ",") })
		write(t, dir, file+".pem", p.cert, 0o644)
		write(t, dir, file+".key", p.key, 0o600)
		spec.Certificates = append(spec.Certificates, certs.PairSpec{Cert: file + ".pem", Key: file + ".key"})
	}
	return spec
}

// TestPairs_ByNameAndKeyType: a client gets the certificate for the requested name and the type of key that it
// supports.
func TestPairs_ByNameAndKeyType(t *testing.T) {
	dir := t.TempDir()
	spec := several(t, dir, "first.example.com ECDSA", "both.example.com RSA", "both.example.com ECDSA", "*.example.org ECDSA", "one.example.org ECDSA")
	spec.MinVersion = "1.2"
	cfg, problems := load(t, dir, spec, time.Now())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	// Only TLS 1.2 lets Go's client hide a type of key.
	onlyECDSA := &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}
	onlyRSA := &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}
	for why, row := range map[string]struct {
		client *tls.Config
		name   string
		want   int // index of the certificate
	}{
		"its name":               {&tls.Config{}, "first.example.com", 0},
		"its name, in capitals":  {&tls.Config{}, "BOTH.example.com", 1},
		"its name, ECDSA":        {onlyECDSA, "both.example.com", 2},
		"its name, RSA":          {onlyRSA, "both.example.com", 1},
		"a wildcard":             {&tls.Config{}, "two.example.org", 3},
		"the first that has it":  {&tls.Config{}, "one.example.org", 3},
		"an unknown name":        {&tls.Config{}, "other.example.com", 0},
		"no name":                {&tls.Config{}, "", 0},
		"no name, RSA":           {onlyRSA, "", 1},
		"deeper than a wildcard": {&tls.Config{}, "a.b.example.org", 0},
	} {
		t.Run(why, func(t *testing.T) {
			client := row.client.Clone()
			client.ServerName, client.InsecureSkipVerify = row.name, true
			var shown []byte
			client.VerifyConnection = func(state tls.ConnectionState) error {
				shown = state.PeerCertificates[0].Raw
				return nil
			}
			if _, err, serverErr := handshake(t, cfg, client); err != nil || serverErr != nil {
				t.Fatal(err, serverErr)
			}
			for i, pair := range cfg.Certificates {
				if string(pair.Certificate[0]) == string(shown) && i != row.want {
					t.Errorf("shown certificate %d, want %d", i, row.want)
				}
			}
		})
	}
}

// TestPairs_NeverShown: a certificate that no client would get is refused.
func TestPairs_NeverShown(t *testing.T) {
	for why, row := range map[string]struct {
		entries []string
		want    string
	}{
		"name and type":      {[]string{"a.example.com ECDSA", "a.example.com ECDSA"}, "error tls.certificates.1.cert: b.pem is for a.example.com with a key of type ECDSA, and so is a.pem"},
		"one name of two":    {[]string{"a.example.com,b.example.com ECDSA", "c.example.com,B.example.com ECDSA"}, "error tls.certificates.1.cert: b.pem is for b.example.com"},
		"another type":       {[]string{"a.example.com ECDSA", "a.example.com RSA"}, ""},
		"a name it repeats":  {[]string{"a.example.com,A.example.com ECDSA"}, ""},
		"within a wildcard":  {[]string{"a.example.com ECDSA", "*.example.com ECDSA"}, ""},
		"one of ACME's":      {[]string{"other.example.com ECDSA", "acme.example.com ECDSA"}, "error tls.certificates.1.cert: b.pem is for acme.example.com, for which acme"},
		"a wildcard of ACME": {[]string{"*.example.com ECDSA"}, ""},
	} {
		t.Run(why, func(t *testing.T) {
			dir := t.TempDir()
			spec := several(t, dir, row.entries...)
			spec.ACME = &certs.ACMESpec{Domains: []string{"acme.example.com"}}
			_, got := load(t, dir, spec, time.Now())
			if row.want == "" && len(got) > 0 || row.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], row.want)) {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
		})
	}
}

// TestPairs_Incomplete: either pairs or one whole pair.
func TestPairs_Incomplete(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	spec := several(t, dir, "a.example.com ECDSA")
	spec.Cert = "a.pem"
	if _, got := load(t, dir, spec, now); len(got) != 1 || !strings.HasPrefix(got[0], "error tls.certificates: cannot be combined with cert and key") {
		t.Errorf("both: %q", got)
	}
	if _, got := load(t, dir, certs.Spec{}, now); len(got) != 2 {
		t.Errorf("neither: %q", got)
	}
	acme := &certs.ACMESpec{Domains: []string{"b.example.com"}}
	if _, got := load(t, dir, certs.Spec{ACME: acme}, now); len(got) != 0 {
		t.Errorf("acme alone: %q", got)
	}
	if _, got := load(t, dir, certs.Spec{ACME: acme, Cert: "a.pem"}, now); len(got) != 1 || !strings.HasPrefix(got[0], "error tls.key: is missing") {
		t.Errorf("acme and half a pair: %q", got)
	}
}
