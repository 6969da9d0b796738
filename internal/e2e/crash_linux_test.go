package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/internal/audit"
	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/store"
)

// The crash test kills the server, the supervisor, or both, or lets the server hand over and kills one of the two
// servers meanwhile, at random moments under load. Afterwards it compares the store with what the commands wrote to
// their witness file. CRASHES is the number of kills; "make crash" kills more often than "make test". SEED repeats the
// choices of an earlier test.

// crashJob is the command of all hooks: job.sh DIR HOOK FLIGHT N HOW. It appends to DIR/witness when it begins and when
// it ends, each in one write. Its whole process tree holds a flock on the flight's file, so that a second run of the
// flight notices the first one and any process that it left behind.
const crashJob = `#!/bin/sh
exec 8>>"$1/witness" 9>>"$1/$2-$3.flight"
echo "begin $SALLYPORT_RUN $4" >&8
flock -n 9 || echo "overlap $SALLYPORT_RUN $4" >&8
case $5 in
plain) sleep 0.05 ;;
long) sleep 0.4 ;;
fork) sleep 0.3 & ;;
setsid) setsid sh -c 'trap "" TERM; setsid sleep 0.5 & sleep 0.1' & sleep 0.05 ;;
stubborn) trap "" TERM; sleep 0.3 ;;
esac
code=$(($4 % 3))
echo "end $SALLYPORT_RUN $code" >&8
exit $code
`

const crashHook = `
  NAME:
    callers: [load]
    command: [DIR/job.sh, DIR, NAME, "{flight}", "{n}", "{how}"]
    params:
      n: {from: body.n, type: int}
      flight: {from: body.flight, type: int}
      how: {from: body.how, enum: [plain, long, fork, setsid, stubborn]}
    flight: "{flight}"
    busy: BUSY
    grace: 200ms
    timeout: 1m
    keep: {count: 1000000}
`

// crash is an installation whose processes are killed.
type crash struct {
	*installation
	rand *rand.Rand

	kills map[string]int
	turns int         // including hand-overs without a kill
	shots []time.Time // kills of supervisors

	mu       sync.Mutex
	answers  map[int]int
	accepted []string // runs whose delivery was answered with 200 or 202
	next     int      // number of the next delivery
}

func newCrash(t *testing.T, program string) *crash {
	t.Helper()
	seed := rand.Uint64()
	if text, ok := os.LookupEnv("SEED"); ok {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		mustSucceed(t, err)
	}
	t.Logf("seed %d", seed)
	hooks := "hooks:\n"
	for name, busy := range map[string]string{"reject": "reject", "queue": "{queue: 4}", "join": "join", "replace": "replace"} {
		hooks += strings.NewReplacer("NAME", name, "BUSY", busy).Replace(crashHook)
		if name == "queue" {
			hooks += "    on_interrupted: rerun\n"
		}
	}
	c := &crash{installation: install(t, program, hooks), answers: map[int]int{}, kills: map[string]int{}, rand: rand.New(rand.NewPCG(seed, 0))}
	c.write("job.sh", crashJob, 0o755)
	c.write("witness", "", 0o600)
	t.Cleanup(c.killServers) // runs before the cleanup that looks for the supervisor
	return c
}

// victims returns what a kill may hit.
func victims() []string { return []string{"server", "supervisor", "both", "old", "next"} }

func (c *crash) countKills() (all int) {
	for _, n := range c.kills {
		all += n
	}
	return all
}

// killRandomly waits for a random time, and kills a random victim.
func (c *crash) killRandomly() {
	c.t.Helper()
	c.turns++
	<-time.After(time.Duration(20+c.rand.IntN(400)) * time.Millisecond)
	victim := "server"
	switch c.rand.IntN(5) {
	case 0:
	case 1:
		c.killSupervisor("supervisor")
		return
	case 2:
		if c.killSupervisor("") {
			victim = "both"
		}
	default:
		c.handOver()
		return
	}
	if len(c.servers()) > 0 {
		c.kills[victim]++
	}
	c.killServers()
	c.start(c.rand.IntN(4) > 0)
}

// killSupervisor kills the supervisor if there is one, and counts it as a kill of the given victim.
func (c *crash) killSupervisor(as string) bool {
	pid := c.supervisor()
	if pid == 0 {
		return false
	}
	c.shots = append(c.shots, time.Now())
	_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
	if as != "" {
		c.kills[as]++
	}
	return true
}

