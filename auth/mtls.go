package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/auth/field"
	"sallyport/certs"
	"sallyport/internal/diag"
)

// mtlsRule says which client certificates identify a caller.
type mtlsRule struct {
	spec  *MTLSSpec
	pins  map[string]certs.Trust // by fingerprint, in lower case without colons; then trust is nil
	trust certs.Trust
}

// NameClientCertificates returns the files of CAs and the certificates that the mtls sections of callers name, for
// certs.LoadClients. A malformed fingerprint is reported by Compile.
func NameClientCertificates(specs map[string]*CallerSpec, p *diag.List) (named certs.Named) {
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		switch spec := specs[name]; {
		case spec == nil || spec.MTLS == nil:
		case spec.MTLS.CA != "":
			named.CAs = append(named.CAs, certs.NamedCA{File: spec.MTLS.CA, At: p.At(name, "mtls", "ca")})
		default:
			for _, text := range spec.MTLS.Fingerprint {
				if sum, ok := parseFingerprint(text); ok {
					named.Pins = append(named.Pins, sum)
				}
			}
		}
	}
	return named
}

func compileMTLS(spec *MTLSSpec, clients *certs.Clients, p *diag.List) *mtlsRule {
	r := &mtlsRule{spec: spec}
	switch {
	case spec.CA != "":
		r.trust = clients.ByCA(spec.CA)
	case isSPIFFEID(spec.URI) && clients.BySPIFFE() != nil:
		r.trust = clients.BySPIFFE()
	default:
		r.trust = clients.ByDefault()
	}
	switch {
	case len(spec.nameKinds()) != 1:
		p.Errorf("needs exactly one of uri, dns, cn and fingerprint")
	case len(spec.Fingerprint) > 0:
		r.compilePins(p.At("fingerprint"))
	case r.trust == nil:
		p.Errorf("needs a ca, or tls.client_ca: without a CA the certificate cannot be verified")
	}
	if strings.Contains(spec.DNS, "*") {
		p.At("dns").Errorf("has a wildcard, but must name one sender")
	}
	if id, err := spiffeid.FromString(spec.URI); isSPIFFEID(spec.URI) && (err != nil || id.Path() == "") {
		p.At("uri").Errorf("is not the SPIFFE ID of a workload: write spiffe://trust-domain/path")
	}
	return r
}

func (r *mtlsRule) compilePins(p *diag.List) {
	r.pins = map[string]certs.Trust{}
	for i, text := range r.spec.Fingerprint {
		sum, ok := parseFingerprint(text)
		if !ok {
			p.Index(i).Errorf("%q is not a SHA-256 fingerprint: "+
				"write 64 hexadecimal digits, as openssl x509 -fingerprint -sha256 prints them", text)
			continue
		}
		print := hex.EncodeToString(sum[:])
		r.pins[print] = r.trust
		if r.spec.CA == "" {
			r.pins[print] = certs.Pinned(sum, r.trust)
		}
	}
	r.trust = nil
}

// parseFingerprint reads a SHA-256 fingerprint, and reports whether it is one.
func parseFingerprint(text string) (sum [sha256.Size]byte, ok bool) {
	b, err := hex.DecodeString(normalizeFingerprint(text))
	if err != nil || len(b) != sha256.Size {
		return sum, false
	}
	return [sha256.Size]byte(b), true
}

func normalizeFingerprint(text string) string {
	return strings.ToLower(strings.ReplaceAll(text, ":", ""))
}

// isSPIFFEID reports whether a URI in the file is meant to be a SPIFFE ID, in any case.
func isSPIFFEID(uri string) bool {
	_, ok := field.CutPrefix(uri, "spiffe://")
	return ok
}

// certName is one name by which a certificate identifies a caller.
type certName struct{ kind, text string }

