// Package field has the syntax that the fields of several kinds of credentials share: the names of headers
// ([CompileHeader]), short texts ([IsShort], [IsPrintable]), prefixes ([CutPrefix]) and times ([IsUnix], [CheckAge]).
// The packages of the single kinds, such as [sallyport/auth/webhook] and [sallyport/auth/httpsig], build on it.
//
// It keeps no state and reads no clock. What is longer than any honest sender needs is refused, and so is a time that
// is too far away to compute with.
package field

import (
	"net/http"
	"strings"
	"time"

	"sallyport/internal/diag"
)

const (
	// maxText bounds a key id, a nonce, a tag and the like, in bytes.
	maxText = 256

	// maxUnix bounds the times that are read, in seconds: eleven digits, which last
	// until the year 5138. A longer number is in another unit, or hostile.
	maxUnix = 99_999_999_999
)

// IsShort reports whether s is neither empty nor too long for an id.
func IsShort(s string) bool { return s != "" && len(s) <= maxText }

// IsPrintable reports whether s is short, not empty, and visible ASCII.
func IsPrintable(s string) bool {
	return IsShort(s) && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// IsToken reports whether s is a token (RFC 9110 5.6.2), as the name of a header is.
func IsToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		alphanumeric := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alphanumeric && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// CompileHeader returns the canonical form of a header name (RFC 9110 5.1).
func CompileHeader(name string, p *diag.List) string {
	switch {
	case name == "":
		p.Errorf("is missing")
	case !IsToken(name):
		p.Errorf("is not the name of a header")
	}
	return http.CanonicalHeaderKey(name)
}

// CutPrefix removes a prefix in any case, such as the scheme of an Authorization header
// (RFC 9110 11.1).
func CutPrefix(value, prefix string) (string, bool) {
	if len(value) < len(prefix) || !strings.EqualFold(value[:len(prefix)], prefix) {
		return "", false
	}
	return value[len(prefix):], true
}

// IsUnix reports whether a number of seconds is a time after 1970 that can be read.
func IsUnix[T int64 | float64](seconds T) bool { return seconds > 0 && seconds <= maxUnix }

// StaleError is the error of a credential that is outside its time.
type StaleError string

func (e StaleError) Error() string { return string(e) }

// CheckAge returns a [StaleError] if at is longer ago than past, or further ahead than future. It compares
// times: their difference saturates after 292 years, and then a time that is far ahead looks fresh.
func CheckAge(at, now time.Time, past, future time.Duration) error {
	if at.Before(now.Add(-past)) || at.After(now.Add(future)) {
		signed, received := at.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)
		return StaleError("signed at " + signed + ", received at " + received)
	}
	return nil
}