// handOver makes the server start its successor, kills one of the two servers, the supervisor or nothing during that
// time, and returns when a server serves.
func (c *crash) handOver() {
	c.t.Helper()
	pids := c.servers()
	if len(pids) == 0 { // the last server had handed over to a killed one
		c.start(true)
		return
	}
	from, err := c.log.Seek(0, io.SeekEnd)
	if err != nil {
		c.t.Fatal(err)
	}
	old, known := pids[0], pids
	_ = syscall.Kill(old, syscall.SIGUSR2) // a server that does not serve yet ends by it
	<-time.After(time.Duration(c.rand.IntN(300)) * time.Millisecond)
	pids = c.servers()
	switch what := c.rand.IntN(4); {
	case what == 0 && slices.Contains(pids, old):
		c.kills["old"]++
		_ = syscall.Kill(old, syscall.SIGKILL)
	case what == 1 && len(pids) > 0 && pids[len(pids)-1] != old:
		c.kills["next"]++
		_ = syscall.Kill(pids[len(pids)-1], syscall.SIGKILL)
	case what == 2:
		c.killSupervisor("supervisor")
	}
	// The remaining server serves, or gives up.
	c.waitUntil("one server", func() bool { pids = c.servers(); return len(pids) < 2 })
	switch {
	case len(pids) == 0:
		c.killServers() // they may still hold the folder
		c.start(c.rand.IntN(4) > 0)
	case slices.Contains(known, pids[0]):
		// The server may be new. Or it is the successor of the previous turn, which logged earlier that it serves,
		// while the predecessor served until then.
		c.isServing(0)
	default:
		c.waitUntil("the next server to serve", func() bool { return c.isServing(from) || len(c.servers()) == 0 })
	}
}

// sendDeliveries sends deliveries until ctx is done. It repeats a delivery until an answer comes, which must not start
// a second run.
func (c *crash) sendDeliveries(ctx context.Context) {
	hows := []string{"plain", "plain", "long", "fork", "setsid", "stubborn"}
	hooks := []string{"reject", "queue", "join", "replace"}
	for ctx.Err() == nil {
		c.mu.Lock()
		n := c.next
		c.next++
		c.mu.Unlock()
		hook := hooks[rand.IntN(len(hooks))]
		body := fmt.Sprintf(`{"n":%d,"flight":%d,"how":%q}`, n, rand.IntN(2), hows[rand.IntN(len(hows))])
		for ctx.Err() == nil {
			a := c.sendRequest(ctx, http.MethodPost, "/hooks/"+hook, body)
			c.mu.Lock()
			c.answers[a.code]++
			if a.code == http.StatusOK || a.code == http.StatusAccepted {
				c.accepted = append(c.accepted, a.run().ID)
			}
			c.mu.Unlock()
			<-time.After(10 * time.Millisecond)
			if a.code > 0 {
				break
			}
		}
	}
}

// runUnderLoad runs f while senders deliver.
func (c *crash) runUnderLoad(senders int, f func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for range senders {
		load.Go(func() { c.sendDeliveries(ctx) })
	}
	defer load.Wait()
	defer cancel()
	f()
}

// readRecords returns all recorded runs once none is in progress.
func (c *crash) readRecords() map[string]runner.Run {
	c.t.Helper()
	state := filepath.Join(c.dir, "state")
	st, err := store.OpenRead(c.t.Context(), state)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	c.waitUntil("all runs to end", func() bool {
		runs, _, err := st.List(c.t.Context(), runner.Filter{States: []runner.State{runner.Queued, runner.Running}})
		return err == nil && len(runs) == 0
	})
	all := map[string]runner.Run{}
	for f := (runner.Filter{Limit: 1000}); ; {
		runs, next, err := st.List(c.t.Context(), f)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, r := range runs {
			all[r.ID] = r
		}
		if f.Before = next; next == "" {
			return all
		}
	}
}

// testimony is what the commands wrote to the witness file.
type testimony struct {
	begun    map[string][]string // by run: the number that it had
	ended    map[string]string   // by run: its exit code
	overlaps []string
}

func (c *crash) readWitness() testimony {
	w := testimony{begun: map[string][]string{}, ended: map[string]string{}}
	for line := range strings.Lines(string(c.read("witness"))) {
		if !strings.HasSuffix(line, "\n") {
			break // a line that is partly written, across a page
		}
		word := strings.Fields(line)
		if len(word) != 3 {
			c.t.Fatalf("unknown line in the witness file: %q", line)
		}
		switch run := word[1]; word[0] {
		case "begin":
			w.begun[run] = append(w.begun[run], word[2])
		case "end":
			w.ended[run] = word[2]
		case "overlap":
			w.overlaps = append(w.overlaps, run)
		}
	}
	return w
}

