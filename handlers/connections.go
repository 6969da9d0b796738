package handlers

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"net/netip"

	"sallyport/internal/audit"
	"sallyport/internal/netid"
)

// A handshake costs more than all that a refused request does. So what the
// address limit is to requests, it is to connections too, before TLS; but of a
// budget of their own, so that who sends each request on a connection of its own
// does not pay twice.

// AllowConnection spends a token of an address for a connection, or says that it has
// none left. The rest is counted, as is all that strangers can cause in any number.
func (h *Handler) AllowConnection(from netip.Addr) bool {
	s := h.current.Load()
	if s.limits.connections.allowAddress(netid.Host(from), s.now()) {
		return true
	}
	s.audit.Count("connection-too-often")
	return false
}

// CountRejectedConnection counts a connection that was one too many of those that are open, or
// was closed to make room for another.
func (h *Handler) CountRejectedConnection() { h.current.Load().audit.Count("too-many-connections") }

// IsProvedHost reports whether a delivery from an address was accepted lately.
func (h *Handler) IsProvedHost(from netip.Addr) bool {
	s := h.current.Load()
	return s.proved.provedLately(netid.Host(from), s.now())
}

// ReportFlood counts a connection that was closed because more came on it than its
// requests need. Its address pays a full burst of connections for it, so that
// another flood does not follow at once; but not an address that strangers share
// with a caller, whom they could keep out that way.
func (h *Handler) ReportFlood(from netip.Addr) {
	s := h.current.Load()
	if !h.IsProvedHost(from) {
		s.limits.connections.limiterOf(netid.Host(from)).ReserveN(s.now(), s.limits.connections.limit.Burst)
	}
	s.audit.Count("flood")
}

// ReportUnreadable reports a request that net/http answered itself, or that was not
// sent whole. It costs the address a failure, and when that has none left it is no
// line of the log.
func (h *Handler) ReportUnreadable(from netip.AddrPort) {
	s := h.current.Load()
	level := slog.LevelWarn
	if !s.limits.failures.allowAddress(netid.Host(from.Addr()), s.now()) || !s.samples.allowLine("unreadable", from.Addr(), s.now()) {
		level = slog.LevelDebug
	}
	s.log.LogAttrs(context.Background(), level, "request not read", slog.String("address", from.String()),
		slog.String("reason", "it is malformed, its header is too large, or it was not sent whole"))
	s.audit.Count("unreadable")
}

// ReportRefusedCertificate tells of a client certificate that ended its handshake, where nobody
// but the operator can be told why. It costs the address a failure, as in a
// request it would, and when that has none left it is no line of the log. The
// client has not proved that the certificate is its own.
func (h *Handler) ReportRefusedCertificate(from netip.AddrPort, shown *x509.Certificate, why error) {
	s := h.current.Load()
	sum := sha256.Sum256(shown.Raw)
	line := audit.Line{
		Decision: audit.Refused, Address: from.String(), Scheme: "mtls", Key: hex.EncodeToString(sum[:]), Reason: why.Error(),
	}
	level := slog.LevelWarn
	if !s.limits.failures.allowAddress(netid.Host(from.Addr()), s.now()) || !s.samples.allowLine("handshake", from.Addr(), s.now()) {
		level = slog.LevelDebug
	}
	s.log.LogAttrs(context.Background(), level, "handshake refused",
		slog.String("address", line.Address), slog.String("key", line.Key), slog.String("reason", audit.Shorten(line.Reason, longestField)))
	s.audit.Decided(line, "handshake", false)
}
