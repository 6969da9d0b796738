package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/testenv"
)

// The stress test is a model test of the real program. In each round, senders take random operations from a table
// (senderOps) while faults from another table (faultOps) hit the program and its machine. Then the test compares all
// answers and records with what the commands wrote to the witness file, and the history of each flight with a model
// (flightModel).
//
// The seed of a round decides it, and names its subtest. SEED=N repeats one round: the same operations in the same
// order for each sender and for the faults. How they interleave depends on the machine. STRESS=1h is the time during
// which rounds with new seeds begin. Without it there are two rounds, with fixed seeds. See docs/reliability.md.

// stressJob is the command of all hooks: job job.sh DIR LOCK N HOW, where job is a copy of the shell. A removed program
// is either present or not, while a script might disappear between the start of its shell and the moment when the shell
// opens it. First it reads the length of the audit log. It appends to DIR/witness when it begins and when it ends, each
// in one write, with the time since boot. Its whole process tree holds a lock, so that a second run of the flight
// notices the first one.
const stressJob = `
for audit in "$1"/disk/state/audit/*.jsonl; do :; done
size=$(stat -c %s "$audit")
now() { read -r now _ </proc/uptime; }
now
exec 8>>"$1/witness" 9>>"$1/$2.flight"
echo "begin $SALLYPORT_RUN $now $3 ${audit##*/} $size" >&8
flock -n 9 || echo "overlap $SALLYPORT_RUN $now" >&8
echo "begin $SALLYPORT_RUN"
case $4 in
plain) sleep 0.05 ;;
long) sleep 0.4 ;;
fork) sleep 0.3 & ;;
setsid) setsid sh -c 'trap "" TERM; setsid sleep 0.5 & sleep 0.1' & sleep 0.05 ;;
stubborn) trap "" TERM; sleep 0.3 ;;
hang) trap 'now; echo "term $SALLYPORT_RUN $now" >&8; exit 143' TERM; sleep 60 & wait ;;
esac
code=$(($3 % 3))
echo "end $SALLYPORT_RUN"
now
echo "end $SALLYPORT_RUN $now $code" >&8
exit $code
`

// stressOutput returns the whole output of a run whose command ends by itself.
func stressOutput(run string) string { return fmt.Sprintf("begin %s\nend %s\n", run, run) }

const stressToken = "a-token-of-thirty-two-bytes-or-so"

const stressInstalled = `
listen: "localhost:0"
state: DIR/disk/state
tls: {cert: DIR/certs/server.pem, key: DIR/certs/server.key}
limits:
  address: {rate: 1000000/s, burst: 1000000}
  failures: {rate: 1000000/s, burst: 1000000}
  caller: {rate: 1000000/s, burst: 1000000}
  connections_per_address: 1024
drain: 1s
callers:
  load: {hmac: {scheme: github, keys: [{file: DIR/secret}]}, replay: check}
  ops: {token: {keys: [{file: DIR/token}]}}
hooks:
`

const stressHookText = `
  NAME:
    callers: [load, {caller: ops, may: [start, read, cancel]}]
    command: [DIR/job, DIR/job.sh, DIR, "NAME-{flight}", "{n}", "{how}"]
    params:
      n: {from: body.n, type: int}
      flight: {from: body.flight, type: int}
      how: {from: body.how, enum: [plain, long, fork, setsid, stubborn, hang]}
    flight: "{flight}"
    env: {STRESS: DIR}
    busy: BUSY
    grace: GRACE
    keep: {count: 1000000}
`

const (
	stressSenders = 4
	stressRound   = 25 * time.Second // of operations; then the test waits for the end of all runs
)

// plan decides everything that a round does. Each step has its own random numbers, so that one operation does not
// change the next.
type plan struct{ seed uint64 }

// faults returns the faults of the round: not all of them, so that some often come together.
func (p plan) faults() (some []faultOp) {
	r := rand.New(rand.NewPCG(p.seed, 0))
	for _, f := range faultOps() {
		if r.IntN(5) < 3 && f.weight > 0 {
			some = append(some, f)
		}
	}
	if len(some) == 0 {
		return faultOps()
	}
	return some
}

// step returns the random numbers of a step of an actor.
func (p plan) step(actor, k int) *rand.Rand {
	return rand.New(rand.NewPCG(p.seed, uint64(actor+1)<<32|uint64(k)))
}

// choose picks an entry of a table at random, by weight.
func choose[T any](r *rand.Rand, table []T, weight func(T) int) T {
	all := 0
	for _, entry := range table {
		all += weight(entry)
	}
	at := r.IntN(all)
	for _, entry := range table {
		if at -= weight(entry); at < 0 {
			return entry
		}
	}
	return table[len(table)-1]
}

func (p plan) senderOp(actor, k int) (senderOp, *rand.Rand) {
	r := p.step(actor, k)
	return choose(r, senderOps(), func(o senderOp) int { return o.weight }), r
}

func (p plan) faultOp(k int) (faultOp, *rand.Rand) {
	r := p.step(-1, k)
	return choose(r, p.faults(), func(o faultOp) int { return o.weight }), r
}

