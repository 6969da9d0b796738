package e2e_test

import (
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	internals "sallyport/internal/e2e"
	"sallyport/runner"
)

// BenchmarkProgram measures the shipped program over TLS, with its store on the disk of the temporary folder. The ways
// that it compares take turns, because other work on the machine disturbs the figures more than they differ. Rely on
// the ratios, not on the absolute figures.
func BenchmarkProgram(b *testing.B) {
	dir := b.TempDir()
	buildShipped(b, dir)
	p := &programs{sallyport: filepath.Join(dir, "sallyport"), stamp: filepath.Join(dir, "stamp")}
	build := exec.CommandContext(b.Context(), "go", "build", "-buildvcs=false", "-ldflags", "-s -w -E entry", "-o", p.stamp, "./internal/e2e/testdata/stamp")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("building: %v\n%s", err, out)
	}
	b.Run("start", p.benchmarkStart)
	b.Run("busy", p.benchmarkBusy)
	b.Run("short", p.benchmarkShortRuns)
	b.Run("memory", p.benchmarkMemory)
	b.Run("output", p.benchmarkOutput)
	b.Run("past", p.benchmarkHistory)
}

type programs struct{ sallyport, stamp string }

// stampHooks is a hook whose command is the stamp, with one flight for each number, and a hook that stays busy after
// its first delivery.
const stampHooks = `
hooks:
  stamp: {callers: [load], command: [STAMP], params: {n: {from: body.n, type: int}}, env: {N: "{n}"}, flight: "{n}"}
  long:  {callers: [load], command: [/bin/sleep, "600"], params: {n: {from: body.n, type: int}}, env: {N: "{n}"}}
  many:  {callers: [load], command: [/bin/sleep, "600"], params: {n: {from: body.n, type: int}}, env: {N: "{n}"}, flight: "{n}"}
`

// load is an installation that receives deliveries.
type load struct {
	*installation
	last atomic.Int64
}

func (p *programs) install(b *testing.B, hooks string) *load {
	b.Helper()
	l := &load{installation: install(b, p.sallyport, strings.ReplaceAll(hooks, "STAMP", p.stamp))}
	// Separate connections and not streams of one, as different senders have.
	l.http.Transport = &http.Transport{TLSClientConfig: l.http.Transport.(*http.Transport).TLSClientConfig, MaxIdleConnsPerHost: 100}
	l.start(true)
	return l
}

// sendDelivery sends a delivery that differs from all earlier ones.
func (l *load) sendDelivery(hook string, more ...string) reply {
	return l.deliver(hook, fmt.Sprintf(`{"n": %d}`, l.last.Add(1)), more...)
}

// expectCode fails the benchmark if the answer has another status.
func expectCode(b *testing.B, a reply, code int) reply {
	b.Helper()
	if a.code != code {
		b.Errorf("answered %d %s, want %d", a.code, a.body, code)
	}
	return a
}

// times are the durations of the turns of one way.
type times []time.Duration

func (t times) quantile(part float64) time.Duration {
	slices.Sort(t)
	return t[int(float64(len(t)-1)*part)]
}

// report reports median and tail of some times, and both as a ratio to the times that they are compared with.
func (t times) report(b *testing.B, name string, to times, other string) {
	b.Helper()
	for part, p := range map[float64]string{.5: "p50", .99: "p99"} {
		b.ReportMetric(float64(t.quantile(part).Microseconds()), name+"-"+p+"-µs")
		if to != nil {
			b.ReportMetric(float64(t.quantile(part))/float64(to.quantile(part)), name+"/"+other+"-"+p)
		}
	}
}

