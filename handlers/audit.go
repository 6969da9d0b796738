package handlers

import (
	"net/http"
	"strings"

	"sallyport/internal/audit"
)

// auditLine returns what the audit log says about a request, as far as it is known yet.
func (req *request) auditLine() audit.Line {
	line := audit.Line{
		Request: req.id, Address: req.address, Caller: req.caller, Kind: req.credentialKind, Key: req.key,
		Hook: req.hook, Params: req.params,
	}
	if bad := req.refused; bad != nil {
		line.Caller, line.Kind, line.Key = bad.Caller, bad.Kind, bad.Key
	}
	return line
}

// auditRefusal writes to the audit log how a request was refused, or each part of it. What is allowed is written there
// before it is done (audit.Store). An allowed read is not audited. It counts all of that for the metrics.
func (m *middleware) auditRefusal(r *http.Request, req *request, rec *recorder) {
	if len(req.parts) == 0 {
		m.auditDecision(r, req, rec.status)
	}
	for _, part := range req.parts {
		m.auditDecision(r, part, part.status)
	}
}

func (m *middleware) auditDecision(r *http.Request, req *request, status int) {
	if req.tellsEnd {
		status = http.StatusOK
	}
	if m.endpoints[r.URL.Path] != nil {
		m.countDelivery(req, status)
	}
	if status >= http.StatusBadRequest && req.kind != "" && req.would == "" {
		m.refusals.countOne(req.kind)
	}
	line := req.auditLine()
	line.Decision, line.Status, line.Method, line.Path = audit.Refused, status, r.Method, r.URL.Path
	line.Run, line.Reason = req.run, req.reason
	from := audit.Unverified
	if req.caller != "" {
		from = audit.Verified
	}
	switch {
	case req.would != "":
		line.Decision = audit.Observed
		line.Reason = strings.TrimSuffix("would have been "+req.would+": "+req.reason, ": ")
		m.audit.Decided(line, req.would, from)
	case req.reason == replayed:
		line.Decision = audit.Replayed
		m.audit.Decided(line, replayed, from)
	case req.kind == ignoredKind:
		line.Decision = audit.Ignored
		m.audit.Decided(line, ignoredKind, from)
	case req.kind == handshakeKind:
		line.Decision = audit.Handshake
		m.audit.Decided(line, handshakeKind, from)
	case status < http.StatusBadRequest, req.kind == notReady: // not a decision about the request
	case from == audit.Unverified && (status == http.StatusNotFound || status == http.StatusMethodNotAllowed):
		m.audit.Count(req.kind) // requests of scanners
	default:
		m.audit.Decided(line, req.kind, from)
	}
}
