package auth

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"

	"sallyport/internal/problem"
)

func compileMTLS(spec *MTLSSpec, p *problem.List) *MTLSSpec {
	if btoi(spec.URI != "")+btoi(spec.DNS != "")+btoi(spec.CN != "") != 1 {
		p.Errorf("needs one of uri, dns and cn")
	}
	if strings.Contains(spec.DNS, "*") {
		p.At("dns").Errorf("holds a wildcard, but names one sender")
	}
	return spec
}

// byMTLS reads the connection of this delivery, not the handshake: a session
// that is resumed, or kept open past the end of its certificate, is judged anew.
func (c *Callers) byMTLS(d *Delivery, hook []string) (*Identity, error) {
	if d.TLS == nil || len(d.TLS.PeerCertificates) == 0 ||
		!slices.ContainsFunc(c.all, func(one *caller) bool { return one.mtls != nil }) {
		return nil, errAbsent
	}
	if len(d.TLS.VerifiedChains) == 0 || len(d.TLS.VerifiedChains[0]) == 0 {
		return nil, refuse(Wrong, "mtls", "the client certificate leads to no trusted CA")
	}
	leaf := d.TLS.VerifiedChains[0][0]
	for one := range c.candidates(hook) {
		if one.mtls == nil {
			continue
		}
		name, ok := one.mtls.names(leaf)
		switch {
		case !ok:
		case d.Now.Before(leaf.NotBefore) || d.Now.After(leaf.NotAfter):
			return nil, &Refusal{Reason: Stale, Scheme: "mtls", Caller: one.name, Key: name, Detail: "the client certificate is not valid now"}
		default:
			return one.unsigned("mtls", name, d), nil
		}
	}
	return nil, refuse(Wrong, "mtls", "the client certificate names no caller")
}

// names tells whether the certificate is for whom m names. Names are compared
// whole; none is a pattern.
func (m *MTLSSpec) names(leaf *x509.Certificate) (string, bool) {
	switch {
	case m.URI != "":
		// An X.509-SVID has exactly one URI (section 2 of its specification).
		if strings.HasPrefix(m.URI, "spiffe://") && len(leaf.URIs) != 1 {
			return "", false
		}
		for _, uri := range leaf.URIs {
			if uri.String() == m.URI {
				return m.URI, true
			}
		}
	case m.DNS != "":
		return m.DNS, slices.ContainsFunc(leaf.DNSNames, func(name string) bool { return strings.EqualFold(name, m.DNS) })
	case m.CN != "":
		// With two, which of them the field holds is an accident of parsing.
		return m.CN, leaf.Subject.CommonName == m.CN && commonNames(leaf.Subject) == 1
	}
	return "", false
}

func commonNames(subject pkix.Name) (n int) {
	for _, attribute := range subject.Names {
		if attribute.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			n++
		}
	}
	return n
}
