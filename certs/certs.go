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
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"sallyport/internal/problem"
)

const (
	maxFile   = 1 << 20             // bytes of one PEM file; a whole system's roots are a quarter of it
	warnAhead = 14 * 24 * time.Hour // before the end of a certificate
	day       = 24 * time.Hour
)

// Spec is the tls section of the configuration file. Paths are relative to the
// folder of that file.
type Spec struct {
	Cert       string `yaml:"cert"`        // PEM: the server's certificate, then its intermediates
	Key        string `yaml:"key"`         // PEM, not encrypted, for nobody else to read
	ClientCA   string `yaml:"client_ca"`   // PEM: who may sign client certificates; none are asked for without it
	MinVersion string `yaml:"min_version"` // "1.3" (default) or "1.2"
}

// Load reads what spec names, relative to dir, and returns the server's TLS
// configuration, which nobody changes afterwards. Everything wrong with the
// files is written to p at the key that names the file. When any of it is more
// than a warning the result is nil: nothing is served with less checking than
// the file asks for.
func Load(spec Spec, dir string, now time.Time, p *problem.List) *tls.Config {
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
	if pair, ok := loadPair(spec, dir, now, p); ok {
		cfg.Certificates = []tls.Certificate{pair}
	}
	if spec.ClientCA != "" {
		// Not required of everybody: other callers sign instead. Whoever
		// shows a certificate has to show a good one.
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
		cfg.ClientCAs = loadClientCA(spec.ClientCA, dir, now, p.At("client_ca"))
	}
	if errorCount(p) > before {
		return nil
	}
	return cfg
}

func errorCount(p *problem.List) (n int) {
	for _, one := range p.All() {
		if !one.Warning {
			n++
		}
	}
	return n
}

func minVersion(text string, p *problem.List) uint16 {
	switch text {
	case "", "1.3":
	case "1.2":
		return tls.VersionTLS12
	default:
		p.Errorf(`%q is no TLS version that is served; "1.3" and "1.2" are`, text)
	}
	return tls.VersionTLS13
}

// loadPair reads the server's certificate and key. It reports false when
// either could not be used; what else is wrong stands in p.
func loadPair(spec Spec, dir string, now time.Time, p *problem.List) (tls.Certificate, bool) {
	atCert, atKey := p.At("cert"), p.At("key")
	certPEM, certOK := read(resolve(dir, spec.Cert), spec.Cert, 0o002, atCert)
	keyPEM, keyOK := read(resolve(dir, spec.Key), spec.Key, 0o027, atKey)
	if certOK {
		var chain []*x509.Certificate
		if chain, certOK = parse(spec.Cert, certPEM, now, atCert); certOK {
			checkServer(spec.Cert, chain[0], atCert)
		}
	}
	if keyOK && encrypted(keyPEM) {
		atKey.Errorf("%s is encrypted, and there is nobody to ask for its passphrase at the start; keep it in clear, readable by the server alone", spec.Key)
		keyOK = false
	}
	if !certOK || !keyOK {
		return tls.Certificate{}, false
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		atKey.Errorf("using %s with %s: %v", spec.Key, spec.Cert, err)
		return tls.Certificate{}, false
	}
	return pair, true
}

func checkServer(file string, leaf *x509.Certificate, p *problem.List) {
	usable := func(u x509.ExtKeyUsage) bool {
		return u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageAny
	}
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.ContainsFunc(leaf.ExtKeyUsage, usable) {
		p.Errorf("certificate 1 of %s is not for servers: its extended key usage lacks serverAuth", file)
	}
	// Senders look nowhere else for the name (RFC 9525 section 2).
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
		p.Errorf("certificate 1 of %s has no DNS name and no address in its subjectAltName, so no sender would take it", file)
	}
}

func loadClientCA(file, dir string, now time.Time, p *problem.List) *x509.CertPool {
	data, ok := read(resolve(dir, file), file, 0o002, p)
	if !ok {
		return nil
	}
	list, ok := parse(file, data, now, p)
	if !ok {
		return nil
	}
	pool := x509.NewCertPool()
	for i, c := range list {
		// A leaf in the pool would be trusted as it stands, whoever signed it.
		if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
			p.Errorf("certificate %d of %s is not a CA's", i+1, file)
		}
		pool.AddCert(c)
	}
	return pool
}

func resolve(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// read returns the content of a file whose mode has none of the bits of deny.
func read(path, name string, deny fs.FileMode, p *problem.List) ([]byte, bool) {
	if name == "" {
		p.Errorf("is missing")
		return nil, false
	}
	// O_NONBLOCK: a FIFO must not hold up the start.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		p.Errorf("%v", err)
		return nil, false
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		p.Errorf("%v", err)
		return nil, false
	}
	if !info.Mode().IsRegular() {
		p.Errorf("%s is not a regular file", name)
		return nil, false
	}
	if mode := info.Mode().Perm(); mode&deny != 0 {
		p.Errorf("%s may be %s others (its mode is %04o); chmod %04o it", name, what(deny), mode, mode&^deny)
		return nil, false
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		p.Errorf("%v", err)
		return nil, false
	}
	if len(data) > maxFile {
		p.Errorf("%s is larger than %d bytes", name, maxFile)
		return nil, false
	}
	return data, true
}

func what(deny fs.FileMode) string {
	if deny&0o004 != 0 {
		return "read or changed by"
	}
	return "changed by"
}

// parse returns the certificates of a PEM file, at least one, all of them
// sound and current, or reports false. Text between the blocks is a comment
// (RFC 7468 section 2), but a block that cannot be read is an error: skipped,
// as pem.Decode would, it is a CA that the operator believes is there.
func parse(file string, data []byte, now time.Time, p *problem.List) ([]*x509.Certificate, bool) {
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
	ok := true
	for i, c := range list {
		ok = sound(i+1, file, c, now, p) && ok
	}
	return list, ok
}

// sound reports whether a certificate is of today's strength and time.
func sound(n int, file string, c *x509.Certificate, now time.Time, p *problem.List) bool {
	before := errorCount(p)
	switch {
	case now.Before(c.NotBefore):
		p.Errorf("certificate %d of %s is not valid before %s", n, file, c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
		p.Errorf("certificate %d of %s expired on %s", n, file, c.NotAfter.UTC().Format(time.RFC3339))
	case now.Add(warnAhead).After(c.NotAfter):
		p.Warnf("certificate %d of %s expires in %d days, on %s", n, file, int(c.NotAfter.Sub(now)/day), c.NotAfter.UTC().Format(time.RFC3339))
	}
	if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < 2048 {
		p.Errorf("certificate %d of %s has an RSA key of %d bits; 2048 is the least", n, file, key.N.BitLen())
	}
	weak := []x509.SignatureAlgorithm{x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1}
	// The signature of a root on itself proves nothing and is never checked.
	if slices.Contains(weak, c.SignatureAlgorithm) && !bytes.Equal(c.RawIssuer, c.RawSubject) {
		p.Errorf("certificate %d of %s is signed with %s, which can be forged", n, file, c.SignatureAlgorithm)
	}
	return errorCount(p) == before
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
