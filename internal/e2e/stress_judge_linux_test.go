package e2e_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/anishathalye/porcupine"

	"sallyport/internal/audit"
	"sallyport/runner"
	"sallyport/runner/store"
)

// witnessed is what the command of a run wrote to the witness file.
type witnessed struct {
	begun   []moment
	n       int    // number of the delivery
	segment string // segment of the audit log, and its length before the command began
	size    int64
	ended   moment // 0: the command did not end by itself
	code    int
	term    moment // when it got SIGTERM
	overlap bool   // another run of its flight held the lock
}

// verdict is what a round is judged by.
type verdict struct {
	*stress
	runs    map[string]runner.Run
	witness map[string]*witnessed
	over    moment // when no run was queued or in progress any more

	forgotten bool // there were runs that are not recorded
}

// judgeRound waits until all runs have ended, and compares answers and records with the witness file.
func (s *stress) judgeRound() {
	v, from := &verdict{stress: s}, time.Now()
	if v.runs = s.awaitQuiet(); v.runs == nil {
		return
	}
	v.over = sinceBoot()
	quiet := time.Since(from)
	if pids := findMarked(s.mark()); len(pids) > 0 {
		s.noteFault("untrue", "all runs ended, and processes %v of commands are there", pids)
	}
	s.verifyAuditLog()
	s.terminateServer(nil)
	v.witness = s.readWitness()
	for id, w := range v.witness {
		if _, ok := v.runs[id]; !ok {
			v.forgotten = true
			s.noteFault("lost", "run %s began and is not recorded", id)
		}
		if w.overlap {
			s.noteFault("overlap", "run %s began while another of its flight held the lock", id)
		}
	}
	for id, r := range v.runs {
		if err := v.compareRecord(r); err != nil {
			s.noteFault("untrue", "%+v: %v (%+v)", r, err, v.witness[id])
		}
	}
	v.checkRunOnce()
	v.checkNothingLost()
	v.checkAllowedBefore()
	if !v.forgotten { // otherwise the histories have gaps
		v.checkOrder()
	}
	began := 0
	for _, w := range v.witness {
		began += len(w.begun)
	}
	s.t.Logf("quiet after %v, judged in %v, recorded %d, begun %d, deliveries %d, requests %d",
		quiet.Round(time.Second), (time.Since(from) - quiet).Round(time.Second), len(v.runs), began, len(s.deliveries), len(s.events))
}

// awaitQuiet returns all recorded runs when none is queued or in progress, or nil if that does not happen.
func (s *stress) awaitQuiet() map[string]runner.Run {
	st, err := store.OpenRead(s.t.Context(), filepath.Join(s.dir, "disk", "state"))
	mustSucceed(s.t, err)
	defer func() { _ = st.Close() }()
	var active []runner.Run
	from, slow := sinceBoot(), false
	for end := from.plus(2 * patience); ; <-time.After(50 * time.Millisecond) {
		active, _, err = st.List(s.t.Context(), runner.Filter{States: []runner.State{runner.Queued, runner.Running}})
		if err == nil && len(active) == 0 {
			break
		}
		if sinceBoot() > from.plus(patience/2) && !slow {
			slow = true
			s.t.Logf("slow: %+v, %v; the log so far is stored: %v", active, err, os.WriteFile(s.keptPath("slow"), s.read("log"), 0o600))
		}
		if sinceBoot() > end {
			s.noteFault("stuck", "runs do not end: %+v, %v", active, err)
			return nil
		}
	}
	all := map[string]runner.Run{}
	for f := (runner.Filter{Limit: 1000}); ; {
		runs, next, err := st.List(s.t.Context(), f)
		mustSucceed(s.t, err)
		for _, r := range runs {
			all[r.ID] = r
		}
		if f.Before = next; next == "" {
			return all
		}
	}
}

