// Package handlers turns HTTP into decisions: it asks auth who sends, runner
// what may run, and answers.
package handlers

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"golang.org/x/time/rate"

	"sallyport/internal/audit"
	"sallyport/internal/config"
	"sallyport/internal/readiness"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
)

// Outputs opens the output of a run, one that is being written too. Errors wrap
// runner.ErrUnknown or output.ErrNotKept where there is none.
type Outputs func(run string) (*output.Reader, error)

// Handler is the whole surface of the server, by the configuration in force.
type Handler struct {
	watcher *config.Watcher
	current atomic.Pointer[surface]
}

// New returns the surface. outputs opens what a run wrote. Update has the surface
// go by a configuration that came into force since.
// check is what /readyz looks at.
func New(
	conf *config.Watcher, run *runner.Runner, outputs Outputs, trail *audit.Log, check *readiness.Check, metrics http.Handler,
	now func() time.Time, log *slog.Logger,
) *Handler {
	h := &Handler{watcher: conf}
	h.current.Store(newSurface(conf.Get(), &surface{
		runner: run, outputs: outputs, audit: trail, check: check, metrics: metrics, beats: newBeats(), samples: newSamples(log), proved: newProvedHosts(), watcher: conf,
		reads: newGate(maxReads), followers: newGate(maxFollowers), waits: newGate(maxWaits),
		log: log, now: now, latest: h.current.Load,
	}))
	return h
}

// Update goes by the configuration in force from the next request on. Requests
// under way end by the one that they began with, but for those who follow an
// output. It is not to be called twice at once.
func (h *Handler) Update() { h.current.Store(newSurface(h.watcher.Get(), h.current.Load())) }

// Close writes into the log what was only counted so far.
func (h *Handler) Close() { h.current.Load().samples.summarize() }

// SkippedLines returns how many lines of the log were not written because there were too many of a kind.
func (h *Handler) SkippedLines() int { return h.current.Load().samples.skippedLines() }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.current.Load().all.ServeHTTP(w, r)
}

// surface answers requests by one compiled configuration.
type surface struct {
	config  *config.Config
	watcher *config.Watcher
	runner  *runner.Runner
	outputs Outputs
	audit   *audit.Log
	check   *readiness.Check
	metrics http.Handler
	log     *slog.Logger
	now     func() time.Time
	latest  func() *surface // by the configuration in force, for answers that last
	all     http.Handler
	admin   http.Handler

	hooks       map[string]*hook.Hook // by path
	connections *addressLimits
	addresses   *addressLimits
	failures    *addressLimits
	callers     map[string]*rate.Limiter
	room        *room
	proved      *provedHosts
	beats       *beats
	samples     *samples
	reads       *gate
	followers   *gate
	waits       *gate
}

// newSurface goes on where the one before it is: what has been spent of a limit
// stays spent.
func newSurface(c *config.Config, old *surface) *surface {
	s := &surface{
		config: c, watcher: old.watcher, runner: old.runner, outputs: old.outputs, audit: old.audit, check: old.check, metrics: old.metrics, log: old.log, now: old.now, latest: old.latest,
		beats:       old.beats,
		samples:     old.samples,
		reads:       old.reads,
		followers:   old.followers,
		waits:       old.waits,
		hooks:       make(map[string]*hook.Hook, len(c.Hooks)),
		connections: old.connections.or(c.Limits.Address, connectionSlots),
		addresses:   old.addresses.or(c.Limits.Address, addressSlots),
		failures:    old.failures.or(c.Limits.Failures, failureSlots),
		callers:     callerLimits(c.CallerLimits, old.callers),
		room:        old.room.or(c.Hooks),
		proved:      old.proved,
	}
	for _, h := range c.Hooks {
		s.hooks[h.Path] = h
	}
	s.all, s.admin = s.outer(s.routes()), s.outer(s.adminRoutes())
	return s
}

// routes are all there are. Hooks are not among them: mux tries its routes one
// after the other, so thousands would cost each request milliseconds. The
// router does not clean paths, because its redirect turns a POST into a GET.
func (s *surface) routes() *mux.Router {
	r := mux.NewRouter().SkipClean(true)
	r.MatcherFunc(hasEncodedSlash).Handler(handler(func(http.ResponseWriter, *http.Request, *request) error { return notFound() }))
	for path, by := range s.fixed() {
		r.Handle(path, by)
	}
	r.PathPrefix("/").Handler(handler(s.hook))
	// What has no path at all (OPTIONS *) gets the same answer as an unknown one.
	r.NotFoundHandler = handler(s.hook)
	return r
}

// fixed are the paths of the server itself. No hook may have one that begins as
// they do: hook.ReservedPaths.
func (s *surface) fixed() map[string]methods {
	return map[string]methods{
		"/healthz":          {http.MethodGet: s.health},
		"/readyz":           {http.MethodGet: s.ready},
		"/metrics":          {http.MethodGet: s.getMetrics},
		"/runs":             {http.MethodGet: s.listRuns},
		"/runs/{id}":        {http.MethodGet: s.getRun, http.MethodDelete: s.cancelRun},
		"/runs/{id}/output": {http.MethodGet: s.getOutput},
		"/runs/{id}/rerun":  {http.MethodPost: s.rerun},
	}
}

// hasEncodedSlash finds paths that mean something else decoded: what stands before
// the server and decides by the path would have seen another one.
func hasEncodedSlash(r *http.Request, _ *mux.RouteMatch) bool {
	return strings.Contains(strings.ToLower(r.URL.EscapedPath()), "%2f")
}

// handler answers a request, or returns why it is turned away.
type handler func(w http.ResponseWriter, r *http.Request, req *request) error

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req := of(r)
	defer req.leaveReads()
	if err := h(w, r, req); err != nil {
		writeProblem(w, req, err)
	}
}

// methods answers 405 with Allow for what is not among them. HEAD is answered where GET is:
// net/http leaves the body out.
type methods map[string]handler

func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, ok := m[r.Method]
	if !ok && r.Method == http.MethodHead {
		h, ok = m[http.MethodGet]
	}
	if !ok {
		h = func(http.ResponseWriter, *http.Request, *request) error { return notAllowed(m) }
	}
	h.ServeHTTP(w, r)
}

func notAllowed(m methods) error {
	var allow []string
	for name := range m {
		allow = append(allow, name)
		if name == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	slices.Sort(allow)
	return &refusal{
		status: http.StatusMethodNotAllowed, kind: "method-not-allowed",
		detail: "Only " + strings.Join(allow, ", ") + " is answered here.",
		header: http.Header{"Allow": {strings.Join(allow, ", ")}},
	}
}