// certificateNames returns all names in the file.
func (m *MTLSSpec) certificateNames() []certName {
	var list []certName
	for _, print := range m.Fingerprint {
		list = append(list, certName{"fingerprint", normalizeFingerprint(print)})
	}
	for kind, text := range map[string]string{"uri": m.URI, "dns": strings.ToLower(m.DNS), "cn": m.CN} {
		if text != "" {
			list = append(list, certName{kind, text})
		}
	}
	return list
}

// nameKinds returns the kinds of the names in the file.
func (m *MTLSSpec) nameKinds() map[string]bool {
	kinds := map[string]bool{}
	for _, name := range m.certificateNames() {
		kinds[name.kind] = true
	}
	return kinds
}

// authenticateMTLS verifies the certificate of the connection with the CAs and CRLs that are in force now, and
// not with those of the handshake: the connection or the session may be older than a reload or a revocation.
func (a *attempt) authenticateMTLS() (*Identity, error) {
	if a.delivery.TLS == nil || len(a.delivery.TLS.PeerCertificates) == 0 ||
		!slices.ContainsFunc(a.callers.all, func(one *caller) bool { return one.mtls != nil }) {
		return nil, errAbsent
	}
	shown := a.delivery.TLS.PeerCertificates
	refusal := newRefusal(Wrong, "mtls", "the client certificate does not name a caller")
	for one := range a.callers.candidates(a.hook) {
		if one.mtls == nil {
			continue
		}
		name, trust := one.mtls.matchCertificate(shown[0])
		if trust == nil {
			continue
		}
		err := trust(shown, a.delivery.Now)
		if err == nil {
			return one.identifyUnsigned("mtls", name, a.delivery), nil
		}
		if refusal.Reason == Wrong { // the first reason after a match stays
			refusal = one.refuseCertificate(name, err)
		}
	}
	return nil, refusal
}

// refuseCertificate returns the refusal of a certificate that names the caller.
func (c *caller) refuseCertificate(name string, err error) *Refusal {
	r := &Refusal{Kind: "mtls", Caller: c.name, Key: name, Detail: "the client certificate " + err.Error()}
	switch {
	case errors.Is(err, certs.ErrRevoked):
		r.Reason = Revoked
		return r
	case errors.Is(err, certs.ErrStale):
		r.Reason = Stale
		return r
	}
	return newRefusal(Wrong, "mtls", "the client certificate names the caller %s, but %s", c.name, err)
}

// matchCertificate returns the name by which the certificate identifies the caller, and what verifies it. The
// trust is nil if the certificate is not the caller's. Names are compared whole; no name is a pattern.
func (r *mtlsRule) matchCertificate(leaf *x509.Certificate) (string, certs.Trust) {
	m, ok := r.spec, false
	switch {
	case r.pins != nil:
		sum := sha256.Sum256(leaf.Raw)
		print := hex.EncodeToString(sum[:])
		return print, r.pins[print]
	case m.URI != "":
		ok = (!isSPIFFEID(m.URI) || isX509SVID(leaf)) && slices.Contains(certs.URINames(leaf), m.URI)
	case m.DNS != "":
		ok = slices.ContainsFunc(leaf.DNSNames, func(name string) bool { return strings.EqualFold(name, m.DNS) })
	case m.CN != "":
		// With two common names, the field has the one that was parsed last.
		ok = leaf.Subject.CommonName == m.CN && countCommonNames(leaf.Subject) == 1
	}
	if !ok {
		return "", nil
	}
	return m.URI + m.DNS + m.CN, r.trust
}

// isX509SVID reports whether a certificate has the form of an X.509-SVID: exactly one URI, and no right to
// sign certificates (sections 2, 4.1 and 4.3 of its specification).
func isX509SVID(leaf *x509.Certificate) bool {
	return len(certs.URINames(leaf)) == 1 && leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) == 0
}

func countCommonNames(subject pkix.Name) (n int) {
	for _, attribute := range subject.Names {
		if attribute.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			n++
		}
	}
	return n
}
