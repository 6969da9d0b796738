package handlers

import (
	"net"
	"net/http"
	"strings"
)

// checkOrigin refuses cross-site requests of a browser. A browser adds the client certificate of its user to each
// request, also if a page of another site sent it. Senders of webhooks are not browsers and do not set these fields.
func (c *credentials) checkOrigin(r *http.Request) error {
	err := new(http.CrossOriginProtection).Check(r) // Sec-Fetch-Site, or Origin against Host
	byBrowser := r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != ""
	// Origin and Host also match if another name resolves to this server, so the host must be a name of this server.
	if err == nil && (!byBrowser || c.config.HasName(stripPort(r.Host))) {
		return nil
	}
	return &refusal{
		status: http.StatusForbidden, kind: "cross-site", cause: err,
		detail: "A browser sent this request for a page of another site.",
	}
}

// stripPort returns a host without its port.
func stripPort(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}