// readWitness reads the witness file.
func (s *stress) readWitness() map[string]*witnessed {
	all := map[string]*witnessed{}
	for line := range strings.Lines(string(s.read("witness"))) {
		word := strings.Fields(line)
		if len(word) < 3 {
			s.t.Fatalf("unknown line in the witness file: %q", line)
		}
		w := all[word[1]]
		if w == nil {
			w = &witnessed{}
			all[word[1]] = w
		}
		at := uptime(word[2])
		switch word[0] {
		case "begin":
			w.begun = append(w.begun, at)
			w.n, _ = strconv.Atoi(word[3])
			if w.segment = word[4]; len(word) > 5 { // otherwise the power failed at that moment
				w.size, _ = strconv.ParseInt(word[5], 10, 64)
			}
		case "overlap":
			w.overlap = true
		case "term":
			w.term = at
		case "end":
			w.ended = at
			w.code, _ = strconv.Atoi(word[3])
		}
	}
	return all
}

// uptime parses a time of /proc/uptime, in hundredths of a second.
func uptime(text string) moment {
	seconds, hundredths, _ := strings.Cut(text, ".")
	s, _ := strconv.ParseInt(seconds, 10, 64)
	h, _ := strconv.ParseInt(hundredths, 10, 64)
	return moment(s*int64(time.Second) + h*int64(time.Second)/100)
}

const tick = 10 * time.Millisecond // of /proc/uptime

// shotSince reports whether one of these signals was sent since a moment.
func (v *verdict) shotSince(from moment, signals ...syscall.Signal) bool {
	return slices.ContainsFunc(v.shots, func(s shot) bool { return s.at >= from && slices.Contains(signals, s.sig) })
}

// earliestAdmission returns the earliest moment at which a run can have been admitted.
func (v *verdict) earliestAdmission(r runner.Run) (from moment) {
	from = v.over
	for _, e := range v.events {
		asked := e.Op == "deliver" && r.RerunOf == "" && fmt.Sprint(e.N) == r.Params["n"] || e.Op == "rerun" && e.Of == r.RerunOf
		if asked || e.Answer.ID == r.ID {
			from = min(from, e.From)
		}
	}
	if before, ok := v.runs[r.RerunOf]; ok && r.Attempt > 0 {
		from = min(from, v.earliestAdmission(before))
	}
	return from
}

// compareRecord returns what is wrong with the record of a run, or nil.
func (v *verdict) compareRecord(r runner.Run) error {
	w := v.witness[r.ID]
	if w != nil && fmt.Sprint(w.n) != r.Params["n"] {
		return fmt.Errorf("its command received %d", w.n)
	}
	from := v.earliestAdmission(r)
	switch r.State {
	case runner.Succeeded, runner.Failed:
		return v.compareEnd(r, w)
	case runner.Cancelled:
		if !v.mayBeCancelled(r, from) {
			return errors.New("it was not cancelled")
		}
	case runner.Interrupted:
		if !v.shotSince(from, syscall.SIGKILL, syscall.SIGPWR) {
			return errors.New("no supervisor was killed since it was accepted")
		}
	case runner.TimedOut:
		return v.compareTimeout(r, w, from)
	case runner.Queued, runner.Running:
		return errors.New("it is over")
	}
	return nil
}

func (v *verdict) compareTimeout(r runner.Run, w *witnessed, from moment) error {
	const least = 2 * time.Second // the timeout is three: a command may be slow to begin
	switch {
	case r.Hook != "timed" || w == nil:
		return errors.New("it had all the time")
	case w.term > 0 && w.term < w.begun[0].plus(least):
		return errors.New("its time was not over")
	case w.ended > 0 && !v.shotSince(from, syscall.SIGKILL, syscall.SIGPWR): // otherwise no process saw the end
		return errors.New("its command had ended")
	case w.term == 0 && !v.shotSince(from, syscall.SIGKILL, syscall.SIGPWR):
		return errors.New("its command was not asked to end")
	}
	return nil
}

func (v *verdict) compareEnd(r runner.Run, w *witnessed) error {
	switch {
	case r.State == runner.Failed && r.Error != "" && w == nil:
		return nil // not started; checkNothingLost checks whether that is allowed
	case w == nil || r.ExitCode == nil || (*r.ExitCode == 0) != (r.State == runner.Succeeded):
		return errors.New("its command did not end so")
	case *r.ExitCode == 143 && w.term > 0: // it got SIGTERM, which is not in the record
		return errors.New("its command was asked to end")
	case w.ended == 0 || w.code != *r.ExitCode:
		return errors.New("its command did not end so")
	case r.Output.Bytes != int64(len(stressOutput(r.ID))):
		return errors.New("its command wrote more, or less")
	}
	for _, e := range v.events {
		if e.Op == "cancel" && e.Of == r.ID && e.Code == http.StatusOK && !e.Answer.State.Ended() && e.To < w.begun[0] {
			return errors.New("it was cancelled before its command began")
		}
	}
	return nil
}

