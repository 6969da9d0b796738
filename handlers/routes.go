package handlers

import (
	"net/http"
	"slices"
	"strings"

	"github.com/gorilla/mux"
)

// newRouter has a route for each fixed path. Hooks are not among them: mux tries its routes one
// after the other, so thousands would cost each request milliseconds. The
// router does not clean paths, because its redirect turns a POST into a GET.
func (s *service) newRouter() *mux.Router {
	r := mux.NewRouter().SkipClean(true)
	r.MatcherFunc(hasEncodedSlash).Handler(handler(answerNotFound))
	for path, by := range s.fixedRoutes() {
		r.Handle(path, by)
	}
	r.PathPrefix("/").Handler(handler(s.hook))
	// What has no path at all (OPTIONS *) gets the same answer as an unknown one.
	r.NotFoundHandler = handler(s.hook)
	return r
}

// fixedRoutes are the paths of the server itself. No hook may have one that begins as
// they do: hook.ReservedPaths.
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

// hasEncodedSlash finds paths that mean something else when they are decoded: a proxy before
// the server that decides by the path would have seen another one.
func hasEncodedSlash(r *http.Request, _ *mux.RouteMatch) bool {
	return strings.Contains(strings.ToLower(r.URL.EscapedPath()), "%2f")
}

// handler answers a request, or returns why it is refused.
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

// methods answers 405 with Allow for what is not among them. HEAD is answered where GET is:
// net/http leaves the body out.
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
