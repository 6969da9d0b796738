package handlers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// runAnswers answers requests with a run, or with the reason why none was started.
type runAnswers struct {
	runner  *runner.Runner
	outputs Outputs
	waits   *gate
	latest  func() *service
	now     func() time.Time
}

const replayed = "replayed"

// waiting is the answer for a queued run.
type waiting struct {
	runner.Run
	Joined   bool      `json:"joined,omitempty"`
	Position int       `json:"position"`                // 1 is next
	Expected time.Time `json:"expected_start,omitzero"` // by the median duration of the runs of the hook
}

// answerStarted answers 200 for a running run, and 202 for a run that is queued or is not yet known to run.
func (a *runAnswers) answerStarted(
	w http.ResponseWriter, r *http.Request, req *request, started runner.Started, wait endWait,
) error {
	if wait.seconds > 0 || started.Run.State != runner.Queued && !started.Late {
		return a.answerWithStatus(w, r, req, started.Run, wait, http.StatusAccepted)
	}
	req.run = started.Run.ID
	w.Header().Set("Location", "/runs/"+started.Run.ID)
	if started.Late {
		writeJSON(w, http.StatusAccepted, "application/json", started.Run)
		return nil
	}
	answer := waiting{Run: started.Run, Joined: started.Joined, Position: started.Position}
	if started.Expected > 0 {
		answer.Expected = a.now().Add(started.Expected).Round(time.Second)
	}
	writeJSON(w, http.StatusAccepted, "application/json", answer)
	return nil
}

// answerRun answers 200 with a run: as it is then, or once it has ended if the request prefers to wait (RFC 7240,
// 4.3).
func (a *runAnswers) answerRun(
	w http.ResponseWriter, r *http.Request, req *request, run runner.Run, wait endWait,
) error {
	return a.answerWithStatus(w, r, req, run, wait, http.StatusOK)
}

// answerWithStatus is answerRun, with a status for a run that is still queued. If too many answers of the caller wait
// already, this one does not wait: a preference may be ignored (RFC 7240, 2), and a run may have been started for it.
func (a *runAnswers) answerWithStatus(
	w http.ResponseWriter, r *http.Request, req *request, run runner.Run, wait endWait, queued int,
) error {
	req.run = run.ID
	leave, mayWait := func() {}, wait.seconds > 0
	if mayWait {
		leave, mayWait = a.waits.takePlace(r.Context(), req.caller, 0)
	}
	if mayWait {
		defer leave()
		req.leaveReads()
		span := min(time.Duration(wait.seconds)*time.Second, hook.MaxWait)
		if wait.preferred {
			w.Header().Set("Preference-Applied", fmt.Sprintf("wait=%d", int(span.Seconds())))
		}
		// The default deadline of the server is for answers that do not wait.
		_ = http.NewResponseController(w).SetWriteDeadline(a.now().Add(span + 10*time.Second))
		ctx, cancel := context.WithTimeout(r.Context(), span)
		defer cancel()
		var err error
		if run, err = a.runner.Wait(ctx, run.ID); err != nil {
			return a.answerNotStarted(w, r, req, endWait{}, err)
		}
	}
	status := http.StatusOK
	if run.State == runner.Queued {
		status = queued
	}
	w.Header().Set("Location", "/runs/"+run.ID)
	answer := endedRun{Run: a.latest().rights.redactRun(req.caller, run)}
	if run.State.Ended() {
		if wait.answer.Failed != 0 && run.MayStartAgain() {
			status, req.tellsEnd = int(wait.answer.Failed), true
		}
		answer.Tail = a.readTail(req, run, int64(wait.answer.Output))
	}
	writeJSON(w, status, "application/json", answer)
	return nil
}

// forgotten is the answer for a replay after its first run was removed: claims are kept for longer than runs.
type forgotten struct {
	ID        string `json:"id"`
	Hook      string `json:"hook"`
	Forgotten bool   `json:"forgotten"` // true
}

