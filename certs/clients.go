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

// What a client shows is judged twice. The handshake turns away whoever shows a
// certificate that nobody here would believe. Each request is then judged
// anew, by the trust of its caller and of its time: a connection may be older
// than the configuration, and a resumed session older than both.

// What one client may show. All of it is verified before the client has proved
// that it has a key, so it must not cost much more than an honest chain does: no
// two CAs of one name, which would have every signature tried with every key,
// and no RSA key whose use costs a hundred times what that of others does.
const (
	maxShown    = 4 // its own, and three CAs
	maxRSABits  = 4096
	rsaExponent = 65537
)

// Why a certificate is not believed that a trusted CA did sign.
var (
	ErrStale   = errors.New("outside its time")
	ErrRevoked = errors.New("revoked")
)

// errNoCA says less than any other reason does.
var errNoCA = errors.New("leads to no CA")

// Trust tells whether the certificates that a client showed, its own first, are
// to be believed now. The error says why they are not, in words that follow
// "the client certificate"; it is or wraps ErrStale or ErrRevoked where that is
// why. A Trust may be used by many at once.
type Trust func(shown []*x509.Certificate, now time.Time) error

// Clients are the trusted CAs of client certificates, the certificates that callers pin, and the CRLs. LoadClients
// makes all of it at once, and nothing changes it afterwards.
type Clients struct {
	spec     Spec
	files    map[string]*authority // by name, as the configuration file has it
	all      *authority            // the CAs of all files, for handshakes
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
			p.At("spiffe").Errorf("takes the place of client_ca: name that file at the callers who are believed by it")
		}
		c.workload = workloads.load(spec.SPIFFE, p.At("spiffe"))
	}
	c.all = union(c.files)
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
		chains, err := a.chains(shown, now)
		if err != nil {
			return err
		}
		return c.revoked.check(chains, now)
	}
}

// ByDefault returns the trust in the certificates of callers that name no CA of
// their own, or nil when there is no tls.client_ca.
func (c *Clients) ByDefault() Trust { return c.ByCA(c.spec.ClientCA) }

// BySPIFFE returns what believes the X.509-SVIDs of the trust domains that the
// Workload API knows now, or nil when there is no tls.spiffe. It is for callers
// that are known by their SPIFFE ID, and for no others: the CA of a federated
// trust domain may put any other name into a certificate.
func (c *Clients) BySPIFFE() Trust {
	if c.spec.SPIFFE == nil {
		return nil
	}
	return c.workload.verify
}

