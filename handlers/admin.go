package handlers

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/gorilla/mux"

	"sallyport/internal/config"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// adminKind is the kind of credential that the audit log shows for requests of a local administrator. The key is
// the user id.
const adminKind = "local"

// adminAPI handles the requests of local administrators.
type adminAPI struct {
	config  *config.Config
	runner  *runner.Runner
	answers *runAnswers
}

type adminKey struct{}

// WithAdmin returns the context of a connection of a local administrator with a user id.
func WithAdmin(ctx context.Context, uid int) context.Context {
	return context.WithValue(ctx, adminKey{}, uid)
}

// Admin returns the handler for local administrators. They cancel and repeat any run, and pause and
// resume any hook, without a credential. It must be
// served only on connections that were checked, with a context of WithAdmin.
func (h *Handler) Admin() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = adminKind // a Unix socket has no address to log
		h.current.Load().admin.ServeHTTP(w, r)
	})
}

func (a *adminAPI) newRouter() *mux.Router {
	r := mux.NewRouter().SkipClean(true)
	r.Handle("/runs/{id}", methods{http.MethodDelete: a.cancelRun})
	r.Handle("/runs/{id}/rerun", methods{http.MethodPost: a.repeatRun})
	r.Handle("/hooks", methods{http.MethodGet: a.listHooks})
	r.Handle("/hooks/{hook}/pause", methods{http.MethodPost: a.pauseHook})
	r.Handle("/hooks/{hook}/resume", methods{http.MethodPost: a.resumeHook})
	r.NotFoundHandler = handler(answerNotFound)
	r.PathPrefix("/").Handler(handler(answerNotFound))
	return r
}

// cancelRun ends a queued or running run, and answers with the run as it is then.
func (a *adminAPI) cancelRun(w http.ResponseWriter, r *http.Request, req *request) error {
	run, err := a.findRun(w, r, req)
	if err != nil {
		return err
	}
	if run, err = a.runner.Cancel(r.Context(), run.ID); err != nil {
		return a.answers.answerNotStarted(w, r, req, endWait{}, err)
	}
	writeJSON(w, http.StatusOK, "application/json", run)
	return nil
}

// repeatRun starts the command of a run again, on behalf of the caller that started it. That caller must still be
// allowed to start the hook, because the supervisor starts nothing for a caller without that right.
func (a *adminAPI) repeatRun(w http.ResponseWriter, r *http.Request, req *request) error {
	run, err := a.findRun(w, r, req)
	if err != nil {
		return err
	}
	if h, ok := a.config.Hook(run.Hook); !ok || !h.Unauthenticated && !h.May(run.Caller, hook.MayStart) {
		return forbidden(run.Caller, "start the hook of this run any more")
	}
	started, err := a.runner.Rerun(r.Context(), run, run.Caller, runner.Claim{})
	if err != nil {
		return a.answers.answerNotStarted(w, r, req, endWait{}, err)
	}
	status := http.StatusOK
	if started.Run.State == runner.Queued || started.Late {
		status = http.StatusAccepted
	}
	req.run = started.Run.ID
	writeJSON(w, status, "application/json", started.Run)
	return nil
}

// noteAdmin records the user of a request.
func noteAdmin(r *http.Request, req *request) error {
	uid, ok := r.Context().Value(adminKey{}).(int)
	if !ok {
		return unauthorized("the connection is not that of a local administrator")
	}
	req.credentialKind, req.key = adminKind, strconv.Itoa(uid)
	return nil
}

// findRun returns the run that the path names, and records the user of the request.
func (a *adminAPI) findRun(w http.ResponseWriter, r *http.Request, req *request) (runner.Run, error) {
	if err := noteAdmin(r, req); err != nil {
		return runner.Run{}, err
	}
	run, err := a.runner.Get(r.Context(), mux.Vars(r)["id"])
	switch {
	case errors.Is(err, runner.ErrUnknown):
		return runner.Run{}, notFound()
	case err != nil:
		return runner.Run{}, a.answers.answerNotStarted(w, r, req, endWait{}, err)
	}
	req.hook, req.run, req.caller = run.Hook, run.ID, run.Caller
	return run, nil
}
