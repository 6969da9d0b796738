package webhook

import (
	"fmt"
	"strings"
	"time"
)

// readUnix reads a Unix time in seconds or milliseconds. It must have exactly the digits that all times
// from 2001 to 2286 have, and nothing else. So its end is clear,
// also if a digit follows it in what is signed.
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
