// Package handlers turns HTTP into decisions: it asks auth who sends, runner
// what may run, and answers.
package handlers

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"golang.org/x/time/rate"

	"sallyport/internal/config"
	"sallyport/runner"
)

// Server answers requests by one compiled configuration.
type Server struct {
	config *config.Config
	runner *runner.Runner
	log    *slog.Logger
	now    func() time.Time

	hooks     map[string]*runner.Hook // by path
	addresses *addressLimits
	failures  *addressLimits
	callers   map[string]*rate.Limiter
	bodies    *bodies
}

// New returns the whole surface of the server.
func New(c *config.Config, run *runner.Runner, now func() time.Time, log *slog.Logger) http.Handler {
	s := &Server{
		config: c, runner: run, log: log, now: now,
		hooks:     make(map[string]*runner.Hook, len(c.Hooks)),
		addresses: newAddressLimits(c.Limits.Address, addressSlots),
		failures:  newAddressLimits(c.Limits.Failures, failureSlots),
		callers:   callerLimits(c.CallerLimits),
		bodies:    newBodies(c.Hooks),
	}
	for _, h := range c.Hooks {
		s.hooks[h.Path] = h
	}
	return s.outer(s.routes())
}

// routes are all there are. Hooks are not among them: mux tries its routes one
// after the other, so thousands would cost each request milliseconds. The
// router does not clean paths, because its redirect turns a POST into a GET.
func (s *Server) routes() *mux.Router {
	r := mux.NewRouter().SkipClean(true)
	r.Handle("/healthz", methods{http.MethodGet: s.health})
	r.Handle("/readyz", methods{http.MethodGet: s.ready})
	r.Handle("/runs", methods{http.MethodGet: s.listRuns})
	r.Handle("/runs/{id}", methods{http.MethodGet: s.getRun, http.MethodDelete: s.cancelRun})
	r.Handle("/runs/{id}/output", methods{http.MethodGet: s.getOutput})
	r.Handle("/runs/{id}/rerun", methods{http.MethodPost: s.rerun})
	r.PathPrefix("/").Handler(handler(s.hook))
	// What has no path at all (OPTIONS *) gets the same answer as an unknown one.
	r.NotFoundHandler = handler(s.hook)
	return r
}

// handler answers a request, or returns why it is turned away.
type handler func(w http.ResponseWriter, r *http.Request, req *request) error

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req := of(r)
	if err := h(w, r, req); err != nil {
		writeProblem(w, req, err)
	}
}

// methods answers 405 with Allow for what is not among them.
type methods map[string]handler

func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, ok := m[r.Method]
	if !ok {
		h = func(http.ResponseWriter, *http.Request, *request) error { return notAllowed(m) }
	}
	h.ServeHTTP(w, r)
}

func notAllowed(m methods) error {
	var allow []string
	for name := range m {
		allow = append(allow, name)
	}
	slices.Sort(allow)
	return &refusal{
		status: http.StatusMethodNotAllowed, kind: "method-not-allowed",
		detail: "Only " + strings.Join(allow, ", ") + " is answered here.",
		header: http.Header{"Allow": {strings.Join(allow, ", ")}},
	}
}

// health tells that the process answers at all.
func (s *Server) health(w http.ResponseWriter, _ *http.Request, _ *request) error {
	writeJSON(w, http.StatusOK, "application/json", map[string]string{"status": "ok"})
	return nil
}

// ready tells whether deliveries are taken.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request, _ *request) error {
	if s.runner.Draining() {
		return draining()
	}
	writeJSON(w, http.StatusOK, "application/json", map[string]string{"status": "ready"})
	return nil
}