// wasShot reports whether a supervisor was killed while a run was in progress.
func (c *crash) wasShot(r runner.Run) bool {
	return slices.ContainsFunc(c.shots, func(at time.Time) bool { return at.After(r.Created) && at.Before(r.Ended) })
}

// compareRecord returns what is wrong with the record of a run, or nil.
func (c *crash) compareRecord(r runner.Run, w testimony) error {
	begun, ended := w.begun[r.ID], w.ended[r.ID]
	switch {
	case len(begun) > 1:
		return errors.New("it was run twice")
	case len(begun) == 1 && begun[0] != r.Params["n"]:
		return fmt.Errorf("it was run with %s", begun[0])
	}
	switch r.State {
	case runner.Succeeded, runner.Failed:
		if r.ExitCode == nil || len(begun) == 0 || ended != strconv.Itoa(*r.ExitCode) || (*r.ExitCode == 0) != (r.State == runner.Succeeded) {
			return fmt.Errorf("begun %d times, ended with %q", len(begun), ended)
		}
	case runner.Cancelled:
		if r.Hook != "replace" {
			return errors.New("it was not cancelled")
		}
	case runner.Interrupted:
		if !c.wasShot(r) {
			return errors.New("no supervisor was killed meanwhile")
		}
	case runner.Queued, runner.Running, runner.TimedOut:
		return errors.New("it is over, and not by a timeout")
	}
	return nil
}

// checkRecords compares the store with the witness file.
func (c *crash) checkRecords() {
	c.t.Helper()
	runs, w := c.readRecords(), c.readWitness()
	states, numbers, again := map[runner.State]int{}, map[string]string{}, map[string]int{}
	notStarted, neverBegun := 0, 0
	for id, r := range runs {
		states[r.State]++
		again[r.RerunOf]++
		if r.State == runner.Failed && r.Error != "" && len(w.begun[id]) == 0 && !slices.Contains(c.accepted, id) {
			notStarted++ // and the answer to its delivery said so, or was lost and the delivery sent again
			continue
		}
		if other, twice := numbers[r.Params["n"]]; twice && r.RerunOf == "" {
			c.t.Errorf("delivery %s led to runs %s and %s", r.Params["n"], other, id)
		}
		if r.RerunOf == "" {
			numbers[r.Params["n"]] = id
		}
		if r.State == runner.Interrupted && len(w.begun[id]) == 0 {
			neverBegun++ // killed between the order and the command's first line
		}
		if err := c.compareRecord(r, w); err != nil {
			c.t.Errorf("run %+v: %v", r, err)
		}
	}
	for id, r := range runs {
		want := 0
		if r.State == runner.Interrupted && r.Hook == "queue" && r.Attempt < 3 {
			want = 1
		}
		if again[id] != want {
			c.t.Errorf("run %+v was repeated %d times, want %d", r, again[id], want)
		}
	}
	for id := range w.begun {
		if _, ok := runs[id]; !ok {
			c.t.Errorf("run %s began and is not recorded", id)
		}
	}
	c.checkAudit(w)
	lost := 0
	for _, id := range c.accepted {
		if _, ok := runs[id]; !ok {
			lost++
			c.t.Errorf("run %s was accepted and is lost", id)
		}
	}
	if len(w.overlaps) > 0 {
		c.t.Errorf("these runs overlap another of their flight: %v", w.overlaps)
	}
	c.t.Logf("%d turns, kills %v, answers %v (0: none), accepted %d, lost %d, recorded %d %v, begun %d, repeated %d, not started %d, interrupted before they began %d, overlaps %d",
		c.turns, c.kills, c.answers, len(c.accepted), lost, len(runs), states, len(w.begun), len(runs)-again[""], notStarted, neverBegun, len(w.overlaps))
	if len(w.begun) == 0 || states[runner.Interrupted] == 0 || states[runner.Succeeded] == 0 || states[runner.Cancelled] == 0 {
		c.t.Error("too few kills, runs or answers for a meaningful result")
	}
}

