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

// A handshake costs more than a whole refused request. So the address limit also applies to connections, before TLS,
// but with a separate budget: a sender that opens a connection for each request does not pay twice.

// AllowConnection spends a token of an address for a connection, or returns false if none is left. Refused connections
// are only counted, because unknown senders can open any number of them.
func (h *Handler) AllowConnection(from netip.Addr) bool {
	s := h.current.Load()
	if s.limits.connections.allowAddress(netid.Host(from), s.now()) {
		return true
	}
	s.countRefusal("connection-too-often")
	return false
}

// CountRejectedConnection counts a connection that was closed because too many were open, or
// to make room for another.
func (h *Handler) CountRejectedConnection() { h.current.Load().countRefusal("too-many-connections") }

// IsProvedHost reports whether a delivery from an address was accepted recently.
func (h *Handler) IsProvedHost(from netip.Addr) bool {
	s := h.current.Load()
	return s.proved.provedLately(netid.Host(from), s.now())
}

// ReportFlood counts a connection that was closed because it received more data than its requests need. Its address
// pays a full burst of connections for it, so that another flood does not follow at once. An address from which a
// delivery was accepted does not pay: otherwise, others that share the address could lock out the caller.
func (h *Handler) ReportFlood(from netip.Addr) {
	s := h.current.Load()
	if !h.IsProvedHost(from) {
		s.limits.connections.slots.slotOf(netid.Host(from)).ReserveN(s.now(), s.limits.connections.limit.Burst)
	}
	s.countRefusal("flood")
}

// ReportUnreadable logs a request that net/http answered itself, or that was not sent completely. It costs the
// address a failure. If no failure is left, it is logged only at the debug level.
func (h *Handler) ReportUnreadable(from netip.AddrPort) {
	s := h.current.Load()
	s.log.LogAttrs(context.Background(), s.levelOfFailure("unreadable", from.Addr()), "request not read",
		slog.String("address", from.String()),
		slog.String("reason", "it is malformed, its header is too large, or it was not sent whole"))
	s.countRefusal("unreadable")
}

// ReportRefusedCertificate logs a client certificate that was refused in its handshake, because the client cannot be
// sent the reason. It costs the address a failure, as in a request. If no failure is left, it is logged only at the
// debug level. The client has not proved that it has the key of the certificate.
func (h *Handler) ReportRefusedCertificate(from netip.AddrPort, shown *x509.Certificate, why error) {
	s := h.current.Load()
	sum := sha256.Sum256(shown.Raw)
	line := audit.Line{
		Decision: audit.Refused, Address: from.String(),
		Kind: "mtls", Key: hex.EncodeToString(sum[:]), Reason: why.Error(),
	}
	s.log.LogAttrs(context.Background(), s.levelOfFailure("handshake", from.Addr()), "handshake refused",
		slog.String("address", line.Address), slog.String("key", line.Key),
		slog.String("reason", audit.Shorten(line.Reason, longestField)))
	s.audit.Decided(line, "handshake", audit.Unverified)
	s.refusals.countOne("handshake")
}

// countRefusal counts a connection, or a request without a line of its own in the audit log.
func (s *shared) countRefusal(reason string) {
	s.audit.Count(reason)
	s.refusals.countOne(reason)
}

// levelOfFailure spends a token of an address for a failure, and returns the level to log it at: the debug level if
// no token is left, or if there are too many lines of the kind.
func (s *service) levelOfFailure(kind string, from netip.Addr) slog.Level {
	if s.limits.failures.allowAddress(netid.Host(from), s.now()) && s.samples.allowLine(kind, from, s.now()) {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}
