package handlers

import (
	"net/http"
	"slices"
)

// getMetrics answers with the metrics, to callers that the configuration allows to read them.
func (s *service) getMetrics(w http.ResponseWriter, r *http.Request, req *request) error {
	if s.config.Metrics == nil {
		return notFound()
	}
	who, err := s.authenticateCaller(w, r, req)
	if err != nil {
		return err
	}
	if !slices.Contains(s.config.Metrics, who.Caller) {
		return forbidden(who.Caller, "read the metrics")
	}
	req.routine = true
	s.metrics.ServeHTTP(w, r)
	return nil
}
