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

// Dev makes what development needs in dir: ca.pem; server.pem and server.key
// for localhost, 127.0.0.1 and ::1; client.pem and client.key for the caller
// spiffe://localhost/dev. All of it is ECDSA P-256 and good for 90 days from
// now. Keys are for their owner alone to read.
//
// The CA's key is used and forgotten, never written: nobody can sign anything
// else with it, so every call makes everything anew. Its name constraints (RFC
// 5280 section 4.2.1.10) keep it to this machine's names even so.
//
// Files that are there already are an error. With renew they stay when they
// are good for another week, and are replaced when not, if they are Dev's own;
// a file of anybody else is never replaced. Dev reports whether it made any.
func Dev(dir string, now time.Time, renew bool) (made bool, err error) {
	present, err := devFiles(dir)
	if err != nil {
		return false, err
	}
	if len(present) > 0 && !renew {
		return false, fmt.Errorf("%s is there already; --renew replaces what has expired or soon will", filepath.Join(dir, present[0]))
	}
	if devFresh(dir, now) {
		return false, nil
	}
	for _, name := range present {
		if !devOwn(dir, name) {
			return false, fmt.Errorf("%s was not made for development and is left alone", filepath.Join(dir, name))
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // certificates are public; each key has its own mode
		return false, err
	}
	return true, devMake(dir, now)
}

// devFiles names those of Dev's files that are there.
func devFiles(dir string) (present []string, err error) {
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

// devFresh reports whether all the files are there, fit together, and will for
// another week.
func devFresh(dir string, now time.Time) bool {
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

// devOwn reports whether Dev made a file: a certificate by its issuer, a key
// by the certificate next to it.
func devOwn(dir, name string) bool {
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

func devMake(dir string, now time.Time) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := template(devCA, now)
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
	server := template("localhost", now)
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames = []string{"localhost"}
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}

	client := template("dev", now)
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	id, err := url.Parse(devClientID)
	if err != nil {
		return err
	}
	client.URIs = []*url.URL{id}

	if err := writePEM(dir, devCAFile, 0o644, "CERTIFICATE", der); err != nil {
		return err
	}
	if err := issue(dir, "server", server, ca, caKey); err != nil {
		return err
	}
	return issue(dir, "client", client, ca, caKey)
}

func template(name string, now time.Time) *x509.Certificate {
	return &x509.Certificate{ // with a random serial number, as CreateCertificate gives it
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-clockSkew),
		NotAfter:  now.Add(devLife),
		KeyUsage:  x509.KeyUsageDigitalSignature,
	}
}

// issue writes the certificate before its key, so that whatever a crash leaves
// behind is known as Dev's own by the certificate.
func issue(dir, name string, leaf, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	if err := writePEM(dir, name+".pem", 0o644, "CERTIFICATE", der); err != nil {
		return err
	}
	if der, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return err
	}
	return writePEM(dir, name+".key", 0o600, "PRIVATE KEY", der)
}

// writePEM puts a file in its place whole or not at all, and never one whose
// mode is for a moment wider than it shall be.
func writePEM(dir, name string, mode fs.FileMode, kind string, der []byte) error {
	return pathsafe.ReplaceFileAt(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