// mayBeCancelled reports whether a request may have cancelled a run.
func (v *verdict) mayBeCancelled(r runner.Run, from moment) bool {
	asked := slices.ContainsFunc(v.events, func(e event) bool { return e.Op == "cancel" && e.Of == r.ID })
	return asked || r.Hook == "replace" || v.shotSince(from, syscall.SIGTERM)
}

// began reports whether the command of a run began.
func (v *verdict) began(id string) bool { return v.witness[id] != nil && len(v.witness[id].begun) > 0 }

// checkRunOnce looks for commands that ran twice.
func (v *verdict) checkRunOnce() {
	for id, w := range v.witness {
		if len(w.begun) > 1 {
			v.noteFault("twice", "run %s began %d times: %+v", id, len(w.begun), v.runs[id])
		}
	}
	byDelivery, again, asked := map[string][]string{}, map[string]int{}, map[string]int{}
	for id, r := range v.runs {
		switch {
		case r.RerunOf == "" && v.began(id):
			byDelivery[r.Params["n"]] = append(byDelivery[r.Params["n"]], id)
		case r.Attempt > 0:
			again[r.RerunOf]++
		case r.RerunOf != "":
			asked[r.RerunOf]++
		}
	}
	for n, ids := range byDelivery {
		if len(ids) > 1 {
			v.noteFault("twice", "delivery %s led to runs %v", n, ids)
		}
	}
	for _, e := range v.events {
		if e.Op == "rerun" && (e.Code == 0 || e.Code >= 500 || e.accepted()) {
			asked[e.Of]--
		}
	}
	for id, n := range asked {
		if n > 0 {
			v.noteFault("twice", "run %s was repeated %d times more than asked for", id, n)
		}
	}
	const most = 3 // repetitions
	for id, r := range v.runs {
		want := 0
		if r.State == runner.Interrupted && r.Hook == "queue" && r.Attempt < most {
			want = 1
		}
		if again[id] > want {
			v.noteFault("twice", "run %+v was repeated %d times by the server", r, again[id])
		}
		if again[id] < want {
			v.noteFault("lost", "run %+v was not repeated by the server", r)
		}
	}
}

// checkNothingLost looks for accepted deliveries without a run that began or ended for a reason.
func (v *verdict) checkNothingLost() {
	told := map[string]bool{}
	for _, e := range v.events {
		n := len(v.wrong["lost"])
		if e.Op != "deliver" && e.Op != "rerun" || e.Code != http.StatusOK && e.Code != http.StatusAccepted {
			continue
		}
		r, ok := v.runs[e.Answer.ID]
		switch {
		case told[e.Answer.ID]:
			continue
		case !ok:
			v.forgotten = true
			v.noteFault("lost", "run %s was accepted and is not recorded: %+v", e.Answer.ID, e)
		case v.began(r.ID):
		case r.State == runner.Cancelled, r.State == runner.Interrupted: // compareRecord checks the reason
		case e.Answer.Replayed && e.Answer.State.Ended(): // the answer says so
		default:
			v.noteFault("lost", "run %+v was accepted and did not begin", r)
		}
		told[e.Answer.ID] = len(v.wrong["lost"]) > n
	}
}

// verifyAuditLog verifies the audit log, while the server writes it.
func (s *stress) verifyAuditLog() {
	state := filepath.Join(s.dir, "disk", "state")
	keys, err := audit.Keys(state)
	mustSucceed(s.t, err)
	known, err := audit.Verifiers(keys)
	mustSucceed(s.t, err)
	v := audit.Verifier{Known: known}
	if _, err := v.State(state); err != nil {
		s.noteFault("unaudited", "the audit log: %v", err)
	}
}

