package auth

import (
	"fmt"
	"strings"
	"time"
)

// maxUnix bounds the times that are read, in seconds: eleven digits, which last
// until the year 5138. What has more is in another unit, or hostile.
const maxUnix = 99_999_999_999

// isWithin reports whether at is no longer ago than past, and no further ahead
// than future. It compares times: their difference saturates after 292 years, and
// then a time that is far ahead looks fresh.
func isWithin(at, now time.Time, past, future time.Duration) bool {
	return !at.Before(now.Add(-past)) && !at.After(now.Add(future))
}

// signedAt tells the operator of a time that is not within its bounds.
func signedAt(at, now time.Time) string {
	return fmt.Sprintf("it was signed at %s, and it is %s", at.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

// readUnix reads a Unix time in seconds or milliseconds. It must have exactly
// the digits that all times from 2001 to 2286 have, and nothing else. So it ends
// in one place only, whatever follows it in what is signed.
func readUnix(text, unit string) (time.Time, error) {
	digits, name := 10, "seconds"
	if unit == "ms" {
		digits, name = 13, "milliseconds"
	}
	if len(text) != digits || text[0] == '0' || strings.Trim(text, "0123456789") != "" {
		return time.Time{}, fmt.Errorf("is not a Unix time in %s, which has %d digits", name, digits)
	}
	var n int64
	for _, digit := range text {
		n = n*10 + int64(digit-'0')
	}
	if unit == "ms" {
		return time.UnixMilli(n), nil
	}
	return time.Unix(n, 0), nil
}
