package handlers

import (
	"net/http"
	"regexp"
	"strings"
)

// traceparentForm matches version 00 of W3C Trace Context, 3.2, except that it also matches ids of zeros, which the
// standard does not allow. A value that does not match is not passed on.
var traceparentForm = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)

func validTraceparent(h http.Header) string {
	v := h.Values("Traceparent")
	if len(v) != 1 {
		return ""
	}
	ids := traceparentForm.FindStringSubmatch(v[0])
	if ids == nil || strings.Trim(ids[1], "0") == "" || strings.Trim(ids[2], "0") == "" {
		return ""
	}
	return v[0]
}