// TestStressPlan: a seed decides the sequence of operations, and another seed gives another sequence. The fixed seeds
// lead to every fault.
func TestStressPlan(t *testing.T) {
	t.Parallel()
	sequence := func(seed uint64) (text string) {
		p := plan{seed}
		for k := range 100 {
			f, r := p.faultOp(k)
			text += fmt.Sprintln(f.name, r.Uint64())
			for actor := range stressSenders {
				o, r := p.senderOp(actor, k)
				text += fmt.Sprintln(o.name, r.Uint64())
			}
		}
		return text
	}
	some := map[string]bool{}
	for _, seed := range seedsOfAllFaults() {
		for _, f := range (plan{seed}).faults() {
			some[f.name] = true
		}
	}
	if len(some) != len(faultOps()) {
		t.Errorf("the fixed seeds lead to %d of %d faults", len(some), len(faultOps()))
	}
	first, again, other := sequence(7), sequence(7), sequence(8)
	if first != again || first == other {
		t.Error("a seed does not decide the sequence of operations")
	}
}

// shot is a signal to the supervisor, SIGTERM to the server, or SIGPWR for all processes.
type shot struct {
	at  moment // the latest at which it can have had an effect on a run that was accepted then
	sig syscall.Signal
}

// stress is a round: an installation, its faults, and what is known of its runs.
type stress struct {
	*installation
	plan  plan
	power *power // nil: power cannot be cut here
	grace string // of the hooks
	other string // another version of the program
	began time.Time

	shots    []shot
	faults   map[string]int // by name
	restarts int            // of servers that ended before they served
	broken   atomic.Bool    // the round cannot go on

	mu         sync.Mutex
	deliveries map[int]stressDelivery
	events     []event
	answers    map[string]int
	known      []string // runs that an answer named
	wrong      map[string][]string
	steps      []string // the steps of the round, for its log
}

func newStress(t *testing.T, programs []string, seed uint64, namespace bool) *stress {
	t.Helper()
	s := &stress{
		installation: install(t, programs[0], "hooks: {}\n"), plan: plan{seed}, grace: "1s", began: time.Now(), faults: map[string]int{},
		deliveries: map[int]stressDelivery{}, answers: map[string]int{}, wrong: map[string][]string{},
	}
	s.program = filepath.Join(s.dir, "sallyport")
	mustSucceed(t, os.Link(programs[0], s.program))
	s.other = filepath.Join(s.dir, "other")
	mustSucceed(t, os.Link(programs[1], s.other))
	stepClock(t, s.program, 0)
	// Valid for longer than any step of the clock.
	mustSucceed(t, os.RemoveAll(filepath.Join(s.dir, "certs")))
	_, err := certs.Dev(filepath.Join(s.dir, "certs"), time.Now().Add(-45*24*time.Hour), false)
	mustSucceed(t, err)
	s.http.Transport.(*http.Transport).TLSClientConfig.RootCAs = roots(t, filepath.Join(s.dir, "certs/ca.pem"))
	s.write("token", stressToken, 0o600)
	shell, err := os.ReadFile("/bin/sh")
	mustSucceed(t, err)
	s.write("job", string(shell), 0o755)
	s.write("job.sh", stressJob, 0o755)
	s.write("witness", "", 0o600)
	s.write("boot", "a start of the machine", 0o644)
	s.write("sallyport.yaml", s.configuration(""), 0o600)
	disk := filepath.Join(s.dir, "disk")
	if namespace {
		kinds := powerKinds()
		s.power = newPower(t, kinds[s.plan.step(-2, 0).IntN(len(kinds))], disk, filepath.Join(s.dir, "boot"))
	} else {
		mustSucceed(t, os.Mkdir(disk, 0o700))
	}
	t.Cleanup(s.killAll)
	return s
}

// listProcesses returns the processes of the installation.
func (s *stress) listProcesses() []int {
	pids := append(s.servers(), findMarked(s.mark())...)
	if pid := s.supervisor(); pid != 0 {
		pids = append(pids, pid)
	}
	return pids
}

// killAll kills all processes and returns when none is left.
func (s *stress) killAll() {
	s.waitUntil("all processes to be dead", func() bool {
		pids := s.listProcesses()
		signalAll(pids, syscall.SIGKILL)
		return len(pids) == 0
	})
}

// mark is an entry in the environment of each process of a command.
func (s *stress) mark() string { return "STRESS=" + s.dir }

// noteFault records that something is wrong.
func (s *stress) noteFault(kind, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong[kind] = append(s.wrong[kind], fmt.Sprintf(format, args...))
}

// noteStep records a step.
func (s *stress) noteStep(who int, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, fmt.Sprintf("%9.3f %2d %s", float64(sinceBoot())/1e9, who, what))
}

