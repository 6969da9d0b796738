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

// A handshake costs more than all of a refused request. So the address limit
// applies to connections too, before TLS, but with a separate budget: a sender that
// opens a connection for each request does not pay twice.

// AllowConnection spends a token of an address for a connection, or returns false if it has
// none left. Such connections are only counted, because strangers can cause any number of them.
func (h *Handler) AllowConnection(from netip.Addr) bool {
	s := h.current.Load()
	if s.limits.connections.allowAddress(netid.Host(from), s.now()) {
		return true
	}
	s.audit.Count("connection-too-often")
	return false
}

// CountRejectedConnection counts a connection that was closed because too many were open, or
// to make room for another.
func (h *Handler) CountRejectedConnection() { h.current.Load().audit.Count("too-many-connections") }

// IsProvedHost reports whether a delivery from an address was accepted lately.
func (h *Handler) IsProvedHost(from netip.Addr) bool {
	s := h.current.Load()
	return s.proved.provedLately(netid.Host(from), s.now())
}

// ReportFlood counts a connection that was closed because more came on it than its
// requests need. Its address pays a full burst of connections for it, so that
// another flood does not follow at once. An address from which a delivery was accepted does not
// pay: strangers that share it could lock out the caller.
func (h *Handler) ReportFlood(from netip.Addr) {
	s := h.current.Load()
	if !h.IsProvedHost(from) {
		s.limits.connections.limiterOf(netid.Host(from)).ReserveN(s.now(), s.limits.connections.limit.Burst)
	}
	s.audit.Count("flood")
}

// ReportUnreadable reports a request that net/http answered itself, or that was not
// sent whole. It costs the address a failure. When none is left, it is logged at
// the debug level only.
func (h *Handler) ReportUnreadable(from netip.AddrPort) {
	s := h.current.Load()
	s.log.LogAttrs(context.Background(), s.levelOfFailure("unreadable", from.Addr()), "request not read",
		slog.String("address", from.String()),
		slog.String("reason", "it is malformed, its header is too large, or it was not sent whole"))
	s.audit.Count("unreadable")
}

// ReportRefusedCertificate logs a client certificate that ended its handshake, because the client
// cannot be given the reason. It costs the address a failure, as it would in a
// request. When none is left, it is logged at the debug level only. The
// client has not proved that it holds the key of the certificate.
func (h *Handler) ReportRefusedCertificate(from netip.AddrPort, shown *x509.Certificate, why error) {
	s := h.current.Load()
	sum := sha256.Sum256(shown.Raw)
	line := audit.Line{
		Decision: audit.Refused, Address: from.String(),
		Scheme: "mtls", Key: hex.EncodeToString(sum[:]), Reason: why.Error(),
	}
	s.log.LogAttrs(context.Background(), s.levelOfFailure("handshake", from.Addr()), "handshake refused",
		slog.String("address", line.Address), slog.String("key", line.Key),
		slog.String("reason", audit.Shorten(line.Reason, longestField)))
	s.audit.Decided(line, "handshake", false)
}

// levelOfFailure spends a token of an address for a failure, and returns the level to log it at: the
// debug level if none is left, or if there are too many lines of the kind.
func (s *service) levelOfFailure(kind string, from netip.Addr) slog.Level {
	if s.limits.failures.allowAddress(netid.Host(from), s.now()) && s.samples.allowLine(kind, from, s.now()) {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}