// answerNotStarted answers a verified delivery that starts nothing, by its reason.
func (a *runAnswers) answerNotStarted(
	w http.ResponseWriter, r *http.Request, req *request, wait endWait, err error,
) error {
	var first *runner.Replayed
	if errors.As(err, &first) {
		req.reason = replayed
		w.Header().Set("Idempotent-Replayed", "true")
		if first.Run.State == "" {
			req.run = first.Run.ID
			writeJSON(w, http.StatusOK, "application/json", forgotten{first.Run.ID, first.Run.Hook, true})
			return nil
		}
		return a.answerRun(w, r, req, first.Run, wait)
	}
	return refuseStart(err)
}

// refuseStart returns the refusal of a verified delivery that starts nothing, by its reason.
func refuseStart(err error) error {
	var busy *runner.Busy
	var failed *runner.NotStarted
	var values *runner.NotAllowed
	var paused *runner.Paused
	switch {
	case errors.As(err, &busy):
		return &refusal{
			status: http.StatusServiceUnavailable, kind: "busy", run: &busy.Run,
			detail: "A run is already in progress, and no other can be queued. Retry-After estimates when it will end.",
			header: http.Header{"Retry-After": {formatSeconds(busy.RetryAfter)}},
		}
	case errors.As(err, &paused):
		return refusePaused(paused)
	case errors.Is(err, runner.ErrNotNow):
		return refuseNotNow(err)
	case errors.Is(err, runner.ErrUncertain):
		return &refusal{
			status: http.StatusInternalServerError, kind: "uncertain", cause: err,
			detail: "The server does not know whether it recorded this delivery. " +
				"If it did, the run starts after the next start of the server.",
		}
	case errors.Is(err, runner.ErrUnavailable), errors.Is(err, runner.ErrFull):
		return refuseUnavailable(err)
	case errors.Is(err, runner.ErrFlight): // a process of an earlier run is still running
		return &refusal{
			status: http.StatusServiceUnavailable, kind: "busy", cause: err,
			detail: "A command of this flight is still running.", header: http.Header{"Retry-After": {"10"}},
		}
	case errors.As(err, &failed):
		return &refusal{
			status: http.StatusInternalServerError, kind: "not-started", run: &failed.Run, cause: failed.Reason,
			detail: "The command could not be started. See the server log for this request id.",
		}
	case errors.As(err, &values):
		return refuseParameters(values)
	case errors.Is(err, runner.ErrReused):
		return credentialUsed(err)
	case errors.Is(err, runner.ErrOtherBody):
		return &refusal{
			status: http.StatusUnprocessableEntity, kind: "other-body", cause: err,
			detail: "An earlier delivery has the same id, nonce or Idempotency-Key and another body. " +
				"Nothing was started.",
		}
	case errors.Is(err, runner.ErrDraining):
		return refuseDraining()
	case errors.Is(err, runner.ErrNoInput):
		return &refusal{
			status: http.StatusUnprocessableEntity, kind: "no-body",
			detail: "The command reads the body of its delivery, which is not kept after the run has ended. " +
				"Send the delivery again.",
		}
	}
	return err
}

// pausedRetry is the Retry-After for a hook that is paused until an operator resumes it.
const pausedRetry = 5 * time.Minute

// refusePaused does not tell the sender the reason of the pause: it is for operators.
func refusePaused(e *runner.Paused) error {
	return &refusal{
		status: http.StatusServiceUnavailable, kind: "paused", cause: e,
		detail: "This hook is paused. Nothing was started.",
		header: http.Header{"Retry-After": {formatSeconds(cmp.Or(e.Left, pausedRetry))}},
	}
}

func refuseUnavailable(cause error) error {
	return &refusal{
		status: http.StatusServiceUnavailable, kind: "unavailable", cause: cause,
		detail: "The server cannot record a run now, so it does not start one.",
		header: http.Header{"Retry-After": {"30"}},
	}
}

func refuseNotNow(cause error) error {
	return &refusal{
		status: http.StatusServiceUnavailable, kind: "unavailable", cause: cause,
		detail: "Commands cannot be started now.", header: http.Header{"Retry-After": {"10"}},
	}
}

func refuseDraining() error {
	return &refusal{
		status: http.StatusServiceUnavailable, kind: "draining",
		detail: "The server is shutting down and accepts no new deliveries.",
		header: http.Header{"Retry-After": {"10"}},
	}
}
