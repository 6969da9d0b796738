package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"sallyport/internal/pathsafe"
)

const (
	devCA       = "sallyport development CA"
	devLife     = 90 * day
	renewAhead  = 7 * day
	clockSkew   = time.Hour
	devCAFile   = "ca.pem"
	devClientID = "spiffe://localhost/dev"
)

// Dev creates certificates for development in dir: ca.pem; server.pem and server.key for localhost, 127.0.0.1 and ::1;
// client.pem and client.key for the caller spiffe://localhost/dev. All are ECDSA P-256 and valid for 90 days from now.
// Only their owner can read the keys.
//
// The CA's key is never written, so that nothing else can be signed with it, and each call creates all files again. In
// addition, name constraints (RFC 5280 section 4.2.1.10) restrict the CA to the names of this machine.
//
// Existing files are an error. With renew, files of Dev stay if they are valid for another week, and are replaced
// otherwise; other files are never replaced. Dev reports whether it created files.
func Dev(dir string, now time.Time, renew bool) (made bool, err error) {
	present, err := listDevFiles(dir)
	if err != nil {
		return false, err
	}
	if len(present) > 0 && !renew {
		return false, fmt.Errorf("%s exists already; --renew replaces certificates that have expired or soon will",
			filepath.Join(dir, present[0]))
	}
	if devFilesAreFresh(dir, now) {
		return false, nil
	}
	for _, name := range present {
		if !isDevFile(dir, name) {
			return false, fmt.Errorf("%s was not created by this command, so it is not replaced",
				filepath.Join(dir, name))
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // certificates are public; each key has its own mode
		return false, err
	}
	return true, makeDevFiles(dir, now)
}

// listDevFiles returns the names of Dev's files that exist.
func listDevFiles(dir string) (present []string, err error) {
	for _, name := range []string{devCAFile, "server.pem", "server.key", "client.pem", "client.key"} {
		_, err := os.Lstat(filepath.Join(dir, name))
		switch {
		case err == nil:
			present = append(present, name)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return present, nil
}

// devFilesAreFresh reports whether all the files exist, fit together, and are valid for another week.
func devFilesAreFresh(dir string, now time.Time) bool {
	ca, err := os.ReadFile(filepath.Join(dir, devCAFile))
	if err != nil {
		return false
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	for _, name := range []string{"server", "client"} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
		if err != nil {
			return false
		}
		_, err = pair.Leaf.Verify(x509.VerifyOptions{
			Roots: pool, CurrentTime: now.Add(renewAhead), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err != nil {
			return false
		}
	}
	return true
}

// isDevFile reports whether Dev created a file: a certificate by its issuer, a key by the certificate next to it.
func isDevFile(dir, name string) bool {
	name = name[:len(name)-len(filepath.Ext(name))] + ".pem"
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return false
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return false
	}
	c, err := x509.ParseCertificate(block.Bytes)
	return err == nil && c.Issuer.CommonName == devCA
}

func makeDevFiles(dir string, now time.Time) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := newTemplate(devCA, now)
	ca.IsCA, ca.BasicConstraintsValid, ca.MaxPathLenZero = true, true, true
	ca.KeyUsage = x509.KeyUsageCertSign
	ca.PermittedDNSDomainsCritical = true
	ca.PermittedDNSDomains = []string{"localhost"}
	ca.PermittedURIDomains = []string{"localhost"}
	ca.PermittedIPRanges = []*net.IPNet{
		{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
		{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	server := newTemplate("localhost", now)
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames = []string{"localhost"}
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}

	client := newTemplate("dev", now)
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	id, err := url.Parse(devClientID)
	if err != nil {
		return err
	}
	client.URIs = []*url.URL{id}

	if err := replacePEM(dir, devCAFile, 0o644, "CERTIFICATE", der); err != nil {
		return err
	}
	if err := issueDevPair(dir, "server", server, ca, caKey); err != nil {
		return err
	}
	return issueDevPair(dir, "client", client, ca, caKey)
}

func newTemplate(name string, now time.Time) *x509.Certificate {
	return &x509.Certificate{ // with a random serial number, as CreateCertificate gives it
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-clockSkew),
		NotAfter:  now.Add(devLife),
		KeyUsage:  x509.KeyUsageDigitalSignature,
	}
}

// issueDevPair writes the certificate before its key, so that after a crash the certificate identifies the files as
// Dev's.
func issueDevPair(dir, name string, leaf, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	if err := replacePEM(dir, name+".pem", 0o644, "CERTIFICATE", der); err != nil {
		return err
	}
	if der, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return err
	}
	return replacePEM(dir, name+".key", 0o600, "PRIVATE KEY", der)
}

// replacePEM writes a file as a whole or not at all, and its mode is never wider than mode.
func replacePEM(dir, name string, mode fs.FileMode, kind string, der []byte) error {
	return pathsafe.ReplaceFileAt(filepath.Join(dir, name),
		pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
