package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"
)

// Bounds on a CRL. Often it comes over plain HTTP, so its file may contain anything. The bounds hold before its
// signature is verified. The entries are read one by one after that, and only their serial numbers are kept:
// crypto/x509 takes half a kilobyte for each entry, and may take a hundred times the size of the file.
const (
	maxCRLs     = 64       // CRLs in one file
	maxCRLFrame = 16 << 10 // bytes of a CRL, apart from its entries
	maxCRLEntry = 4 << 10  // bytes of an entry
	maxName     = 256      // characters of a name in a message
)

const pemBegin = "-----BEGIN"

var errMalformedCRL = errors.New("malformed CRL")

// unreadCRL is a CRL with unparsed entries.
type unreadCRL struct {
	*x509.RevocationList

	entries cryptobyte.String
}

// forEachCRL calls use with each CRL of a file: PEM (RFC 7468 section 6), or one CRL in DER.
func forEachCRL(data []byte, use func(*unreadCRL)) error {
	blocks := bytes.Count(data, []byte(pemBegin))
	if blocks == 0 {
		list, err := parseCRL(data)
		if err == nil {
			use(list)
		}
		return err
	}
	if blocks > maxCRLs {
		return fmt.Errorf("it contains %d PEM blocks, but at most %d are allowed", blocks, maxCRLs)
	}
	if hasPEMHeaders(data) {
		return errors.New("it contains a PEM block with headers, which a CRL does not have")
	}
	n := 0
	for rest := data; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			return fmt.Errorf("it contains a %s, but may contain CRLs only", shortenName(block.Type))
		}
		list, err := parseCRL(block.Bytes)
		if err != nil {
			return fmt.Errorf("parsing CRL %d: %w", n+1, err)
		}
		use(list)
	}
	if n != blocks {
		return fmt.Errorf("it contains %d PEM blocks, and %d of them cannot be parsed", blocks, blocks-n)
	}
	return nil
}

// hasPEMHeaders reports whether a PEM block has headers, from which package pem would make a map of any size.
func hasPEMHeaders(data []byte) bool {
	_, data, _ = bytes.Cut(data, []byte(pemBegin))
	for block := range bytes.SplitSeq(data, []byte(pemBegin)) {
		_, text, _ := bytes.Cut(block, []byte("\n"))
		first, _, _ := bytes.Cut(text, []byte("\n"))
		if bytes.ContainsRune(first, ':') {
			return true
		}
	}
	return false
}

func shortenName(name string) string { return fmt.Sprintf("%.*s", maxName, name) }

// parseCRL parses a CRL except for its entries (RFC 5280 section 5.1): crypto/x509 gets it without them.
func parseCRL(der []byte) (*unreadCRL, error) {
	input := cryptobyte.String(der)
	var outer, tbs, body, entries cryptobyte.String
	if !input.ReadASN1(&outer, tag.SEQUENCE) || !outer.ReadASN1Element(&tbs, tag.SEQUENCE) {
		return nil, errMalformedCRL
	}
	if !input.Empty() {
		return nil, errors.New("there is data after the CRL")
	}
	signed := tbs
	if !tbs.ReadASN1(&body, tag.SEQUENCE) {
		return nil, errMalformedCRL
	}
	rest := body
	if !rest.SkipOptionalASN1(tag.INTEGER) || !rest.SkipASN1(tag.SEQUENCE) || !rest.SkipASN1(tag.SEQUENCE) ||
		!skipTime(&rest) { // version, signature, issuer, thisUpdate
		return nil, errMalformedCRL
	}
	_ = skipTime(&rest) // nextUpdate, which may be missing
	head := body[:len(body)-len(rest)]
	if !rest.ReadOptionalASN1(&entries, nil, tag.SEQUENCE) {
		return nil, errMalformedCRL
	}
	if size := len(head) + len(rest) + len(outer); size > maxCRLFrame {
		return nil, fmt.Errorf("it has %d bytes apart from its entries, but at most %d are allowed", size, maxCRLFrame)
	}
	var short cryptobyte.Builder
	short.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(head); b.AddBytes(rest) })
		b.AddBytes(outer)
	})
	text, err := short.Bytes()
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(text)
	if err != nil {
		return nil, err
	}
	list.RawTBSRevocationList = signed // for CheckSignatureFrom
	return &unreadCRL{list, entries}, nil
}

// readTime reads a time, and reports whether there was one.
func readTime(s *cryptobyte.String, t *time.Time) bool {
	if s.PeekASN1Tag(tag.UTCTime) {
		return s.ReadASN1UTCTime(t)
	}
	return s.ReadASN1GeneralizedTime(t)
}

// skipTime skips a time, and reports whether there was one.
func skipTime(s *cryptobyte.String) bool {
	return s.PeekASN1Tag(tag.UTCTime) && s.SkipASN1(tag.UTCTime) || s.SkipASN1(tag.GeneralizedTime)
}

// readSerials returns the serial numbers of all entries. The reason code is ignored, so a certificate on hold is
// revoked, too.
func (l *unreadCRL) readSerials() (map[string]bool, error) {
	serials := map[string]bool{}
	var number big.Int
	for rest, n := l.entries, 1; !rest.Empty(); n++ {
		var entry, extensions cryptobyte.String
		var at time.Time
		if !rest.ReadASN1(&entry, tag.SEQUENCE) {
			return nil, fmt.Errorf("has a malformed entry (%d)", n)
		}
		if len(entry) > maxCRLEntry {
			return nil, fmt.Errorf("has an entry (%d) of %d bytes, but at most %d are allowed", n, len(entry),
				maxCRLEntry)
		}
		if !entry.ReadASN1Integer(&number) || !readTime(&entry, &at) ||
			!entry.ReadOptionalASN1(&extensions, nil, tag.SEQUENCE) || !entry.Empty() {
			return nil, fmt.Errorf("has a malformed entry (%d)", n)
		}
		if err := checkEntryExtensions(extensions); err != nil {
			return nil, err
		}
		serials[serialKey(&number)] = true
	}
	return serials, nil
}

// serialKey returns a map key for a serial number. To format it in decimal takes quadratic time.
func serialKey(n *big.Int) string { return string(n.Bytes()) }

// checkEntryExtensions returns an error for an extension of an entry that is not supported (RFC 5280 section 5.3).
func checkEntryExtensions(extensions cryptobyte.String) error {
	for !extensions.Empty() {
		var extension, value cryptobyte.String
		var id asn1.ObjectIdentifier
		var critical bool
		if !extensions.ReadASN1(&extension, tag.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&id) ||
			extension.PeekASN1Tag(tag.BOOLEAN) && !extension.ReadASN1Boolean(&critical) ||
			!extension.ReadASN1(&value, tag.OCTET_STRING) || !extension.Empty() {
			return errors.New("has an entry with a malformed extension")
		}
		// certificateIssuer, which need not be critical here, only occurs in indirect CRLs.
		if critical || id.Equal(asn1.ObjectIdentifier{2, 5, 29, 29}) {
			return fmt.Errorf("has an entry with the unsupported extension %s", id)
		}
	}
	return nil
}
