package handlers

import (
	"net/http"
	"strings"

	"sallyport/internal/audit"
)

// auditLine is what the audit says about a request, as far as it is known by now.
func (req *request) auditLine() audit.Line {
	line := audit.Line{
		Request: req.id, Address: req.address, Caller: req.caller, Scheme: req.scheme, Key: req.key, Hook: req.hook, Params: req.params,
	}
	if bad := req.refused; bad != nil {
		line.Caller, line.Scheme, line.Key = bad.Caller, bad.Kind, bad.Key
	}
	return line
}

// auditRefusal writes to the audit log how a request was refused. What was allowed stood
// there before it was done (audit.Store), and reading what one may is no
// decision to record.
func (m *middleware) auditRefusal(r *http.Request, req *request, rec *recorder) {
	line := req.auditLine()
	line.Decision, line.Status, line.Method, line.Path = audit.Refused, rec.status, r.Method, r.URL.Path
	line.Run, line.Reason = req.run, req.reason
	sure := req.caller != ""
	switch {
	case req.would != "":
		line.Decision, line.Reason = audit.Observed, strings.TrimSuffix("would have been "+req.would+": "+req.reason, ": ")
		m.audit.Decided(line, req.would, sure)
	case req.reason == replayed:
		line.Decision = audit.Replayed
		m.audit.Decided(line, replayed, sure)
	case rec.status < http.StatusBadRequest, req.kind == notReady: // no decision about the request
	case !sure && (rec.status == http.StatusNotFound || rec.status == http.StatusMethodNotAllowed):
		m.audit.Count(req.kind) // the noise of scanners
	default:
		m.audit.Decided(line, req.kind, sure)
	}
}