// benchmarkStart measures the time from sending a delivery on an open connection to the first instruction of its
// command. It compares that with a plain os/exec of the same command, and with the least that a server in Go can do:
// TLS and that os/exec.
func (p *programs) benchmarkStart(b *testing.B) {
	l := p.install(b, stampHooks)
	floor := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(p.runBare(b)) //nolint:contextcheck // the benchmark's, as in the other ways
	}))
	defer floor.Close()
	ways := []struct {
		name  string
		first func() []byte // the output of the stamp
		took  times
	}{
		{name: "bare", first: func() []byte { return p.runBare(b) }},
		{name: "floor", first: func() []byte { return post(b, floor) }},
		{name: "delivery", first: func() []byte { return l.awaitFirst(b) }},
	}
	pause := time.NewTicker(3 * time.Millisecond) // deliveries are apart, too
	defer pause.Stop()
	for b.Loop() {
		for i := range ways {
			<-pause.C
			sent := monotonic()
			ways[i].took = append(ways[i].took, parseInstant(ways[i].first())-sent)
		}
	}
	b.ReportMetric(0, "ns/op")
	ways[0].took.report(b, ways[0].name, nil, "")
	ways[1].took.report(b, ways[1].name, ways[0].took, "bare")
	ways[2].took.report(b, ways[2].name, ways[0].took, "bare")
	b.ReportMetric(float64(ways[2].took.quantile(.5))/float64(ways[1].took.quantile(.5)), "delivery/floor-p50")
}

func monotonic() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // never fails
	return time.Duration(t.Nano())
}

// parseInstant parses the output of a stamp.
func parseInstant(said []byte) time.Duration {
	return time.Duration(binary.NativeEndian.Uint64(said))*time.Second + time.Duration(binary.NativeEndian.Uint64(said[8:]))
}

func (p *programs) runBare(b *testing.B) []byte {
	b.Helper()
	said, err := exec.CommandContext(b.Context(), p.stamp).Output()
	if err != nil {
		b.Error(err)
		return make([]byte, 16)
	}
	return said
}

func post(b *testing.B, to *httptest.Server) []byte {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, to.URL, strings.NewReader(`{"n": 1}`))
	mustSucceed(b, err)
	res, err := to.Client().Do(req)
	mustSucceed(b, err)
	defer func() { mustSucceed(b, res.Body.Close()) }()
	said := make([]byte, 16)
	_, err = res.Body.Read(said)
	if err != nil && said[0] == 0 {
		b.Fatal(err)
	}
	return said
}

// awaitFirst sends a delivery and returns the output of its command.
func (l *load) awaitFirst(b *testing.B) []byte {
	b.Helper()
	run := expectCode(b, l.sendDelivery("stamp"), http.StatusOK).run()
	l.sendRequest(b.Context(), http.MethodGet, "/runs/"+run.ID, "", "Prefer: wait=60")
	return l.read("state/runs/" + run.ID + "/output")
}

// runConcurrently calls do from several senders, a number of times each, and returns how long all of it took.
func runConcurrently(senders, times int, do func()) time.Duration {
	var all sync.WaitGroup
	begin := time.Now()
	for range senders {
		all.Go(func() {
			for range times {
				do()
			}
		})
	}
	all.Wait()
	return time.Since(begin)
}

// benchmarkBusy measures answers that a run is in progress. It compares them with answers that take the same path and
// end before that check, because a parameter is not allowed.
func (p *programs) benchmarkBusy(b *testing.B) {
	const senders, times = 8, 50
	l := p.install(b, stampHooks)
	expectCode(b, l.sendDelivery("long"), http.StatusOK)
	server := l.server.Process.Pid
	var busy, without, busyCPU, withoutCPU time.Duration
	rounds := 0
	for b.Loop() {
		rounds++
		before := processorTime(b, server)
		busy += runConcurrently(senders, times, func() { expectCode(b, l.sendDelivery("long"), http.StatusServiceUnavailable) })
		between := processorTime(b, server)
		without += runConcurrently(senders, times, func() {
			expectCode(b, l.deliver("long", fmt.Sprintf(`{"n": "no %d"}`, l.last.Add(1))), http.StatusUnprocessableEntity)
		})
		busyCPU, withoutCPU = busyCPU+between-before, withoutCPU+processorTime(b, server)-between
	}
	answers := float64(rounds * senders * times)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(answers/busy.Seconds(), "busy/s")
	b.ReportMetric(float64(without)/float64(busy), "busy/without-runner")
	b.ReportMetric(float64(busyCPU.Microseconds())/answers, "server-µs/busy")
	b.ReportMetric(float64(busyCPU)/float64(withoutCPU), "server-cpu-ratio")
}

