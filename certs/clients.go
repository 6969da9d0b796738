package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sallyport/internal/diag"
)

// Client certificates are verified twice. The handshake refuses certificates that no caller can have. Then each request
// is verified with the trust of its caller at its time: a connection may be older than the configuration, and a resumed
// session older than both.

// Bounds on what a client shows. It is verified before the client has proved that it has the key, so it must not cost
// much more than a usual chain does: no two CAs with one name, because each signature would be tried with each key, and
// no RSA key that makes verification a hundred times slower.
const (
	maxShown    = 4 // the client's certificate, and three CAs
	maxRSABits  = 4096
	rsaExponent = 65537
)

// Reasons to refuse a certificate that a trusted CA signed.
var (
	ErrStale   = errors.New("outside its validity period")
	ErrRevoked = errors.New("revoked")
)

// errNoCA is the least specific reason.
var errNoCA = errors.New("does not lead to a CA")

// Trust verifies the certificates that a client showed, its own first, at a time. The error gives the reason for a
// refusal, in words that follow "the client certificate"; it is or wraps [ErrStale] or [ErrRevoked] for those reasons.
// A Trust may be used concurrently.
type Trust func(shown []*x509.Certificate, now time.Time) error

// Clients are the trusted CAs of client certificates, the certificates that callers pin, and the CRLs. [LoadClients]
// makes all of it at once, and nothing changes it afterwards.
type Clients struct {
	spec     Spec
	files    map[string]*authority // by name, as the configuration file has it
	anyFile  *authority            // the CAs of all files, for handshakes
	pins     map[[sha256.Size]byte]bool
	revoked  *revocations
	workload *workload
}

// Named is what the callers name for client certificates, in addition to the tls section.
type Named struct {
	CAs  []NamedCA
	Pins [][sha256.Size]byte // SHA-256 sums of certificates
}

// NamedCA is a file of CAs that a caller names. Problems with the file are reported to At.
type NamedCA struct {
	File string
	At   *diag.List
}

// LoadClients reads the CAs and CRLs that the tls section and the callers name, relative to dir. It reports each
// problem to p at the key that names the file; if p is bad, the result only serves to find further problems, and must
// not be used for connections.
func LoadClients(spec Spec, named Named, dir string, now time.Time, workloads *Workloads, p *diag.List) *Clients {
	c := &Clients{spec: spec, files: map[string]*authority{}, pins: map[[sha256.Size]byte]bool{}}
	if spec.ClientCA != "" {
		c.files[spec.ClientCA] = loadAuthority(spec.ClientCA, dir, now, p.At("client_ca"))
	}
	for _, ca := range named.CAs {
		if c.files[ca.File] == nil { // read and reported once
			c.files[ca.File] = loadAuthority(ca.File, dir, now, ca.At)
		}
	}
	for _, sum := range named.Pins {
		c.pins[sum] = true
	}
	if spec.SPIFFE != nil {
		if spec.ClientCA != "" {
			p.At("spiffe").Errorf("replaces client_ca: set mtls.ca to that file for its callers")
		}
		c.workload = workloads.loadWorkload(spec.SPIFFE, p.At("spiffe"))
	}
	c.anyFile = mergeAuthorities(c.files)
	c.revoked = loadRevocations(spec.ClientCRL, c.files, dir, now, p.At("client_crl"))
	return c
}

// ByCA returns the trust in certificates that lead to a CA of a file, or nil when LoadClients was not given that file.
func (c *Clients) ByCA(file string) Trust {
	a := c.files[file]
	if a == nil {
		return nil
	}
	return func(shown []*x509.Certificate, now time.Time) error {
		chains, err := a.verifyChains(shown, now)
		if err != nil {
			return err
		}
		return c.revoked.checkChains(chains, now)
	}
}

// ByDefault returns the trust in the certificates of callers that do not name a CA, or nil if tls.client_ca is not set.
func (c *Clients) ByDefault() Trust { return c.ByCA(c.spec.ClientCA) }

