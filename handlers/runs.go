package handlers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"sallyport/runner"
)

// maxWait bounds how long an answer is held back for the end of a run.
const maxWait = 300 * time.Second

// getRun answers with a run to the caller that started it. To all others it is
// as if there were none.
func (s *Server) getRun(w http.ResponseWriter, r *http.Request, req *request) error {
	wait, err := preferWait(r.Header)
	if err != nil {
		return err
	}
	body, release, err := s.bodies.read(w, r, runner.BodySpec{Timeout: time.Second}, s.now())
	if err != nil {
		return err
	}
	defer release()
	who, err := s.authenticate(r, req, body, nil)
	if err != nil {
		return err
	}
	if err := s.limitCaller(w, who); err != nil {
		return err
	}
	run, err := s.runner.Get(mux.Vars(r)["id"])
	switch {
	case errors.Is(err, runner.ErrUnknown), err == nil && run.Caller != who.Caller:
		return notFound()
	case err != nil:
		return err
	}
	return s.answerRun(w, r, req, run, wait)
}

// answerRun answers 200 with a run: as it stands, or when it has ended if the
// request prefers to wait (RFC 7240, 4.3).
func (s *Server) answerRun(w http.ResponseWriter, r *http.Request, req *request, run runner.Run, wait int) error {
	req.run = run.ID
	if wait > 0 {
		span := min(time.Duration(wait)*time.Second, maxWait)
		w.Header().Set("Preference-Applied", fmt.Sprintf("wait=%d", int(span.Seconds())))
		// The server's own deadline is for answers that are made at once.
		_ = http.NewResponseController(w).SetWriteDeadline(s.now().Add(span + 10*time.Second))
		ctx, cancel := context.WithTimeout(r.Context(), span)
		defer cancel()
		var err error
		if run, err = s.runner.Wait(ctx, run.ID); err != nil {
			return err
		}
	}
	w.Header().Set("Location", "/runs/"+run.ID)
	writeJSON(w, http.StatusOK, "application/json", run)
	return nil
}

// preferWait reads wait=N, in seconds, out of the Prefer fields; zero without
// one. Other preferences are ignored, as RFC 7240 has it.
func preferWait(h http.Header) (int, error) {
	for _, field := range h.Values("Prefer") {
		for preference := range strings.SplitSeq(field, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err != nil {
				return 0, malformed("Prefer: wait= takes a number of seconds.")
			}
			return int(n), nil
		}
	}
	return 0, nil
}
