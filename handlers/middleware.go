package handlers

import (
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"time"

	"sallyport/auth"
	"sallyport/internal/audit"
	"sallyport/internal/guard"
	"sallyport/internal/netid"
)

// request has what the log line and the audit line of a request say beyond the request itself. The handlers fill it
// in as they learn it. It has many fields because each is a field of one of these lines.
type request struct {
	id             string
	address        string
	caller         string // once its credential is verified
	credentialKind string
	key            string
	refused        *auth.Refusal // why its credential was refused
	hook           string
	params         string // digest
	run            string
	kind           string // how it was refused, or ignored or handshake
	reason         string // why
	cause          error
	status         int        // of a part
	parts          []*request // of a delivery to several hooks: what each did with it
	broken         bool       // the answer has begun, and its reader must see that it is incomplete

	observed  bool   // the delivery only gets an answer, and starts nothing
	would     string // started, queued, replayed, ignored or refused: what would have happened if it were not observed
	leave     func() // releases the request's place among the reads of its caller; nil without one
	tellsEnd  bool   // the status says how the run ended: the request itself was accepted
	routine   bool   // a probe or a scrape: one that succeeds is logged at the debug level only
	resembles string // observed callers that may have sent it, although it is not authenticated
}

// leaveReads releases the request's place among the reads of its caller.
func (req *request) leaveReads() {
	if req.leave != nil {
		req.leave()
	}
}

type requestKey struct{}

func requestOf(r *http.Request) *request {
	req, _ := r.Context().Value(requestKey{}).(*request)
	return req
}

// middleware wraps all requests.
type middleware struct {
	*shared

	addresses *addressLimits
	endpoints map[string]*endpoint // by path; nil for the API of local administrators
}

// wrapRouter wraps the router. It is not registered with the router, because mux does not run its own middleware for
// 404 and 405, and scanners get these answers.
func (m *middleware) wrapRouter(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := m.now()
		req := &request{id: rand.Text(), address: r.RemoteAddr}
		r = r.WithContext(audit.WithRequest(context.WithValue(r.Context(), requestKey{}, req), req.auditLine))
		rec := &recorder{ResponseWriter: w, conn: netid.ConnectionOf(r)}
		h := w.Header()
		h.Set("X-Request-Id", req.id)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		defer req.abortIfBroken()
		defer m.logRequest(r, req, rec, start)
		defer m.auditRefusal(r, req, rec)
		defer m.answerPanic(rec, req)
		if e := m.addresses.takeToken(remoteHost(r), "address", start); e != nil {
			writeProblem(rec, req, e)
			return
		}
		next.ServeHTTP(rec, r)
	})
}

// answerPanic answers 500 for a panic of a handler. If the answer has begun, it is broken off instead, so that its
// reader does not take it for a complete one.
func (m *middleware) answerPanic(rec *recorder, req *request) {
	err := guard.Log(m.log, recover(), "request", req.id)
	if err == nil {
		return
	}
	if rec.status != 0 {
		markBroken(req, err)
		return
	}
	writeProblem(rec, req, err)
}

// abortIfBroken breaks off an incomplete answer: over HTTP/1.1 without its last chunk, over HTTP/2 with a reset. It
// is called after the request is logged.
func (req *request) abortIfBroken() {
	if req.broken {
		panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to break an answer off
	}
}

// The most bytes that a request may write into a field of the log.
const (
	longestPath  = 200
	longestField = 2000 // of what the server writes about it
)

// logRequest writes one line per request. Lines that unknown senders can cause in any number are sampled, so that
// they cannot fill the disk: those of requests without a caller, and of requests that a limit refused.
func (m *middleware) logRequest(r *http.Request, req *request, rec *recorder, start time.Time) {
	level := slog.LevelInfo
	switch {
	case req.tellsEnd: // the end of a run has a line of its own
	case rec.status == http.StatusInternalServerError:
		level = slog.LevelError
	case rec.status >= http.StatusBadRequest:
		level = slog.LevelWarn
	case req.routine:
		level = slog.LevelDebug
	}
	stranger := req.caller == "" && req.run == ""
	if level > slog.LevelDebug && (stranger || rec.status == http.StatusTooManyRequests) &&
		!m.samples.allowLine(cmp.Or(req.kind, "answered"), remoteAddr(r), m.now()) {
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{
		slog.String("request", req.id),
		slog.String("address", r.RemoteAddr),
		slog.String("method", audit.Shorten(r.Method, longestPath)),
		slog.String("path", audit.Shorten(r.URL.EscapedPath(), longestPath)),
		slog.Int("status", rec.status),
		slog.Float64("took_ms", float64(m.now().Sub(start).Microseconds())/1000),
	}
	for _, a := range []struct{ key, value string }{
		{"hook", req.hook},
		{"caller", req.caller},
		{"key", req.key},
		{"run", req.run},
		{"reason", req.reason},
		{"observed", req.would},
		{"resembles", req.resembles},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, audit.Shorten(a.value, longestField)))
		}
	}
	if req.cause != nil {
		attrs = append(attrs, slog.String("error", audit.Shorten(req.cause.Error(), longestField)))
	}
	m.log.LogAttrs(r.Context(), level, "request", attrs...)
}

// recorder records the status for the log, and ends a connection that must not
// continue.
type recorder struct {
	http.ResponseWriter
	conn   netid.Connection
	status int
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
		if r.conn.Answer(status) {
			r.Header().Set("Connection", "close") // over HTTP/2, GOAWAY
		}
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
