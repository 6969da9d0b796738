package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"sallyport/internal/diag"
)

// PairSpec is a certificate of the server and its key.
type PairSpec struct {
	Cert string `yaml:"cert"` // PEM: the certificate, then its intermediates
	Key  string `yaml:"key"`  // PEM, not encrypted, and not readable by other users
}

// loadPairs reads the server's certificates and keys. crypto/tls chooses the one for a client: the first one that has
// the requested name (RFC 6066 section 3) and a key of a type that the client supports. A client that requests no name,
// or an unknown one, gets the first pair, and decides whether it accepts that.
func loadPairs(spec Spec, dir string, now time.Time, p *diag.List) (pairs []tls.Certificate, ends []Expiry) {
	type use struct {
		name string
		key  x509.PublicKeyAlgorithm
	}
	used := map[use]int{} // index of the pair
	specs, at := pairSpecs(spec, p)
	for i, s := range specs {
		pair, list, ok := loadPair(s, dir, now, at(i))
		if !ok {
			continue
		}
		pairs, ends = append(pairs, pair), append(ends, listExpiries("server certificate", s.Cert, list)...)
		for _, name := range pair.Leaf.DNSNames {
			u := use{strings.ToLower(name), pair.Leaf.PublicKeyAlgorithm}
			first, taken := used[u]
			if !taken {
				used[u] = i
			} else if first != i {
				at(i).At("cert").Errorf("%s is for %s with a key of type %s, and so is %s: "+
					"this one would never be used",
					s.Cert, u.name, u.key, specs[first].Cert)
			}
			if spec.ACME != nil && slices.Contains(spec.ACME.Domains, u.name) {
				at(i).At("cert").Errorf("%s is for %s, for which acme gets a certificate", s.Cert, u.name)
			}
		}
	}
	return pairs, ends
}

// pairSpecs returns the pairs of the configuration, and their places.
func pairSpecs(spec Spec, p *diag.List) (specs []PairSpec, at func(int) *diag.List) {
	one := spec.Cert != "" || spec.Key != ""
	if len(spec.Certificates) > 0 {
		if one {
			p.At("certificates").Errorf("cannot be combined with cert and key: move them into this list")
		}
		return spec.Certificates, p.At("certificates").Index
	}
	if one || spec.ACME == nil && spec.SPIFFE == nil {
		specs = []PairSpec{{Cert: spec.Cert, Key: spec.Key}}
	}
	return specs, func(int) *diag.List { return p }
}

// loadPair reads a certificate with its chain, and its key. It reports false if they cannot be used; p has the reasons.
func loadPair(spec PairSpec, dir string, now time.Time, p *diag.List) (
	pair tls.Certificate, chain []*x509.Certificate, ok bool,
) {
	atCert, atKey := p.At("cert"), p.At("key")
	certPEM, certOK := readTrustedFile(resolvePath(dir, spec.Cert), spec.Cert, maxFile, 0o002, atCert)
	keyPEM, keyOK := readTrustedFile(resolvePath(dir, spec.Key), spec.Key, maxFile, 0o027, atKey)
	if certOK {
		if chain, certOK = parseValidCertificates(spec.Cert, certPEM, now, atCert); certOK {
			checkServerUse(spec.Cert, chain[0], atCert)
			warnIncompleteChain(spec.Cert, chain, atCert)
		}
	}
	if keyOK && isEncryptedKey(keyPEM) {
		atKey.Errorf("%s is encrypted, and the server cannot ask for a passphrase: "+
			"store it unencrypted, readable by the server only", spec.Key)
		keyOK = false
	}
	if !certOK || !keyOK {
		return tls.Certificate{}, nil, false
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		atKey.Errorf("using %s with %s: %v", spec.Key, spec.Cert, err)
		return tls.Certificate{}, nil, false
	}
	return pair, chain, true
}

// warnIncompleteChain warns if the certificate of an intermediate CA is missing, so that most senders cannot verify the
// server. The server cannot log that later: a sender that does not trust it closes the connection.
func warnIncompleteChain(file string, chain []*x509.Certificate, p *diag.List) {
	leaf := chain[0]
	if len(chain) == 1 && len(leaf.IssuingCertificateURL) > 0 && !bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
		p.Warnf("%s contains only the server's certificate, which %q signed: append the certificates of the "+
			"intermediate CAs, or most senders refuse the connection. Many CAs deliver both as fullchain.pem",
			file, leaf.Issuer.CommonName)
	}
	for i, signer := range chain[1:] {
		if !bytes.Equal(chain[i].RawIssuer, signer.RawSubject) {
			p.Warnf("certificate %d of %s did not sign the one before it, which %q signed: "+
				"senders may refuse the connection",
				i+2, file, chain[i].Issuer.CommonName)
		}
	}
}

func checkServerUse(file string, leaf *x509.Certificate, p *diag.List) {
	usable := func(u x509.ExtKeyUsage) bool {
		return u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageAny
	}
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.ContainsFunc(leaf.ExtKeyUsage, usable) {
		p.Errorf("certificate 1 of %s is not for servers: its extended key usage lacks serverAuth", file)
	}
	// Senders look for the name only there (RFC 9525 section 2).
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
		p.Errorf("certificate 1 of %s has no DNS name and no address in its subjectAltName, "+
			"so every sender would refuse it", file)
	}
}