// BySPIFFE returns the trust in X.509-SVIDs of the trust domains that the Workload API currently knows, or nil if
// tls.spiffe is not set. Use it for callers that are identified by their SPIFFE ID only: the CA of a federated trust
// domain may put any other name into a certificate.
func (c *Clients) BySPIFFE() Trust {
	if c.spec.SPIFFE == nil {
		return nil
	}
	return c.workload.verifySVID
}

// Pinned returns the trust in the one certificate with this SHA-256 sum. A self-signed certificate needs no CA. Any
// other must also pass rest, so that its CA can revoke it. Handshakes accept a self-signed certificate only if
// LoadClients was given its sum.
func Pinned(sum [sha256.Size]byte, rest Trust) Trust {
	return func(shown []*x509.Certificate, now time.Time) error {
		switch {
		case sha256.Sum256(shown[0].Raw) != sum:
			return errors.New("differs from the pinned one")
		case isSelfSigned(shown[0]):
			return verifySelfSigned(shown[0], now)
		case rest == nil:
			return errors.New("is not self-signed, so its pin needs the ca that signed it")
		}
		return rest(shown, now)
	}
}

// AddTo returns a copy of cfg that asks clients for certificates, if any can be
// accepted. With tls.spiffe, the copy serves the SVID unless cfg has a
// certificate. The result is nil if cfg is.
func (c *Clients) AddTo(cfg *tls.Config) *tls.Config {
	if cfg == nil {
		return nil
	}
	cfg = cfg.Clone()
	if c.workload != nil && len(cfg.Certificates) == 0 {
		cfg.GetCertificate = c.workload.getCertificate
	}
	if len(c.files) == 0 && len(c.pins) == 0 && c.workload == nil {
		return cfg
	}
	// A certificate is not required, because other callers sign instead. verifyHandshake verifies it and not
	// crypto/tls, which supports one pool for all.
	cfg.ClientAuth = tls.RequestClientCert
	cfg.VerifyConnection = c.verifyHandshake
	if len(c.pins) > 0 || c.workload != nil {
		return cfg
	}
	// A client chooses one of several certificates by this list (RFC 8446 section 4.2.4), or shows none. The list
	// cannot contain pins or CAs that change, so it is left empty then.
	cfg.ClientCAs = x509.NewCertPool()
	for _, a := range c.files {
		for _, ca := range a.cas {
			cfg.ClientCAs.AddCert(ca)
		}
	}
	return cfg
}

// Describe returns lines about the trust in client certificates, except for what callers name.
func (c *Clients) Describe() (lines []string) {
	if c.spec.ClientCA != "" {
		lines = append(lines, "by the CAs of "+c.spec.ClientCA)
	}
	if c.workload != nil {
		lines = append(lines, "by SPIFFE: "+c.workload.String())
	}
	for _, list := range c.revoked.sortedLists() {
		lines = append(lines, list.String())
	}
	return lines
}

// Expiries returns when the CAs and CRLs, and what the Workload API issued, expire.
func (c *Clients) Expiries() (all []Expiry) {
	for name, a := range c.files {
		all = append(all, listExpiries("client CA", name, a.cas)...)
	}
	for _, l := range c.revoked.lists {
		all = append(all, Expiry{What: "CRL", File: l.file, Subject: l.by, NotAfter: l.until, Ahead: l.ahead})
	}
	if c.workload != nil {
		all = append(all, c.workload.listExpiries()...)
	}
	return all
}

// verifyHandshake verifies the client certificate of a handshake. It accepts a revoked certificate, so that the refusal
// of its requests is logged with the reason, but it does not resume a session with one: the client may have a new
// certificate, and shows it in a full handshake. Of several reasons for a refusal, the error has the most specific one.
func (c *Clients) verifyHandshake(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	if err := c.judgeShown(state.PeerCertificates, state.DidResume); err != nil {
		return fmt.Errorf("the client certificate %w", err)
	}
	return nil
}

