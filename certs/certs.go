// Package certs turns certificate and key files into what the server's TLS
// needs, and refuses to when any of them is not fit to be trusted. It also
// makes the certificates that development needs.
package certs

import (
	"bytes"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sallyport/internal/diag"
	"sallyport/internal/pathsafe"
)

const (
	maxFile   = 1 << 20             // bytes of a file of certificates, or of a key
	maxCRL    = 16 << 20            // bytes of a file of CRLs: about half a million entries
	warnAhead = 14 * 24 * time.Hour // before the end of a certificate
	day       = 24 * time.Hour
)

// Spec is the tls section of the configuration file. Paths are relative to the
// folder of that file.
type Spec struct {
	Cert         string      `yaml:"cert"`         // as in PairSpec; for a single pair
	Key          string      `yaml:"key"`          // likewise
	Certificates []PairSpec  `yaml:"certificates"` // several pairs, instead of cert and key
	ACME         *ACMESpec   `yaml:"acme"`         // beside pairs, or alone
	ClientCA     string      `yaml:"client_ca"`    // PEM: who may sign the certificates of callers who name no CA of their own
	ClientCRL    []string    `yaml:"client_crl"`   // PEM or DER: what the CAs of client certificates have revoked
	SPIFFE       *SPIFFESpec `yaml:"spiffe"`       // in place of client_ca, and of pairs where there are none
	MinVersion   string      `yaml:"min_version"`  // "1.3" (default) or "1.2"
}

// Load reads what spec names for the server itself, relative to dir, and returns
// its TLS configuration, to which Clients.AddTo and ACME.AddTo add the
// rest, and when what it shows ends. Everything wrong
// with the files is written to p at the key that names the file. When any of it
// is more than a warning the result is nil: nothing is served with less checking
// than the file asks for.
func Load(spec Spec, dir string, now time.Time, p *diag.List) (*tls.Config, []Expiry) {
	before := errorCount(p)
	cfg := &tls.Config{
		MinVersion: minVersion(spec.MinVersion, p.At("min_version")),
		// For TLS 1.2 only: forward secrecy and AEAD, RFC 9325 section 4.2. The
		// suites of TLS 1.3 are all of that kind and are not configurable.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{"h2", "http/1.1"},
		// CurvePreferences stay Go's: they lead with X25519MLKEM768.
	}
	pairs, ends := loadPairs(spec, dir, now, p)
	cfg.Certificates = pairs
	if errorCount(p) > before {
		return nil, nil
	}
	return cfg, ends
}

func errorCount(p *diag.List) (n int) {
	for _, one := range p.All() {
		if !one.Warning {
			n++
		}
	}
	return n
}

func minVersion(text string, p *diag.List) uint16 {
	switch text {
	case "", "1.3":
	case "1.2":
		return tls.VersionTLS12
	default:
		p.Errorf(`%q is no TLS version that is served; "1.3" and "1.2" are`, text)
	}
	return tls.VersionTLS13
}

func resolve(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// read returns the content of a file of at most so many bytes, whose mode has none of the bits of deny, and that no
// other user can replace.
func read(path, name string, most int, deny fs.FileMode, p *diag.List) ([]byte, bool) {
	if name == "" {
		p.Errorf("is missing")
		return nil, false
	}
	seen, _ := os.Stat(path) // nil if it is not there
	p.Saw(path, seen)
	data, faults, err := pathsafe.ReadTrusted(path, name, most, deny)
	if err != nil {
		p.Errorf("%v", err)
		return nil, false
	}
	for _, fault := range faults {
		p.Errorf("%s", fault)
	}
	return data, len(faults) == 0
}

// certificates returns those of a PEM file, at least one, or reports false. Text between the blocks is a comment
// (RFC 7468 section 2), but a block that cannot be read is an error: skipped,
// as pem.Decode would, it is a CA that the operator believes is there.
func certificates(file string, data []byte, p *diag.List) ([]*x509.Certificate, bool) {
	blocks := bytes.Count(data, []byte("-----BEGIN"))
	var list []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			p.Errorf("%s holds a %s; it is for certificates only", file, block.Type)
			return nil, false
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			p.Errorf("parsing certificate %d of %s: %v", len(list)+1, file, err)
			return nil, false
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		p.Errorf("%s holds no certificate", file)
		return nil, false
	}
	if len(list) != blocks {
		p.Errorf("%s holds %d PEM blocks, and %d of them cannot be read", file, blocks, blocks-len(list))
		return nil, false
	}
	return list, true
}

// parse is certificates, all of them sound and current.
func parse(file string, data []byte, now time.Time, p *diag.List) ([]*x509.Certificate, bool) {
	list, ok := certificates(file, data, p)
	for i, c := range list {
		if now.After(c.NotAfter) {
			p.Errorf("certificate %d of %s expired on %s", i+1, file, c.NotAfter.UTC().Format(time.RFC3339))
			ok = false
		}
		ok = sound(i+1, file, c, now, p) && ok
	}
	return list, ok
}

// sound reports whether a certificate is of today's strength, and its time has
// come. That it soon ends is a warning.
func sound(n int, file string, c *x509.Certificate, now time.Time, p *diag.List) bool {
	before := errorCount(p)
	switch {
	case now.Before(c.NotBefore):
		p.Errorf("certificate %d of %s is not valid before %s", n, file, c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
	case now.Add(warnAhead).After(c.NotAfter):
		p.Warnf("certificate %d of %s expires in %d days, on %s", n, file, int(c.NotAfter.Sub(now)/day), c.NotAfter.UTC().Format(time.RFC3339))
	}
	if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < 2048 {
		p.Errorf("certificate %d of %s has an RSA key of %d bits; 2048 is the least", n, file, key.N.BitLen())
	}
	// The signature of a root on itself proves nothing and is never checked.
	if forgeable(c.SignatureAlgorithm) && !bytes.Equal(c.RawIssuer, c.RawSubject) {
		p.Errorf("certificate %d of %s is signed with %s, which can be forged", n, file, c.SignatureAlgorithm)
	}
	return errorCount(p) == before
}

// forgeable reports whether a signature may be by somebody without the key.
func forgeable(a x509.SignatureAlgorithm) bool {
	return slices.Contains([]x509.SignatureAlgorithm{
		x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1,
	}, a)
}

func encrypted(keyPEM []byte) bool {
	for rest := keyPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return false
		}
		// PKCS #8 (RFC 7468 section 11), and OpenSSL's older form (RFC 1421).
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return true
		}
	}
}
