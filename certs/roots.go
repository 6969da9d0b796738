package certs

import (
	"time"

	"sallyport/internal/diag"
)

// Roots reads a PEM file with the CAs that another server is to be believed by,
// relative to dir, and returns it as it is. A self-signed certificate of that
// server is one, too. What is wrong is written to p, and then the result is nil.
func Roots(file, dir string, now time.Time, p *diag.List) []byte {
	data, ok := read(resolve(dir, file), file, maxFile, 0o022, p)
	if !ok {
		return nil
	}
	if _, ok := parse(file, data, now, p); !ok {
		return nil
	}
	return data
}
