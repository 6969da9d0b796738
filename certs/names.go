package certs

import (
	"crypto/x509"
	"encoding/asn1"
)

// tagURI is the tag of a uniformResourceIdentifier in a GeneralName (RFC 5280 4.2.1.6).
const tagURI = 6

// URINames returns the unparsed URIs in a certificate's subjectAltName. Those of crypto/x509 differ: they lose an empty
// fragment and the case of the scheme.
func URINames(c *x509.Certificate) (names []string) {
	san := asn1.ObjectIdentifier{2, 5, 29, 17}
	for _, extension := range c.Extensions {
		var general []asn1.RawValue
		if !extension.Id.Equal(san) {
			continue
		}
		if rest, err := asn1.Unmarshal(extension.Value, &general); err != nil || len(rest) > 0 {
			return nil
		}
		for _, name := range general {
			if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI {
				names = append(names, string(name.Bytes))
			}
		}
	}
	return names
}
