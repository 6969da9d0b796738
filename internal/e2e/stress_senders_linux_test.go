package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// stressHook is a hook of the stress test, with what the test knows about it.
type stressHook struct {
	name   string
	busy   string // as in the configuration
	policy hook.Policy
	hows   []string // behaviours of the command: see stressJob
	more   string   // further lines of the configuration
	again  bool     // on_interrupted: rerun
}

// stressHooks returns the hooks. Each has two flights.
func stressHooks() []stressHook {
	usual := []string{"plain", "plain", "long", "fork", "setsid", "stubborn"}
	return []stressHook{
		{name: "reject", busy: "reject", policy: hook.Policy{Kind: hook.Reject}, hows: usual},
		{name: "queue", busy: "{queue: 4}", policy: hook.Policy{Kind: hook.Queue, Depth: 4}, hows: usual, more: "queue_timeout: 30m", again: true},
		{name: "join", busy: "join", policy: hook.Policy{Kind: hook.Join}, hows: usual},
		{name: "replace", busy: "replace", policy: hook.Policy{Kind: hook.Replace}, hows: usual},
		{name: "timed", busy: "{queue: 2}", policy: hook.Policy{Kind: hook.Queue, Depth: 2}, hows: []string{"hang", "plain", "plain"}, more: "timeout: 3s"},
	}
}

const flightsOfHook = 2

// senderOp is an operation of a sender. To add one, add a line here and a method.
type senderOp struct {
	name   string
	weight int
	do     func(s *stress, from *stressSender, r *rand.Rand)
}

func senderOps() []senderOp {
	return []senderOp{
		{"deliver", 50, (*stress).deliverNew},
		{"redeliver", 12, (*stress).deliverAgain},
		{"get", 12, (*stress).getRun},
		{"list", 4, (*stress).listRuns},
		{"cancel", 8, (*stress).cancelRun},
		{"rerun", 6, (*stress).rerunRun},
		{"follow", 6, (*stress).followRun},
	}
}

// stressSender is a sender. The seed alone decides what it does.
type stressSender struct {
	index int
	sent  []stressDelivery
}

// stressDelivery is a delivery, the same each time it is sent.
type stressDelivery struct {
	n      int // unique
	hook   stressHook
	flight int
	how    string
}

func (d stressDelivery) name() string { return fmt.Sprintf("%s/%d", d.hook.name, d.flight) }

func (d stressDelivery) body() string {
	return fmt.Sprintf(`{"n":%d,"flight":%d,"how":%q}`, d.n, d.flight, d.how)
}

// event is a request, with what is known of its answer.
type event struct {
	Op       string
	N        int    `json:",omitempty"` // of a delivery
	Of       string `json:",omitempty"` // the run of the request
	From, To moment
	Code     int // 0: no answer came
	Answer   stressAnswer
	Listed   []stressAnswer `json:",omitempty"`
	Watch    bool           `json:",omitempty"` // a request of the test, not of a sender
}

// stressAnswer is the body of an answer.
type stressAnswer struct {
	ID       string
	Flight   string
	State    runner.State
	Joined   bool
	Position int
	Replayed bool
	Type     string // of a problem
	Run      struct {
		ID    string
		State runner.State
	} // of a problem
}

// accepted reports whether this answer accepted a delivery or a rerun.
func (e event) accepted() bool {
	return (e.Code == http.StatusOK || e.Code == http.StatusAccepted) && !e.Answer.Replayed
}

// request sends a request and records its answer.
func (s *stress) request(e event, method, path, body string) event {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e.From = sinceBoot()
	a, err := s.exchange(ctx, method, path, body)
	if e.To = sinceBoot(); err == nil {
		e.Code = a.code
		_ = json.Unmarshal(a.body, &e.Answer) // zero for an empty answer
		e.Answer.Replayed = a.header.Get("Idempotent-Replayed") == "true"
		if e.Op == "list" {
			var page struct{ Runs []stressAnswer }
			_ = json.Unmarshal(a.body, &page)
			e.Listed = page.Runs
		}
	}
	s.noteEvent(e)
	return e
}