// Pinned returns the trust in the one certificate with this SHA-256 sum. A self-signed certificate needs no CA. Any
// other must also pass rest, so that its CA can revoke it. Handshakes accept a self-signed certificate only if
// LoadClients was given its sum.
func Pinned(sum [sha256.Size]byte, rest Trust) Trust {
	return func(shown []*x509.Certificate, now time.Time) error {
		switch {
		case sha256.Sum256(shown[0].Raw) != sum:
			return errors.New("is another one than is pinned")
		case selfSigned(shown[0]):
			return alone(shown[0], now)
		case rest == nil:
			return errors.New("is not signed by itself, so its pin needs a ca that signed it")
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
		cfg.GetCertificate = c.workload.certificate
	}
	if len(c.files) == 0 && len(c.pins) == 0 && c.workload == nil {
		return cfg
	}
	// Not required of everybody: other callers sign instead. Whoever shows a
	// certificate has to show a good one, and admit is who says so: crypto/tls
	// knows one pool for all.
	cfg.ClientAuth = tls.RequestClientCert
	cfg.VerifyConnection = c.admit
	if len(c.pins) > 0 || c.workload != nil {
		return cfg
	}
	// Of several certificates, a client picks by this list (RFC 8446 section
	// 4.2.4), or shows none. It cannot tell of pins and of what changes.
	cfg.ClientCAs = x509.NewCertPool()
	for _, a := range c.files {
		for _, ca := range a.cas {
			cfg.ClientCAs.AddCert(ca)
		}
	}
	return cfg
}

// Describe tells by what client certificates are believed, but for what callers name.
func (c *Clients) Describe() (lines []string) {
	if c.spec.ClientCA != "" {
		lines = append(lines, "by the CAs of "+c.spec.ClientCA)
	}
	if c.workload != nil {
		lines = append(lines, "by SPIFFE: "+c.workload.String())
	}
	for _, list := range c.revoked.sorted() {
		lines = append(lines, list.String())
	}
	return lines
}

// Expiries tells when the CAs end, and what else client certificates are believed
// by.
func (c *Clients) Expiries() (all []Expiry) {
	for name, a := range c.files {
		all = append(all, expiries("client CA", name, a.cas)...)
	}
	for _, l := range c.revoked.lists {
		all = append(all, Expiry{What: "CRL", File: l.file, Subject: l.by, NotAfter: l.until, Ahead: l.ahead})
	}
	if c.workload != nil {
		all = append(all, c.workload.expiries()...)
	}
	return all
}

// admit judges a handshake. A revoked certificate gets through it, because the
// refusal of its requests is logged with the reason. But no session is resumed
// with one: its client may have a new one, and shows it in a full handshake. Of
// the reasons why one is not believed, the error has the one that says most.
func (c *Clients) admit(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	if err := c.judge(state.PeerCertificates, state.DidResume); err != nil {
		return fmt.Errorf("the client certificate %w", err)
	}
	return nil
}

func (c *Clients) judge(shown []*x509.Certificate, resumed bool) error {
	if err := bearable(shown); err != nil {
		return err
	}
	now := time.Now()
	if c.pins[sha256.Sum256(shown[0].Raw)] && selfSigned(shown[0]) {
		return alone(shown[0], now)
	}
	chains, err := c.all.chains(shown, now)
	if err == nil && resumed {
		err = c.revoked.check(chains, now)
	}
	if errors.Is(err, errNoCA) {
		err = c.nobodies(shown)
	}
	if err == nil || c.workload == nil {
		return err
	}
	bySPIFFE := c.workload.verify(shown, now)
	if bySPIFFE == nil || !c.all.signs(shown) {
		return bySPIFFE
	}
	return err
}

// nobodies names the files whose CAs a client's certificate says that it is by,
// although it is not.
func (c *Clients) nobodies(shown []*x509.Certificate) error {
	var named []string
	for _, name := range slices.Sorted(maps.Keys(c.files)) {
		if c.files[name].signs(shown) {
			named = append(named, name)
		}
	}
	if len(named) == 0 {
		return fmt.Errorf("%w that is known here, and is not pinned", errNoCA)
	}
	return noCA(strings.Join(named, ", "))
}

// bearable tells why what a client shows is not even looked at. Requests need not
// ask again: what they judge was shown in the handshake.
func bearable(shown []*x509.Certificate) error {
	if len(shown) > maxShown {
		return fmt.Errorf("is one of %d that are shown, and %d are the most", len(shown), maxShown)
	}
	names := map[string]bool{}
	for i, c := range shown {
		switch key := c.PublicKey.(type) {
		case *rsa.PublicKey:
			if key.N.BitLen() > maxRSABits || key.E != rsaExponent {
				return fmt.Errorf("is shown with an RSA key (certificate %d) of %d bits and the exponent %d; %d bits are the most, and %d is the exponent",
					i+1, key.N.BitLen(), key.E, maxRSABits, rsaExponent)
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
// an expired CRL is: no certificate is accepted by it, but callers of the other CAs must still be served.
func loadAuthority(name, dir string, now time.Time, p *diag.List) *authority {
	var found, cas []*x509.Certificate
	if data, ok := read(resolve(dir, name), name, maxFile, 0o022, p); ok {
		found, _ = certificates(name, data, p)
	}
	ended := 0
	for i, ca := range found {
		sound(i+1, name, ca, now, p)
		if now.After(ca.NotAfter) {
			ended++
			p.Warnf("certificate %d of %s expired on %s: nobody is believed by it", i+1, name, ca.NotAfter.UTC().Format(time.RFC3339))
		}
		// A leaf in the pool would be trusted as it stands, whoever signed it.
		if !ca.BasicConstraintsValid || !ca.IsCA || ca.KeyUsage != 0 && ca.KeyUsage&x509.KeyUsageCertSign == 0 {
			p.Errorf("certificate %d of %s is not a CA's", i+1, name)
			continue
		}
		cas = append(cas, ca)
	}
	if ended > 1 && ended == len(found) {
		p.Warnf("all CAs of %s have expired, so nobody is believed by that file", name)
	}
	return newAuthority(name, cas)
}

// authority is the CAs of one file, or of one SPIFFE trust domain.
type authority struct {
	name           string
	cas            []*x509.Certificate
	names          map[string]bool // subjects of the CAs, raw
	roots, between *x509.CertPool  // never nil: for x509.Verify that means the system's
}

func newAuthority(name string, cas []*x509.Certificate) *authority {
	a := &authority{name: name, names: map[string]bool{}, roots: x509.NewCertPool(), between: x509.NewCertPool()}
	a.add(cas)
	return a
}

// union believes whatever one of the files does. A client's chain is verified
// once then, and not once for every file.
func union(files map[string]*authority) *authority {
	all := newAuthority("", nil)
	for _, a := range files {
		all.add(a.cas)
	}
	return all
}

// add trusts the CAs that no other of them signed. The others are between: as
// roots they would be believed even after their own CA revoked them.
func (a *authority) add(cas []*x509.Certificate) {
	a.cas = append(a.cas, cas...)
	for _, ca := range cas {
		a.names[string(ca.RawSubject)] = true
		if !selfSigned(ca) && issuer(ca, cas) != nil {
			a.between.AddCert(ca)
			continue
		}
		a.roots.AddCert(ca)
	}
}

// signs reports whether a certificate that a client showed says that it is by one
// of these CAs. If none does, there is nothing to verify.
func (a *authority) signs(shown []*x509.Certificate) bool {
	return slices.ContainsFunc(shown, func(c *x509.Certificate) bool { return a.names[string(c.RawIssuer)] })
}

// chains returns every way from the certificate that a client showed to a root.
func (a *authority) chains(shown []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	if !a.signs(shown) {
		return nil, noCA(a.name)
	}
	if shown[0].IsCA {
		return nil, errors.New("is a CA's, and no client's")
	}
	between := a.between.Clone()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	chains, err := verifyClient(shown[0], a.roots, between, now)
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		err = noCA(a.name)
	}
	return chains, err
}

func noCA(file string) error { return fmt.Errorf("%w of %s that is valid now", errNoCA, file) }

// alone judges a certificate that is trusted by itself.
func alone(c *x509.Certificate, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(c)
	_, err := verifyClient(c, roots, nil, now)
	return err
}

// verifyClient verifies as crypto/tls does. Its errors say nothing that stands
// in the certificate, because anybody may have written that.
func verifyClient(c *x509.Certificate, roots, between *x509.CertPool, now time.Time) ([][]*x509.Certificate, error) {
	chains, err := c.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
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

// selfSigned reports whether a certificate is signed with its own key.
func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// issuer returns the CA that signed a certificate, or nil if it is none of these.
func issuer(c *x509.Certificate, cas []*x509.Certificate) *x509.Certificate {
	for _, ca := range cas {
		if bytes.Equal(ca.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(ca) == nil {
			return ca
		}
	}
	return nil
}
