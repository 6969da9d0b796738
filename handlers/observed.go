package handlers

import (
	"errors"
	"net/http"

	"sallyport/runner"
)

// observation is the answer to a verified delivery of an observed caller: what would have happened to it. The sender
// is authenticated, so the answer may say so.
type observation struct {
	Observed bool     `json:"observed"` // true
	Would    string   `json:"would"`    // have been started, queued, replayed, ignored or refused
	Status   int      `json:"status"`   // the status of the answer that it would have got
	Title    string   `json:"title,omitempty"`
	Flight   string   `json:"flight,omitempty"`
	Position int      `json:"position,omitempty"` // in the queue, if it would be queued; 1 is next
	Run      string   `json:"run,omitempty"`      // the first run, if it is a replay
	Reason   string   `json:"reason,omitempty"`   // why it would be ignored
	Problem  *problem `json:"problem,omitempty"`  // the problem, if it would be refused
}

// answerObserved answers a delivery of an observed caller that no earlier check refused. It starts and records
// nothing.
func (s *service) answerObserved(w http.ResponseWriter, r *http.Request, req *request, d runner.Delivery) error {
	o, err := describeOutcome(s.runner.DryRun(r.Context(), d))
	if err != nil {
		return s.answers.answerNotStarted(w, r, req, endWait{}, err)
	}
	o.Title = d.Hook.Title(d.Values)
	writeObservation(w, req, o)
	return nil
}

// describeOutcome says what a dry run found. It returns the error of a delivery that would be refused.
func describeOutcome(started runner.Started, err error) (observation, error) {
	o := observation{Would: "started", Status: http.StatusOK, Flight: started.Run.Flight, Position: started.Position}
	var replayed *runner.Replayed
	switch {
	case errors.As(err, &replayed):
		o.Would, o.Run = "replayed", replayed.Run.ID
	case err != nil:
		return o, err
	case started.Run.State == runner.Queued:
		o.Would, o.Status = "queued", http.StatusAccepted
	}
	return o, nil
}

func writeObservation(w http.ResponseWriter, req *request, o observation) {
	o.Observed = true
	req.would = o.Would
	writeJSON(w, http.StatusOK, "application/json", o)
}