// checkAllowedBefore looks for runs that began before the audit log allowed them.
func (v *verdict) checkAllowedBefore() {
	type place struct {
		segment string
		end     int64
	}
	allowed := map[string]place{}
	names, err := filepath.Glob(filepath.Join(v.dir, "disk", "state", "audit", "*.jsonl"))
	mustSucceed(v.t, err)
	for _, name := range names {
		text, err := os.ReadFile(name)
		mustSucceed(v.t, err)
		at := int64(0)
		for line := range bytes.Lines(text) {
			at += int64(len(line))
			var l audit.Line
			if json.Unmarshal(line, &l) != nil || l.Decision != audit.Allowed || l.Action != "start" {
				continue
			}
			if _, again := allowed[l.Run]; !again {
				allowed[l.Run] = place{filepath.Base(name), at}
			}
		}
	}
	for id, w := range v.witness {
		p, ok := allowed[id]
		if len(w.begun) == 0 || w.size == 0 && v.shotSince(w.begun[0].plus(-tick), syscall.SIGPWR) {
			continue
		}
		before := ok && (p.segment < w.segment || p.segment == w.segment && p.end <= w.size)
		if !before {
			v.noteFault("unaudited", "run %s began when %s had %d bytes, and was allowed at %+v", id, w.segment, w.size, p)
		}
	}
}

// replacedBy is the beginning of the reason of a queued run that another one replaced.
const replacedBy = "replaced by run "

// checkOrder checks the history of each flight against the model.
func (v *verdict) checkOrder() {
	flights := map[string]*history{}
	hooks := map[string]stressHook{}
	for _, h := range stressHooks() {
		for i := range flightsOfHook {
			name := fmt.Sprintf("%s/%d", h.name, i)
			flights[name], hooks[name] = &history{}, h
		}
	}
	admissions, replaced := v.listAdmissions(), map[string][]string{}
	for id, r := range v.runs {
		if by, found := strings.CutPrefix(r.Error, replacedBy); found {
			replaced[by] = append(replaced[by], id)
		}
	}
	for id, r := range v.runs {
		h := flights[r.Flight]
		if h == nil {
			v.noteFault("untrue", "no delivery asked for a run of the flight %s", r.Flight)
			continue
		}
		first := v.over
		for _, a := range admissions[id] {
			a.op.Policy, a.op.Drops = hooks[r.Flight].policy, replaced[id]
			h.add(a.from, a.to, a.op)
			first = min(first, a.from)
		}
		ended := v.addSeenStates(h, id)
		switch w := v.witness[id]; {
		case w == nil || len(w.begun) == 0:
			if !strings.HasPrefix(r.Error, replacedBy) {
				h.add(first, ended, flightOp{What: opDrop, Run: id})
			}
		default:
			h.add(w.begun[0], w.begun[0].plus(tick), flightOp{What: opBegin, Run: id})
			h.add(max(w.begun[0], w.ended), ended, flightOp{What: opEnd, Run: id})
		}
	}
	for _, e := range v.events {
		if !strings.HasSuffix(e.Answer.Type, ":busy") || e.Answer.Run.ID == "" {
			continue
		}
		name := v.runs[e.Of].Flight // of a rerun
		if e.Op == "deliver" {
			name = v.deliveries[e.N].name()
		}
		if h := flights[name]; h != nil {
			h.add(e.From, e.To, flightOp{What: opBusy, Run: e.Answer.Run.ID, Policy: hooks[name].policy, Rerun: e.Op == "rerun"})
		}
	}
	for name, h := range flights {
		if err := h.check(name, v.keptPath(strings.ReplaceAll(name, "/", "-")+".html")); err != nil {
			v.noteFault("order", "%v", err)
			v.keepHistory(name, *h)
		}
	}
}

