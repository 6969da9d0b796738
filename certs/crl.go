package certs

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"sallyport/internal/diag"
)

// revocations is the CRLs of the CAs of client certificates.
type revocations struct {
	lists map[issuerKey]*crl
	// above is the CA that signed a trusted CA that is not a root, by the DER of the latter. Chains end with the
	// latter, but its CA can still revoke it.
	above map[string]*x509.Certificate
}

// issuerKey identifies the issuer of certificates and CRLs: a name with a public key. It does not depend on the
// certificate that contains them.
type issuerKey [sha256.Size]byte

func issuerKeyOf(ca *x509.Certificate) issuerKey {
	return sha256.Sum256(slices.Concat(ca.RawSubject, ca.RawSubjectPublicKeyInfo))
}

// crl is a certificate revocation list (RFC 5280 section 5): complete, and for
// all certificates of one CA.
type crl struct {
	file    string
	by      string // name of the CA
	until   time.Time
	ahead   time.Duration   // time before until when a warning is due
	serials map[string]bool // by serialKey
}

func (l *crl) String() string {
	return fmt.Sprintf("of %s, %d are revoked, by %s until %s", l.by, len(l.serials), l.file,
		l.until.UTC().Format(time.RFC3339))
}

// sortedLists returns the CRLs in the order of their files.
func (r *revocations) sortedLists() []*crl {
	return slices.SortedFunc(maps.Values(r.lists), func(a, b *crl) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.by, b.by))
	})
}

// loadRevocations reads files of CRLs, which CAs of trusted signed. A file that cannot be read whole is an error. An
// expired CRL is a warning: certificates of its CA are refused until there is a newer CRL, and all others are served.
func loadRevocations(files []string, trusted map[string]*authority, dir string, now time.Time,
	p *diag.List,
) *revocations {
	r := &revocations{lists: map[issuerKey]*crl{}, above: map[string]*x509.Certificate{}}
	var cas []*x509.Certificate
	for _, a := range trusted {
		cas = append(cas, a.cas...)
	}
	for i, name := range files {
		at := p.Index(i)
		data, ok := readTrustedFile(resolvePath(dir, name), name, maxCRL, 0o022, at)
		if !ok {
			continue
		}
		if err := forEachCRL(data, func(list *unreadCRL) { r.addCRL(name, list, cas, now, at) }); err != nil {
			at.Errorf("reading %s: %v", name, err)
		}
	}
	for _, ca := range cas {
		if above := findIssuer(ca, cas); above != nil && !isSelfSigned(ca) {
			r.above[string(ca.Raw)] = above
		}
	}
	r.warnUnlisted(trusted, p)
	return r
}

// warnUnlisted warns of CAs without a CRL, if any CA has one.
func (r *revocations) warnUnlisted(trusted map[string]*authority, p *diag.List) {
	if len(r.lists) == 0 {
		return
	}
	for name, a := range trusted {
		for i, ca := range a.cas {
			if r.lists[issuerKeyOf(ca)] == nil {
				p.Warnf("certificate %d of %s (%s) has no CRL, so certificates that this CA revokes are accepted",
					i+1, name, ca.Subject)
			}
		}
	}
}