// processorTime returns the processor time of a process.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	mustSucceed(b, err)
	_, rest, _ := strings.Cut(string(stat), ") ") // proc(5): fields 14 and 15 are ticks, of which a second has 100
	var user, system time.Duration
	_, err = fmt.Sscan(strings.Join(strings.Fields(rest)[11:13], " "), &user, &system)
	mustSucceed(b, err)
	return (user + system) * time.Second / 100
}

// benchmarkShortRuns measures runs that end at once, each with its own flight, from the delivery until their end is
// recorded. It compares them with a plain os/exec of the same command.
func (p *programs) benchmarkShortRuns(b *testing.B) {
	const senders, times = 32, 8
	l := p.install(b, stampHooks)
	server, supervisor := l.server.Process.Pid, l.supervisor()
	serverCPU, supervisorCPU := processorTime(b, server), processorTime(b, supervisor)
	var runs, bare time.Duration
	rounds := 0
	for b.Loop() {
		rounds++
		bare += runConcurrently(senders, times, func() { p.runBare(b) })
		runs += runConcurrently(senders, times, func() {
			if r := expectCode(b, l.sendDelivery("stamp", "Prefer: wait=60"), http.StatusOK).run(); r.State != runner.Succeeded {
				b.Errorf("run %+v", r)
			}
		})
	}
	all := float64(rounds * senders * times)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(all/runs.Seconds(), "runs/s")
	b.ReportMetric(all/bare.Seconds(), "bare/s")
	b.ReportMetric(float64(bare)/float64(runs), "runs/bare")
	b.ReportMetric(float64((processorTime(b, server)-serverCPU).Microseconds())/all, "server-µs/run")
	b.ReportMetric(float64((processorTime(b, supervisor)-supervisorCPU).Microseconds())/all, "supervisor-µs/run")
}

