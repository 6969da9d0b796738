package handlers

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"sallyport/internal/config"
	"sallyport/internal/readiness"
	"sallyport/runner"
)

// probes handle the requests that ask whether the server works.
type probes struct {
	runner  *runner.Runner
	check   *readiness.Check
	watcher *config.Watcher
}

// notReady is the kind of a refusal by /readyz.
const notReady = "not-ready"

// getHealth answers 200 while the process handles requests.
func (p *probes) getHealth(w http.ResponseWriter, _ *http.Request, req *request) error {
	req.routine = true
	writeJSON(w, http.StatusOK, "application/json", map[string]string{"status": "ok"})
	return nil
}

// getReadiness reports whether deliveries are accepted and commands started. It tests every part that this needs. The
// answer has the names of the parts that fail; the log has the reasons.
func (p *probes) getReadiness(w http.ResponseWriter, r *http.Request, req *request) error {
	req.routine = true
	if p.runner.Draining() {
		return refuseDraining()
	}
	var parts []string
	var causes []error
	for _, f := range p.check.Faults(r.Context()) {
		parts = append(parts, f.Part)
		causes = append(causes, f.Err)
	}
	if len(parts) > 0 {
		return &refusal{
			status: http.StatusServiceUnavailable, kind: notReady, cause: errors.Join(causes...), parts: parts,
			reason: "not ready: " + strings.Join(parts, ", "),
			detail: "Not working: " + strings.Join(parts, ", ") + ".", header: http.Header{"Retry-After": {"10"}},
		}
	}
	status := p.watcher.Status()
	writeJSON(w, http.StatusOK, "application/json", readinessStatus{
		Status: "ready", Loaded: status.Loaded.UTC(), ReloadFailed: status.Failed.UTC(),
	})
	return nil
}

type readinessStatus struct {
	Status       string    `json:"status"`
	Loaded       time.Time `json:"configuration_loaded"`
	ReloadFailed time.Time `json:"reload_failed,omitzero"` // since then
}