func (c *Clients) judgeShown(shown []*x509.Certificate, resumed bool) error {
	if err := checkShownBounds(shown); err != nil {
		return err
	}
	now := time.Now()
	if c.pins[sha256.Sum256(shown[0].Raw)] && isSelfSigned(shown[0]) {
		return verifySelfSigned(shown[0], now)
	}
	chains, err := c.anyFile.verifyChains(shown, now)
	if err == nil && resumed {
		err = c.revoked.checkChains(chains, now)
	}
	if errors.Is(err, errNoCA) {
		err = c.describeNoCA(shown)
	}
	if err == nil || c.workload == nil {
		return err
	}
	bySPIFFE := c.workload.verifySVID(shown, now)
	if bySPIFFE == nil || !c.anyFile.namesIssuerOf(shown) {
		return bySPIFFE
	}
	return err
}

// describeNoCA returns the error for a certificate that no known CA signed. It names the files that have a CA with the
// name of its issuer.
func (c *Clients) describeNoCA(shown []*x509.Certificate) error {
	var named []string
	for _, name := range slices.Sorted(maps.Keys(c.files)) {
		if c.files[name].namesIssuerOf(shown) {
			named = append(named, name)
		}
	}
	if len(named) == 0 {
		return fmt.Errorf("%w that is known here, and is not pinned", errNoCA)
	}
	return newNoCAError(strings.Join(named, ", "))
}

// checkShownBounds returns an error if what a client shows is over the bounds. Only handshakes need this check, because
// requests verify what the handshake received.
func checkShownBounds(shown []*x509.Certificate) error {
	if len(shown) > maxShown {
		return fmt.Errorf("is one of %d certificates, but at most %d are allowed", len(shown), maxShown)
	}
	names := map[string]bool{}
	for i, c := range shown {
		switch key := c.PublicKey.(type) {
		case *rsa.PublicKey:
			if key.N.BitLen() > maxRSABits || key.E != rsaExponent {
				return fmt.Errorf("has a chain with an RSA key (certificate %d) of %d bits and exponent %d, "+
					"but at most %d bits and exponent %d are allowed", i+1, key.N.BitLen(), key.E, maxRSABits,
					rsaExponent)
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			return fmt.Errorf("is shown with a key (certificate %d) that is not RSA, ECDSA or Ed25519", i+1)
		}
		if i > 0 && names[string(c.RawSubject)] {
			return fmt.Errorf("is shown with two CAs of one name (the second is certificate %d)", i+1)
		}
		names[string(c.RawSubject)] = i > 0
	}
	return nil
}

// loadAuthority reads a file of CAs. The result has no CAs if the file cannot be read. An expired CA is a warning, as
// an expired CRL is: it makes no certificate valid, but callers of the other CAs must still be served.
func loadAuthority(name, dir string, now time.Time, p *diag.List) *authority {
	var found, cas []*x509.Certificate
	if data, ok := readTrustedFile(resolvePath(dir, name), name, maxFile, 0o022, p); ok {
		found, _ = parseCertificates(name, data, p)
	}
	ended := 0
	for i, ca := range found {
		checkStrength(i+1, name, ca, now, p)
		if now.After(ca.NotAfter) {
			ended++
			p.Warnf("certificate %d of %s expired on %s: certificates that it signed are refused", i+1, name,
				ca.NotAfter.UTC().Format(time.RFC3339))
		}
		// A leaf in the pool would be trusted as it is, without its signature.
		if !ca.BasicConstraintsValid || !ca.IsCA || ca.KeyUsage != 0 && ca.KeyUsage&x509.KeyUsageCertSign == 0 {
			p.Errorf("certificate %d of %s is not a CA certificate", i+1, name)
			continue
		}
		cas = append(cas, ca)
	}
	if ended > 1 && ended == len(found) {
		p.Warnf("all CAs of %s have expired: certificates that they signed are refused", name)
	}
	return newAuthority(name, cas)
}

// authority is the CAs of one file, or of one SPIFFE trust domain.
type authority struct {
	name                 string
	cas                  []*x509.Certificate
	names                map[string]bool // raw subjects of the CAs
	roots, intermediates *x509.CertPool  // never nil, which means the system's CAs to x509.Verify
}

func newAuthority(name string, cas []*x509.Certificate) *authority {
	a := &authority{name: name, names: map[string]bool{}, roots: x509.NewCertPool(), intermediates: x509.NewCertPool()}
	a.addCAs(cas)
	return a
}

// mergeAuthorities returns an authority with the CAs of all files, so that a handshake verifies a chain once, and not
// once per file.
func mergeAuthorities(files map[string]*authority) *authority {
	all := newAuthority("", nil)
	for _, a := range files {
		all.addCAs(a.cas)
	}
	return all
}

// addCAs adds CAs as roots, except for those that another one of them signed, which become intermediates: as roots they
// would be trusted even after their own CA revoked them.
func (a *authority) addCAs(cas []*x509.Certificate) {
	a.cas = append(a.cas, cas...)
	for _, ca := range cas {
		a.names[string(ca.RawSubject)] = true
		if !isSelfSigned(ca) && findIssuer(ca, cas) != nil {
			a.intermediates.AddCert(ca)
			continue
		}
		a.roots.AddCert(ca)
	}
}

// namesIssuerOf reports whether the issuer of a shown certificate has the name of one of these CAs. If not, there is
// nothing to verify.
func (a *authority) namesIssuerOf(shown []*x509.Certificate) bool {
	return slices.ContainsFunc(shown, func(c *x509.Certificate) bool { return a.names[string(c.RawIssuer)] })
}

// verifyChains returns all chains from the client's certificate to a root.
func (a *authority) verifyChains(shown []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	if !a.namesIssuerOf(shown) {
		return nil, newNoCAError(a.name)
	}
	if shown[0].IsCA {
		return nil, errors.New("is a CA certificate, not a client certificate")
	}
	between := a.intermediates.Clone()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	chains, err := verifyClient(shown[0], a.roots, between, now)
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		err = newNoCAError(a.name)
	}
	return chains, err
}