// run takes operations for the time of a round.
func (s *stress) run() {
	s.serve()
	var senders sync.WaitGroup
	over := make(chan struct{})
	senders.Go(func() { s.observe(over) })
	for i := range stressSenders {
		senders.Go(func() {
			from := &stressSender{index: i}
			for k := 0; !s.broken.Load(); k++ {
				select {
				case <-over:
					return
				case <-time.After(10 * time.Millisecond):
				}
				op, r := s.plan.senderOp(i, k)
				op.do(s, from, r)
			}
		})
	}
	defer senders.Wait()
	defer func() {
		close(over)
		if s.t.Failed() { // a step has failed, and there may be no server that answers the senders
			s.broken.Store(true)
		}
	}()
	for k := 0; time.Since(s.began) < stressRound && !s.broken.Load(); k++ {
		op, r := s.plan.faultOp(k)
		pauseRandomly(r, 20*time.Millisecond, 500*time.Millisecond)
		s.noteStep(-1, op.name)
		s.faults[op.name]++
		op.do(s, r)
		s.noteStep(-1, "done")
	}
	s.noteStep(-1, "over")
}

func stressOneRound(t *testing.T, programs []string, seed uint64, namespace bool) {
	t.Helper()
	s := newStress(t, programs, seed, namespace)
	defer s.report()
	s.run()
	if !s.broken.Load() {
		s.judgeRound()
	}
}

// report logs what happened, and stores the evidence if something is wrong.
func (s *stress) report() {
	s.t.Logf("%v: faults %v, answers %v (0: none), restarts %d", time.Since(s.began).Round(time.Second), s.faults, s.answers, s.restarts)
	kinds := []string{"overlap", "twice", "lost", "untrue", "unaudited", "order", "stuck"}
	var counts []string
	for _, kind := range kinds {
		counts = append(counts, fmt.Sprintf("%s %d", kind, len(s.wrong[kind])))
		for i, text := range s.wrong[kind] {
			if i == 10 {
				s.t.Errorf("%s: and %d more", kind, len(s.wrong[kind])-i)
				break
			}
			s.t.Errorf("%s: %s", kind, text)
		}
	}
	s.t.Logf("SEED=%d: %s", s.plan.seed, strings.Join(counts, ", "))
	if !s.t.Failed() {
		return
	}
	var text bytes.Buffer
	for _, step := range s.steps {
		_, _ = fmt.Fprintln(&text, step)
	}
	for _, e := range s.events {
		line, err := json.Marshal(e)
		mustSucceed(s.t, err)
		_, _ = fmt.Fprintf(&text, "%s\n", line)
	}
	name := s.keptPath("steps")
	s.t.Logf("the steps and answers are stored as %s: %v", name, os.WriteFile(name, text.Bytes(), 0o600))
}

// keptPath returns the path where evidence of a failed round is stored.
func (s *stress) keptPath(what string) string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("sallyport-stress-%d.%s", s.plan.seed, what))
}

// TestStress takes random operations against the real program for a while. It cuts the power of a disk, so the test
// starts itself again in a mount namespace.
func TestStress(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	const inside = "SALLYPORT_TEST_STRESS"
	if os.Getenv(inside) != "" {
		mustSucceed(t, syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
		stressRounds(t, true)
		return
	}
	if why := powerMissing(t); why != "" {
		stressRounds(t, false)
		t.Run("power", func(t *testing.T) { testenv.Skip(t, "a loss of power: "+why) })
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStress$", "-test.v", "-test.count=1", "-test.timeout=0")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if testing.Verbose() {
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	}
	if err := cmd.Run(); err != nil {
		t.Errorf("%v\n%s", err, out.Bytes())
	}
}

// powerMissing returns why the test cannot cut the power here, or "".
func powerMissing(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		return "this user may mount no disk"
	}
	if len(powerKinds()) == 0 {
		return "there is neither ext4 nor xfs"
	}
	file := filepath.Join(t.TempDir(), "disk")
	mustSucceed(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	loop, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("there is no loop device: %s", bytes.TrimSpace(loop))
	}
	mustSucceed(t, exec.CommandContext(t.Context(), "losetup", "--detach", string(bytes.TrimSpace(loop))).Run())
	return ""
}

// stressRounds begins rounds until the time is over.
func stressRounds(t *testing.T, namespace bool) {
	t.Helper()
	dir := t.TempDir()
	var programs []string
	for _, version := range []string{"v1", "v2"} {
		programs = append(programs, filepath.Join(dir, version))
		buildWithClock(t, filepath.Join(dir, version), version)
	}
	if text, ok := os.LookupEnv("SEED"); ok {
		seed, err := strconv.ParseUint(text, 10, 64)
		mustSucceed(t, err)
		stressOneRound(t, programs, seed, namespace)
		return
	}
	round := func(seed uint64) {
		t.Run(fmt.Sprintf("SEED=%d", seed), func(t *testing.T) { stressOneRound(t, programs, seed, namespace) })
	}
	text, ok := os.LookupEnv("STRESS")
	if !ok {
		for _, seed := range seedsOfAllFaults() {
			round(seed)
		}
		return
	}
	span, err := time.ParseDuration(text)
	mustSucceed(t, err)
	for began := time.Now(); time.Since(began) < span; {
		round(rand.Uint64())
	}
}

// seedsOfAllFaults returns the seeds of the rounds without STRESS. Together they have every fault of the table, and they
// are fixed, so that a change is not judged by operations that another change did not face.
func seedsOfAllFaults() []uint64 { return []uint64{4, 8} }