// addCRL reads a CRL, or reports what is wrong with it.
func (r *revocations) addCRL(file string, list *unreadCRL, cas []*x509.Certificate, now time.Time, p *diag.List) {
	name := shortenName(list.Issuer.String())
	ca, err := crlIssuer(list.RevocationList, cas)
	if err == nil {
		err = checkComplete(list.RevocationList)
	}
	var serials map[string]bool
	if err == nil {
		serials, err = list.readSerials()
	}
	if err != nil {
		p.Errorf("the CRL of %s in %s %v", name, file, err)
		return
	}
	if other := r.lists[issuerKeyOf(ca)]; other != nil {
		p.Errorf("the CRL of %s is in %s, but also in %s", name, file, other.file)
		return
	}
	switch left := list.NextUpdate.Sub(now); {
	case now.Before(list.ThisUpdate):
		p.Errorf("the CRL of %s in %s is not valid before %s", name, file, list.ThisUpdate.UTC().Format(time.RFC3339))
	case left < 0:
		p.Warnf("the CRL of %s in %s expired on %s: all certificates of that CA are refused until there is a newer one",
			name, file, list.NextUpdate.UTC().Format(time.RFC3339))
	case left < list.NextUpdate.Sub(list.ThisUpdate)/4:
		p.Warnf("the CRL of %s in %s expires soon, on %s; then all certificates of that CA are refused",
			name, file, list.NextUpdate.UTC().Format(time.RFC3339))
	}
	r.lists[issuerKeyOf(ca)] = &crl{
		file: file, by: name, until: list.NextUpdate, serials: serials,
		ahead: quarterLifetime(list.ThisUpdate, list.NextUpdate),
	}
}

// crlIssuer returns the CA that signed a CRL.
func crlIssuer(list *x509.RevocationList, cas []*x509.Certificate) (*x509.Certificate, error) {
	if isForgeable(list.SignatureAlgorithm) {
		return nil, fmt.Errorf("is signed with %s, which can be forged", list.SignatureAlgorithm)
	}
	err := errors.New("is not of a CA in client_ca or in the mtls.ca of a caller")
	for _, ca := range cas {
		if !bytes.Equal(ca.RawSubject, list.RawIssuer) {
			continue
		}
		if ca.KeyUsage != 0 && ca.KeyUsage&x509.KeyUsageCRLSign == 0 {
			err = errors.New("is of a CA that may not sign CRLs: its key usage lacks cRLSign")
			continue
		}
		wrong := list.CheckSignatureFrom(ca)
		if wrong == nil {
			return ca, nil
		}
		err = fmt.Errorf("is not signed by that CA: %w", wrong)
	}
	return nil, err
}

// checkComplete returns an error if a CRL is not the complete list of its CA, or has an unknown critical extension (RFC
// 5280 section 5.2).
func checkComplete(list *x509.RevocationList) error {
	if list.NextUpdate.IsZero() {
		return errors.New("has no nextUpdate, so it would never expire")
	}
	for _, e := range list.Extensions {
		switch {
		case e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 27}): // deltaCRLIndicator
			return errors.New("is a delta CRL; only complete ones are read")
		case e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 28}): // issuingDistributionPoint
			return errors.New("is indirect, or for a part of the certificates (issuingDistributionPoint); " +
				"only complete ones are read")
		case e.Critical:
			return fmt.Errorf("has the critical extension %s, which is not understood", e.Id)
		}
	}
	return nil
}

// checkChains returns nil if one of the chains has no revoked certificate, and otherwise the reason for the last one.
func (r *revocations) checkChains(chains [][]*x509.Certificate, now time.Time) (err error) {
	for _, chain := range chains {
		if err = r.checkChain(chain, now); err == nil {
			return nil
		}
	}
	return err
}

// maxChain is longer than any chain, but for CAs that signed one another.
const maxChain = 20

func (r *revocations) checkChain(chain []*x509.Certificate, now time.Time) error {
	for i := 0; len(r.lists) > 0 && i < len(chain); i++ {
		above := r.above[string(chain[i].Raw)]
		if i+1 < len(chain) {
			above = chain[i+1]
		} else if above != nil && len(chain) < maxChain {
			chain = append(slices.Clip(chain), above)
		}
		if above == nil {
			break
		}
		list := r.lists[issuerKeyOf(above)]
		whose := "is"
		if i > 0 {
			whose = "leads to a CA that is"
		}
		switch {
		case list == nil:
		case list.serials[serialKey(chain[i].SerialNumber)]:
			return fmt.Errorf("%s %w by %s", whose, ErrRevoked, list.by)
		case now.After(list.until):
			return fmt.Errorf("may be revoked: the CRL of %s in %s is %w, it expired on %s",
				list.by, list.file, ErrStale, list.until.UTC().Format(time.RFC3339))
		}
	}
	return nil
}