// benchmarkMemory measures server and supervisor when idle and with a thousand runs in progress.
func (p *programs) benchmarkMemory(b *testing.B) {
	const runs = 1000
	for b.Loop() {
		l := p.install(b, stampHooks)
		before := l.measureMemory(b)
		runConcurrently(8, runs/8, func() { expectCode(b, l.sendDelivery("many"), http.StatusOK) })
		after := l.measureMemory(b)
		l.endProcesses()
		for i, who := range []string{"server", "supervisor"} {
			b.ReportMetric(float64(before[i])/1024, who+"-idle-MiB")
			b.ReportMetric(float64(after[i])/1024, who+"-1000-runs-MiB")
			b.ReportMetric(float64(after[i]-before[i])/runs, who+"-KiB/run")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// measureMemory returns the memory of the server and of the supervisor in KiB, with a proportional part of what they
// share with others.
func (l *load) measureMemory(b *testing.B) (kib [2]int) {
	b.Helper()
	for i, pid := range []int{l.server.Process.Pid, l.supervisor()} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		mustSucceed(b, err)
		_, rest, _ := strings.Cut(string(text), "\nPss:")
		_, err = fmt.Sscan(rest, &kib[i])
		mustSucceed(b, err)
	}
	return kib
}

// benchmarkOutput measures how long a command takes to write a gigabyte to both streams. It compares that with writing
// to a file.
func (p *programs) benchmarkOutput(b *testing.B) {
	command, err := exec.LookPath("spill")
	mustSucceed(b, err)
	l := p.install(b, strings.ReplaceAll(spillHooks, "SPILL", command))
	l.write("gate", "", 0o600)
	took := func() time.Duration {
		ns, err := strconv.ParseInt(string(l.read("took")), 10, 64)
		mustSucceed(b, err)
		return time.Duration(ns)
	}
	var through, bare times
	for b.Loop() {
		name := filepath.Join(l.dir, "bare")
		file, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		mustSucceed(b, err)
		cmd := exec.CommandContext(b.Context(), command, filepath.Join(l.dir, "took"), filepath.Join(l.dir, "gate"))
		cmd.Stdout, cmd.Stderr = file, file
		mustSucceed(b, errors.Join(cmd.Run(), file.Close(), os.Remove(name)))
		bare = append(bare, took())
		if r := expectCode(b, l.deliver("spill", fmt.Sprint(l.last.Add(1)), "Prefer: wait=300"), http.StatusOK).run(); r.State != runner.Succeeded {
			b.Fatalf("run %+v", r)
		}
		through = append(through, took())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(internals.Spilled/bare.quantile(.5).Seconds()/1e6, "bare-MB/s")
	b.ReportMetric(internals.Spilled/through.quantile(.5).Seconds()/1e6, "run-MB/s")
	b.ReportMetric(float64(bare.quantile(.5))/float64(through.quantile(.5)), "run/bare")
	b.ReportMetric(float64(peakMemory(b, l.server.Process.Pid))/1024, "server-most-MiB")
	b.ReportMetric(float64(peakMemory(b, l.supervisor()))/1024, "supervisor-most-MiB")
}

// benchmarkHistory measures pages of the list of runs, and starts, with a million runs in the store. It compares them
// with an empty store.
func (p *programs) benchmarkHistory(b *testing.B) {
	const count, hooks = 1_000_000, 20
	text := "hooks:\n"
	for i := range hooks {
		text += fmt.Sprintf("  hook%d: {callers: [{caller: load, may: [start, read]}], command: [STAMP], "+
			"params: {n: {from: body.n, type: int}}, env: {N: \"{n}\"}, keep: {count: %d, age: 1000000h}}\n", i, 2*count)
	}
	long, empty := p.install(b, text), p.install(b, text)
	long.endServer()
	fill, err := os.ReadFile("runner/store/testdata/past.sql")
	mustSucceed(b, err)
	db, err := sql.Open("sqlite", filepath.Join(long.dir, "state", "state.db")+"?_pragma=synchronous(OFF)")
	mustSucceed(b, err)
	_, err = db.ExecContext(b.Context(), strings.NewReplacer("COUNT", fmt.Sprint(count), "HOOKS", fmt.Sprint(hooks)).Replace(string(fill)))
	mustSucceed(b, err)
	mustSucceed(b, db.Close())
	begin := time.Now()
	long.start(true)
	b.ReportMetric(float64(time.Since(begin).Milliseconds()), "server-start-ms")
	type turn struct{ list, filtered, start times }
	var took [2]turn
	for b.Loop() {
		for i, l := range []*load{empty, long} {
			took[i].list = append(took[i].list, runConcurrently(1, 1, func() { l.requestPage(b, "") }))
			took[i].filtered = append(took[i].filtered, runConcurrently(1, 1, func() { l.requestPage(b, "&hook=hook7&state=failed") }))
			var run runner.Run
			took[i].start = append(took[i].start, runConcurrently(1, 1, func() { run = expectCode(b, l.sendDelivery("hook7"), http.StatusOK).run() }))
			l.sendRequest(b.Context(), http.MethodGet, "/runs/"+run.ID, "", "Prefer: wait=60")
		}
	}
	b.ReportMetric(0, "ns/op")
	took[1].list.report(b, "list", took[0].list, "empty")
	took[1].filtered.report(b, "filtered", took[0].filtered, "empty")
	took[1].start.report(b, "start", took[0].start, "empty")
}

// requestPage requests a page of the list.
func (l *load) requestPage(b *testing.B, filter string) {
	b.Helper()
	expectCode(b, l.sendRequest(b.Context(), http.MethodGet, "/runs?limit=50"+filter, ""), http.StatusOK)
}