// keepHistory writes a history to a file.
func (v *verdict) keepHistory(flight string, h history) {
	var text strings.Builder
	slices.SortFunc(h, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for _, o := range h {
		_, _ = fmt.Fprintf(&text, "%10.3f %10.3f %+v\n", float64(o.Call)/1e9, float64(o.Return)/1e9, o.Input)
	}
	mustSucceed(v.t, os.WriteFile(v.keptPath(strings.ReplaceAll(flight, "/", "-")+".txt"), []byte(text.String()), 0o600))
}

// addSeenStates adds what answers showed of a run, and returns the latest moment at which it can have ended.
func (v *verdict) addSeenStates(h *history, id string) (ended moment) {
	ended = v.over
	looked := map[runner.State]bool{}
	look := func(e event, a stressAnswer) {
		if a.ID != id || a.State == "" {
			return
		}
		h.add(e.From, e.To, flightOp{What: opSeen, Run: id, State: a.State})
		if a.State.Ended() {
			ended = min(ended, e.To)
		}
	}
	for _, e := range v.events {
		for _, a := range e.Listed {
			if a.ID == id && !(e.Watch && looked[a.State]) { // otherwise the history is too long
				looked[a.State] = true
				look(e, a)
			}
		}
		// The answer shows a just admitted run as it was admitted.
		if e.Code == http.StatusOK && !(e.accepted() && (e.Op == "deliver" || e.Op == "rerun")) {
			look(e, e.Answer)
		}
	}
	return ended
}

// admission is how a run was admitted, or stood for one more delivery.
type admission struct {
	from, to moment
	op       flightOp
}

// listAdmissions returns the admissions of each run, by its id.
func (v *verdict) listAdmissions() map[string][]admission {
	all := map[string][]admission{}
	direct := map[string]bool{} // n and run of requests whose own answer says that they were admitted
	for _, e := range v.events {
		if e.Op != "deliver" && e.Op != "rerun" || !e.accepted() {
			continue
		}
		id := e.Answer.ID
		a := admission{e.From, e.To, flightOp{What: opAdmit, Run: id, How: howStarted, Place: e.Answer.Position}}
		switch {
		case e.Answer.Joined:
			a.op.How = howJoined
		case e.Answer.State == runner.Queued:
			a.op.How = howQueued
		}
		all[id] = append(all[id], a)
		if key := fmt.Sprint(e.N, id); e.Op == "deliver" {
			if direct[key] {
				v.noteFault("twice", "delivery %d was accepted twice as run %s", e.N, id)
			}
			direct[key] = true
		}
	}
	v.addReplayedAdmissions(all, direct)
	for id, r := range v.runs {
		if len(all[id]) > 0 && !onlyJoins(all[id]) {
			continue
		}
		// No answer reports this admission.
		a := admission{v.earliestAdmission(r), v.latestAdmission(id), flightOp{What: opAdmit, Run: id}}
		if r.Attempt > 0 {
			a.op.How, a.op.Again = howAgain, r.RerunOf
			if w := v.witness[r.RerunOf]; w != nil && len(w.begun) > 0 {
				a.from = max(w.begun[0], w.ended)
			}
		}
		all[id] = append(all[id], a)
	}
	return all
}

// latestAdmission returns the latest moment at which a run can have been admitted.
func (v *verdict) latestAdmission(id string) moment {
	at := v.over
	if w := v.witness[id]; w != nil && len(w.begun) > 0 {
		at = w.begun[0].plus(tick)
	}
	for _, e := range v.events {
		named := func(a stressAnswer) bool { return a.ID == id || a.Run.ID == id }
		if named(e.Answer) || slices.ContainsFunc(e.Listed, named) {
			at = min(at, e.To)
		}
	}
	return at
}

func onlyJoins(all []admission) bool {
	return !slices.ContainsFunc(all, func(a admission) bool { return a.op.How != howJoined })
}

// addReplayedAdmissions adds the deliveries whose admission is known only from the answer to a repetition.
func (v *verdict) addReplayedAdmissions(all map[string][]admission, direct map[string]bool) {
	type key struct {
		n   int
		run string
	}
	first, told := map[int]moment{}, map[key]moment{}
	for _, e := range v.events {
		if e.Op != "deliver" {
			continue
		}
		if at, ok := first[e.N]; !ok || e.From < at {
			first[e.N] = e.From
		}
		k := key{e.N, e.Answer.ID}
		if at, ok := told[k]; e.Answer.Replayed && (!ok || e.To < at) {
			told[k] = e.To
		}
	}
	for k, to := range told {
		if v.runs[k.run].Hook != "join" { // with join, it may stand for an earlier run
			to = min(to, v.latestAdmission(k.run))
		}
		if !direct[fmt.Sprint(k.n, k.run)] {
			all[k.run] = append(all[k.run], admission{first[k.n], to, flightOp{What: opAdmit, Run: k.run}})
		}
	}
}