// checkAudit verifies the audit log while the server writes it, and that each run that began was allowed before.
func (c *crash) checkAudit(w testimony) {
	c.t.Helper()
	state := filepath.Join(c.dir, "state")
	keys, err := audit.Keys(state)
	if err != nil {
		c.t.Fatal(err)
	}
	known, err := audit.Verifiers(keys)
	if err != nil {
		c.t.Fatal(err)
	}
	v := audit.Verifier{Known: known}
	report, err := v.State(state)
	if err != nil {
		c.t.Errorf("the audit: %v", err)
	}
	allowed, cut, started := map[string]bool{}, 0, 0
	names, err := filepath.Glob(filepath.Join(state, "audit", "*.jsonl"))
	if err != nil || len(names) == 0 {
		c.t.Fatal(names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			c.t.Fatal(err)
		}
		for text := range bytes.Lines(text) {
			var l audit.Line
			if json.Unmarshal(text, &l) != nil {
				continue // a line that is partly written
			}
			allowed[l.Run] = allowed[l.Run] || l.Decision == audit.Allowed
			switch l.Event {
			case audit.Started:
				started++
			case audit.Cut:
				cut++
			default:
			}
		}
	}
	for id := range w.begun {
		if !allowed[id] {
			c.t.Errorf("run %s began before it was allowed", id)
		}
	}
	c.t.Logf("audit %+v, of %d servers; %d lines were cut", report, started, cut)
}

func crashes(t *testing.T) int {
	t.Helper()
	text, ok := os.LookupEnv("CRASHES")
	if !ok {
		return 12
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCrash kills processes at random. No accepted delivery is lost, no command runs twice, no two runs of a flight
// overlap, and the store is right about each run.
func TestCrash(t *testing.T) {
	t.Parallel()
	n := crashes(t)
	c := newCrash(t, "sallyport")
	c.start(true)
	c.runUnderLoad(4, func() {
		for c.countKills() < n {
			c.killRandomly()
		}
	})
	c.killServers()
	c.start(true)
	c.checkRecords()
	const enough = 100 // so that each kind happens
	for _, victim := range victims() {
		if n >= enough && c.kills[victim] == 0 {
			t.Errorf("%s was never killed", victim)
		}
	}
	c.endServer()
}

// TestCrash_NoLocks runs the crash test against a supervisor that ignores locks: the test finds overlaps.
func TestCrash_NoLocks(t *testing.T) {
	t.Parallel()
	c := newCrash(t, "unlocked")
	c.start(true)
	c.runUnderLoad(4, func() {
		for range 100 {
			c.killRandomly()
			if len(c.readWitness().overlaps) > 0 {
				return
			}
		}
		t.Error("nothing overlaps")
	})
	t.Logf("kills %v, overlaps %d", c.kills, len(c.readWitness().overlaps))
}

const minuteHooks = `
hooks:
  minute: {callers: [load], command: [DIR/minute.sh], timeout: 5m}
`

// minute writes a numbered line each second.
const minute = `#!/bin/sh
n=0
while [ $n -lt 60 ]; do
  n=$((n + 1))
  echo "line $n"
  sleep 1
done
exit 0
`

// TestRun_OutlivesServerTwice kills and restarts the server twice during a run of a minute. The run ends with its exit
// code and its whole output.
func TestRun_OutlivesServerTwice(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	in := install(t, "sallyport", minuteHooks)
	in.write("minute.sh", minute, 0o755)
	in.start(true)
	run := in.deliver("minute", "{}").run()
	wrote := func(n int) {
		t.Helper()
		in.waitUntil(fmt.Sprint("line ", n), func() bool {
			out, err := os.ReadFile(filepath.Join(in.dir, "state", "runs", run.ID, "output"))
			return err == nil && bytes.Contains(out, fmt.Appendf(nil, "line %d\n", n))
		})
	}
	for n := 10; n <= 50; n += 10 { // waitUntil waits longer than one step takes
		wrote(n)
		if n != 10 && n != 30 {
			continue
		}
		in.killServer()
		in.start(true)
		if r := in.sendRequest(t.Context(), http.MethodGet, "/runs/"+run.ID, "").run(); r.State != runner.Running {
			t.Fatalf("after line %d the run is %+v", n, r)
		}
	}
	run = in.sendRequest(t.Context(), http.MethodGet, "/runs/"+run.ID, "", "Prefer: wait=50").run()
	if run.State != runner.Succeeded || run.ExitCode == nil || *run.ExitCode != 0 {
		t.Errorf("the run is %+v", run)
	}
	want := ""
	for n := range 60 {
		want += fmt.Sprintf("line %d\n", n+1)
	}
	if out := in.sendRequest(t.Context(), http.MethodGet, "/runs/"+run.ID+"/output", ""); string(out.body) != want {
		t.Errorf("its output is %q", out.body)
	}
	in.endServer()
}
