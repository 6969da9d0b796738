package certs

import (
	"time"

	"sallyport/internal/diag"
)

// Roots reads a PEM file, relative to dir, of CAs that sign the certificate of another server, and returns its content.
// That server's self-signed certificate also counts as a CA. Problems are reported to p, and then the result is nil.
func Roots(file, dir string, now time.Time, p *diag.List) []byte {
	data, ok := readTrustedFile(resolvePath(dir, file), file, maxFile, 0o022, p)
	if !ok {
		return nil
	}
	if _, ok := parseValidCertificates(file, data, now, p); !ok {
		return nil
	}
	return data
}
