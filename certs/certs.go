// Package certs loads the certificates, keys, CAs and CRLs of the configuration, and makes TLS configurations of them.
// It never returns a configuration that checks less than the file asks for: each problem is reported at its key, and
// with any error nothing is returned. Results are never changed afterwards. Objects that renew certificates live longer
// than a configuration: [Renewals] obtain certificates by ACME, and [Workloads] hold connections to SPIFFE Workload
// APIs. [Load] returns the server's own certificates, [LoadClients] the trust in client certificates, and [Dev] makes
// certificates for development.
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
	maxFile   = 1 << 20             // maximum bytes of a file of certificates, or of a key
	maxCRL    = 16 << 20            // maximum bytes of a file of CRLs: about half a million entries
	warnAhead = 14 * 24 * time.Hour // time before a certificate expires when a warning is due
	day       = 24 * time.Hour
)

// Spec is the tls section of the configuration file. Paths are relative to the
// folder of that file.
type Spec struct {
	Cert         string      `yaml:"cert"`         // as in PairSpec; for a single pair
	Key          string      `yaml:"key"`          // as in PairSpec; for a single pair
	Certificates []PairSpec  `yaml:"certificates"` // several pairs, instead of cert and key
	ACME         *ACMESpec   `yaml:"acme"`         // in addition to pairs, or alone
	ClientCA     string      `yaml:"client_ca"`    // PEM: CAs of callers that do not name a CA
	ClientCRL    []string    `yaml:"client_crl"`   // PEM or DER: CRLs of the CAs of client certificates
	SPIFFE       *SPIFFESpec `yaml:"spiffe"`       // replaces client_ca, and replaces the pairs if none are configured
	MinVersion   string      `yaml:"min_version"`  // "1.3" (default) or "1.2"
}

// Load reads the server's own certificates and keys, relative to dir. It returns the TLS configuration, to which
// [Clients.AddTo] and [ACME.AddTo] add the rest, and when its certificates expire. Each problem is reported to p at the
// key that names the file. With any error the result is nil.
func Load(spec Spec, dir string, now time.Time, p *diag.List) (*tls.Config, []Expiry) {
	before := errorCount(p)
	cfg := &tls.Config{
		MinVersion: parseMinVersion(spec.MinVersion, p.At("min_version")),
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

func parseMinVersion(text string, p *diag.List) uint16 {
	switch text {
	case "", "1.3":
	case "1.2":
		return tls.VersionTLS12
	default:
		p.Errorf(`%q is not a supported TLS version: write "1.3" or "1.2"`, text)
	}
	return tls.VersionTLS13
}

func resolvePath(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// readTrustedFile reads a file of limited size. The mode of the file must have none of the bits of deny, and no other
// user may be able to replace it.
func readTrustedFile(path, name string, most int, deny fs.FileMode, p *diag.List) ([]byte, bool) {
	if name == "" {
		p.Errorf("is missing")
		return nil, false
	}
	seen, _ := os.Stat(path) // nil if the file does not exist
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

// parseCertificates returns the certificates of a PEM file, at least one, or reports false. Text between the blocks is
// a comment (RFC 7468 section 2), but a block that cannot be read is an error: if it were skipped, as pem.Decode does,
// a CA that the operator relies on would be missing.
func parseCertificates(file string, data []byte, p *diag.List) ([]*x509.Certificate, bool) {
	blocks := bytes.Count(data, []byte("-----BEGIN"))
	var list []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			p.Errorf("%s contains a %s, but may contain certificates only", file, block.Type)
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
		p.Errorf("%s does not contain a certificate", file)
		return nil, false
	}
	if len(list) != blocks {
		p.Errorf("%s contains %d PEM blocks, and %d of them cannot be parsed", file, blocks, blocks-len(list))
		return nil, false
	}
	return list, true
}

// parseValidCertificates is like parseCertificates, and requires strong and current certificates.
func parseValidCertificates(file string, data []byte, now time.Time, p *diag.List) ([]*x509.Certificate, bool) {
	list, ok := parseCertificates(file, data, p)
	for i, c := range list {
		if now.After(c.NotAfter) {
			p.Errorf("certificate %d of %s expired on %s", i+1, file, c.NotAfter.UTC().Format(time.RFC3339))
			ok = false
		}
		ok = checkStrength(i+1, file, c, now, p) && ok
	}
	return list, ok
}

// checkStrength reports whether a certificate is valid already and cryptographically strong. A warning is due if it
// expires soon.
func checkStrength(n int, file string, c *x509.Certificate, now time.Time, p *diag.List) bool {
	before := errorCount(p)
	switch {
	case now.Before(c.NotBefore):
		p.Errorf("certificate %d of %s is not valid before %s", n, file, c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
	case now.Add(warnAhead).After(c.NotAfter):
		p.Warnf("certificate %d of %s expires in %d days, on %s", n, file, int(c.NotAfter.Sub(now)/day),
			c.NotAfter.UTC().Format(time.RFC3339))
	}
	if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < 2048 {
		p.Errorf("certificate %d of %s has an RSA key of %d bits, but needs at least 2048", n, file, key.N.BitLen())
	}
	// The signature of a root on itself proves nothing and is never verified.
	if isForgeable(c.SignatureAlgorithm) && !bytes.Equal(c.RawIssuer, c.RawSubject) {
		p.Errorf("certificate %d of %s is signed with %s, which can be forged", n, file, c.SignatureAlgorithm)
	}
	return errorCount(p) == before
}

// isForgeable reports whether a signature with this algorithm can be made without the key.
func isForgeable(a x509.SignatureAlgorithm) bool {
	return slices.Contains([]x509.SignatureAlgorithm{
		x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1,
	}, a)
}

func isEncryptedKey(keyPEM []byte) bool {
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
