package certs_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"time"
)

// mostAllocated is the limit of all allocations while a file of CRLs is read. Most of it is for the content of the file
// and for a map that grows. The memory in use at any time is much less.
const mostAllocated = 192 << 20

// revokeMany makes n entries.
func revokeMany(n int, at time.Time) (entries []x509.RevocationListEntry) {
	for i := range n {
		entries = append(entries, x509.RevocationListEntry{SerialNumber: big.NewInt(int64(i + 1)), RevocationTime: at})
	}
	return entries
}

// nestSequences puts n sequences of ASN.1 into one another.
func nestSequences(n int) []byte {
	levels := make([][]byte, 0, n)
	size := 0
	for range n {
		header := []byte{0x30, 0x84, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}
		levels = append(levels, header)
		size += len(header)
	}
	out := make([]byte, 0, size)
	for i := range levels {
		out = append(out, levels[len(levels)-1-i]...)
	}
	return out
}

// TestCRL_Bomb reads files of CRLs that are made to take memory or time, with and without the key of the CA.
func TestCRL_Bomb(t *testing.T) {
	now := time.Now()
	const at, reading = "error tls.client_crl.0: ", "error tls.client_crl.0: reading c.crl: "
	corp := newCA(t, now, listing)
	long := newCA(t, now, listing, func(c *x509.Certificate) {
		c.Subject.OrganizationalUnit = strings.Split(strings.Repeat("unit ", 100), " ")
	})
	huge := new(big.Int).Lsh(big.NewInt(1), 8*(4<<20))
	many := decodePEM(t, corp.crl(t, func(l *x509.RevocationList) { l.RevokedCertificateEntries = revokeMany(600_000, now) }))
	extension := func(n, size int) (all []pkix.Extension) {
		for i := range n {
			all = append(all, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, i}, Value: make([]byte, size)})
		}
		return all
	}
	of := func(change func(l *x509.RevocationList)) string { return corp.crl(t, change, 1) }
	for name, row := range map[string]struct{ text, want string }{
		"entries, signed": {string(many), ""},
		"entries":         {string(flipped(bytes.Clone(many))), at + "the CRL of CN=Corp CA in c.crl is not signed by that CA"},
		"serial number": {
			of(func(l *x509.RevocationList) { l.RevokedCertificateEntries[0].SerialNumber = huge }),
			at + "the CRL of CN=Corp CA in c.crl has an entry (1) of 4194",
		},
		"extension of an entry": {
			of(func(l *x509.RevocationList) { l.RevokedCertificateEntries[0].ExtraExtensions = extension(1, 8<<20) }),
			at + "the CRL of CN=Corp CA in c.crl has an entry (1) of 8388",
		},
		"extensions of an entry": {
			of(func(l *x509.RevocationList) { l.RevokedCertificateEntries[0].ExtraExtensions = extension(100_000, 0) }),
			at + "the CRL of CN=Corp CA in c.crl has an entry (1) of ",
		},
		"extension":     {of(func(l *x509.RevocationList) { l.ExtraExtensions = extension(1, 8<<20) }), reading + "parsing CRL 1: it has 8388"},
		"extensions":    {of(func(l *x509.RevocationList) { l.ExtraExtensions = extension(100_000, 0) }), reading + "parsing CRL 1: it has "},
		"issuer":        {long.crl(t, nil), at + "the CRL of CN=Corp CA,OU=+OU=unit+OU=unit+"},
		"nesting":       {string(nestSequences(1_000_000)), reading + "malformed CRL"},
		"length":        {"\x30\x84\xff\xff\xff\xff\x30\x84\xff\xff\xff\xf0", reading + "malformed CRL"},
		"PEM blocks":    {strings.Repeat(encode("X509 CRL", nil), 300_000), reading + "it contains 300000 PEM blocks, but at most 64 are allowed"},
		"PEM headers":   {"-----BEGIN X509 CRL-----\n" + strings.Repeat("a:\n", 5_000_000) + "\n-----END X509 CRL-----\n", reading + "it contains a PEM block with headers"},
		"a PEM type":    {"-----BEGIN " + strings.Repeat("X", 8<<20) + "-----\n-----END " + strings.Repeat("X", 8<<20-100) + "-----\n", reading + "it contains 1 PEM blocks, and 1 of them cannot be parsed"},
		"nothing, much": {strings.Repeat("-----END\n", 1_800_000), reading + "malformed CRL"},
		"beyond 16 MiB": {strings.Repeat("x", 100<<20), at + "c.crl is over 16384 KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeValidFiles(t, dir, now)
			write(t, dir, "c.pem", corp.pem, 0o644)
			write(t, dir, "c.crl", row.text, 0o644)
			s := fullSpec()
			s.ClientCRL = []string{"c.crl"}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, got := load(t, dir, s, now)
			runtime.ReadMemStats(&after)
			if row.want == "" && len(got) > 0 || row.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], row.want)) {
				t.Errorf("got  %.500q\nwant %q", got, row.want)
			}
			if len(got) > 0 && len(got[0]) > 1000 {
				t.Errorf("the message has %d bytes", len(got[0]))
			}
			allocated := after.TotalAlloc - before.TotalAlloc
			t.Logf("%d KiB for a file of %d KiB", allocated>>10, len(row.text)>>10)
			if allocated > mostAllocated {
				t.Errorf("reading allocated %d MiB", allocated>>20)
			}
		})
	}
}