// exchange sends a request. A delivery is signed, and a request to the run API has a token. With an error, the reply
// may hold the beginning of an answer.
func (s *stress) exchange(ctx context.Context, method, path, body string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, *s.url.Load()+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if strings.HasPrefix(path, "/hooks/") {
		if req.Header, err = s.sign("", []byte(body), time.Now()); err != nil {
			return reply{}, err
		}
		req.Header.Set("Content-Type", "application/json")
	} else {
		req.Header.Set("Authorization", "Bearer "+stressToken)
	}
	res, err := s.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, text}, err
}

// send repeats a delivery until there is an answer.
func (s *stress) send(d stressDelivery) {
	for !s.broken.Load() {
		e := s.request(event{Op: "deliver", N: d.n}, http.MethodPost, "/hooks/"+d.hook.name, d.body())
		<-time.After(10 * time.Millisecond)
		if e.Code > 0 {
			return
		}
	}
}

func (s *stress) deliverNew(from *stressSender, r *rand.Rand) {
	hooks := stressHooks()
	h := hooks[r.IntN(len(hooks))]
	d := stressDelivery{n: from.index*1_000_000 + len(from.sent), hook: h, flight: r.IntN(flightsOfHook), how: h.hows[r.IntN(len(h.hows))]}
	from.sent = append(from.sent, d)
	s.mu.Lock()
	s.deliveries[d.n] = d
	s.mu.Unlock()
	s.send(d)
}

// deliverAgain repeats an earlier delivery, mostly a recent one.
func (s *stress) deliverAgain(from *stressSender, r *rand.Rand) {
	late, early := 1+r.IntN(5), r.IntN(1+len(from.sent))
	switch {
	case len(from.sent) == 0:
	case r.IntN(2) == 0:
		s.send(from.sent[early%len(from.sent)])
	default:
		s.send(from.sent[max(len(from.sent)-late, 0)])
	}
}

// pickRun returns one of the latest runs that an answer named, or "".
func (s *stress) pickRun(r *rand.Rand) string {
	back := 1 + r.IntN(12)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) == 0 {
		return ""
	}
	return s.known[max(len(s.known)-back, 0)]
}

func (s *stress) getRun(_ *stressSender, r *rand.Rand) {
	if run := s.pickRun(r); run != "" {
		s.request(event{Op: "get", Of: run}, http.MethodGet, "/runs/"+run, "")
	}
}

func (s *stress) listRuns(_ *stressSender, r *rand.Rand) {
	s.request(event{Op: "list"}, http.MethodGet, fmt.Sprintf("/runs?limit=%d", 1+r.IntN(20)), "")
}

// observe lists runs repeatedly until over is closed. The lists bound the moments when runs were admitted and when they
// ended.
func (s *stress) observe(over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		case <-time.After(200 * time.Millisecond):
			s.request(event{Op: "list", Watch: true}, http.MethodGet, "/runs?limit=100", "")
		}
	}
}

func (s *stress) cancelRun(_ *stressSender, r *rand.Rand) {
	if run := s.pickRun(r); run != "" {
		s.request(event{Op: "cancel", Of: run}, http.MethodDelete, "/runs/"+run, "")
	}
}

func (s *stress) rerunRun(_ *stressSender, r *rand.Rand) {
	if run := s.pickRun(r); run != "" {
		s.request(event{Op: "rerun", Of: run}, http.MethodPost, "/runs/"+run+"/rerun", "")
	}
}

// followRun reads the output of a run until its end, or until the request fails.
func (s *stress) followRun(_ *stressSender, r *rand.Rand) {
	run := s.pickRun(r)
	if run == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	a, _ := s.exchange(ctx, http.MethodGet, "/runs/"+run+"/output?follow", "") // it may end before the output does
	if a.code == http.StatusOK && !strings.HasPrefix(stressOutput(run), string(a.body)) {
		s.noteFault("untrue", "run %s was followed, and wrote %q", run, a.body)
	}
}

// noteEvent records an event.
func (s *stress) noteEvent(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	if e.Watch {
		return
	}
	s.answers[fmt.Sprint(e.Op, " ", e.Code, " ", strings.TrimPrefix(e.Answer.Type, "urn:sallyport:"))]++
	if id := e.Answer.ID; id != "" && e.accepted() && !slices.Contains(s.known[max(0, len(s.known)-20):], id) {
		s.known = append(s.known, id)
	}
}
