package handlers

import (
	"net/http"
	"slices"
	"strings"

	"github.com/gorilla/mux"
)

// newRouter returns a router with a route for each fixed path. Hooks are not routes: mux tries its routes one after
// the other, so thousands of hooks would cost each request milliseconds. The router does not clean paths, because its
// redirect turns a POST into a GET.
func (s *service) newRouter() *mux.Router {
	r := mux.NewRouter().SkipClean(true)
	r.MatcherFunc(hasEncodedSlash).Handler(handler(answerNotFound))
	for path, by := range s.fixedRoutes() {
		r.Handle(path, by)
	}
	r.PathPrefix("/").Handler(handler(s.hook))
	// A request without a path (OPTIONS *) gets the same answer as one with an unknown path.
	r.NotFoundHandler = handler(s.hook)
	return r
}

// fixedRoutes returns the paths of the server itself. The path of a hook must not begin with the same part:
// hook.ReservedPaths.
func (s *service) fixedRoutes() map[string]methods {
	return map[string]methods{
		"/healthz":          {http.MethodGet: s.probes.getHealth},
		"/readyz":           {http.MethodGet: s.probes.getReadiness},
		"/metrics":          {http.MethodGet: s.getMetrics},
		"/runs":             {http.MethodGet: s.listRuns},
		"/runs/{id}":        {http.MethodGet: s.getRun, http.MethodDelete: s.cancelRun},
		"/runs/{id}/output": {http.MethodGet: s.getOutput},
		"/runs/{id}/rerun":  {http.MethodPost: s.repeatRun},
	}
}

// hasEncodedSlash finds paths that change their meaning when they are decoded: a proxy before the server that decides
// by the path would have seen a different path.
func hasEncodedSlash(r *http.Request, _ *mux.RouteMatch) bool {
	return strings.Contains(strings.ToLower(r.URL.EscapedPath()), "%2f")
}

// handler answers a request, or returns a refusal.
type handler func(w http.ResponseWriter, r *http.Request, req *request) error

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req := requestOf(r)
	defer req.leaveReads()
	if err := h(w, r, req); err != nil {
		writeProblem(w, req, err)
	}
}

// answerNotFound answers 404 for every path.
func answerNotFound(http.ResponseWriter, *http.Request, *request) error { return notFound() }

// methods answers 405 with Allow for other methods than these. HEAD is allowed where GET is: net/http omits the body.
type methods map[string]handler

func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, ok := m[r.Method]
	if !ok && r.Method == http.MethodHead {
		h, ok = m[http.MethodGet]
	}
	if !ok {
		h = func(http.ResponseWriter, *http.Request, *request) error { return refuseMethod(m) }
	}
	h.ServeHTTP(w, r)
}

func refuseMethod(m methods) error {
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
		detail: "Method not allowed; use " + strings.Join(allow, ", ") + ".",
		header: http.Header{"Allow": {strings.Join(allow, ", ")}},
	}
}