func newNoCAError(file string) error { return fmt.Errorf("%w of %s that is valid now", errNoCA, file) }

// verifySelfSigned verifies a certificate that is trusted without a CA.
func verifySelfSigned(c *x509.Certificate, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(c)
	_, err := verifyClient(c, roots, nil, now)
	return err
}

// verifyClient verifies as crypto/tls does. Its errors contain no text of the certificate, which an attacker may have
// written.
func verifyClient(c *x509.Certificate, roots, between *x509.CertPool, now time.Time) ([][]*x509.Certificate, error) {
	chains, err := c.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err == nil {
		return chains, nil
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return nil, err
	}
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case invalid.Cert == nil:
		return nil, errors.New("has a critical extension or a signature that is not understood")
	case invalid.Reason == x509.Expired:
		whose := "is"
		if invalid.Cert != c {
			whose = "leads to a CA that is"
		}
		return nil, fmt.Errorf("%s %w: from %s to %s", whose, ErrStale,
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	case invalid.Reason == x509.IncompatibleUsage:
		return nil, errors.New("is not for clients: an extended key usage lacks clientAuth")
	}
	return nil, errors.New("is outside the name constraints or policies of its CAs")
}

// isSelfSigned reports whether a certificate is signed with its own key.
func isSelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) &&
		c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// findIssuer returns the CA that signed a certificate, or nil if none of these did.
func findIssuer(c *x509.Certificate, cas []*x509.Certificate) *x509.Certificate {
	for _, ca := range cas {
		if bytes.Equal(ca.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(ca) == nil {
			return ca
		}
	}
	return nil
}
