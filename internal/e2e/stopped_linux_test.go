package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/internal/testenv"
	"sallyport/runner"
)

const stoppedHooks = `
hooks:
  job:
    callers: [load]
    command: [DIR/job.sh, DIR, "{n}"]
    params: {n: {from: body.n, type: int}}
    flight: "{n}"
    timeout: 10s
`

// stoppedJob writes its pid to DIR/N, and ends when DIR/gate exists.
const stoppedJob = `#!/bin/sh
echo $$ >"$1/$2"
echo "$SALLYPORT_RUN" >>"$1/begun"
until [ -e "$1/gate" ]; do sleep 0.02; done
exit 7
`

// TestStoppedSupervisor_EndBeforeTimeout: a command that ended by itself while the supervisor was stopped did not time
// out, even if its timeout has passed when the supervisor continues.
func TestStoppedSupervisor_EndBeforeTimeout(t *testing.T) {
	t.Parallel()
	in := install(t, "sallyport", stoppedHooks)
	in.write("job.sh", stoppedJob, 0o755)
	in.start(true)
	const many = 6 // the supervisor may notice the end or the timeout first
	var runs []string
	for n := range many {
		runs = append(runs, in.deliver("job", fmt.Sprintf(`{"n": %d}`, n)).run().ID)
	}
	for n := range many {
		in.waitUntil("the commands to begin", func() bool {
			text, err := os.ReadFile(filepath.Join(in.dir, fmt.Sprint(n)))
			return err == nil && len(text) > 0
		})
	}
	over := time.After(10 * time.Second) // the timeout of the last one
	supervisor := in.supervisor()
	mustSucceed(t, syscall.Kill(supervisor, syscall.SIGSTOP))
	in.waitUntil("the supervisor to stop", func() bool { return testenv.HasStopped(supervisor) })
	t.Cleanup(func() { _ = syscall.Kill(supervisor, syscall.SIGCONT) })
	in.write("gate", "", 0o600)
	for n := range many {
		pid := strings.TrimSpace(string(in.read(fmt.Sprint(n))))
		in.waitUntil("the commands to end", func() bool {
			stat, _ := os.ReadFile(filepath.Join("/proc", pid, "stat"))
			return strings.Contains(string(stat), ") Z ")
		})
	}
	<-over
	mustSucceed(t, syscall.Kill(supervisor, syscall.SIGCONT))
	for _, id := range runs {
		r := in.sendRequest(t.Context(), http.MethodGet, "/runs/"+id, "", "Prefer: wait=30").run()
		if r.State != runner.Failed || r.ExitCode == nil || *r.ExitCode != 7 {
			t.Errorf("the run is %s with exit code %v, want failed with 7", r.State, r.ExitCode)
		}
	}
	in.endServer()
}

// TestStoppedSupervisor_Cancel: cancelling a run whose order a stopped supervisor holds keeps its command from
// beginning when the supervisor continues. The next run of its flight begins.
func TestStoppedSupervisor_Cancel(t *testing.T) {
	t.Parallel()
	in := install(t, "sallyport", stoppedHooks)
	in.write("job.sh", stoppedJob, 0o755)
	in.write("gate", "", 0o600)
	in.start(true)
	supervisor := in.supervisor()
	mustSucceed(t, syscall.Kill(supervisor, syscall.SIGSTOP))
	in.waitUntil("the supervisor to stop", func() bool { return testenv.HasStopped(supervisor) })
	t.Cleanup(func() { _ = syscall.Kill(supervisor, syscall.SIGCONT) })
	run := in.deliver("job", `{"n": 1}`).run() // the server answers without the supervisor, which has the order
	if out, err := program(t, in.dir, "runs", "cancel", "--state-dir", "state", run.ID).CombinedOutput(); err != nil {
		t.Fatalf("the cancellation ended with %v: %s", err, out)
	}
	mustSucceed(t, syscall.Kill(supervisor, syscall.SIGCONT))
	if r := in.sendRequest(t.Context(), http.MethodGet, "/runs/"+run.ID, "", "Prefer: wait=30").run(); r.State != runner.Cancelled {
		t.Errorf("the run is %+v", r)
	}
	if a := in.sendRequest(t.Context(), http.MethodGet, "/runs/"+run.ID+"/output", ""); a.code != http.StatusNotFound {
		t.Errorf("its output has status %d: %s", a.code, a.body)
	}
	next := in.deliver("job", `{"n": 1, "again": true}`).run()
	if r := in.sendRequest(t.Context(), http.MethodGet, "/runs/"+next.ID, "", "Prefer: wait=30").run(); r.State != runner.Failed || r.ExitCode == nil {
		t.Errorf("the next run of the flight is %+v", r)
	}
	if log := string(in.read("begun")); strings.TrimSpace(log) != next.ID {
		t.Errorf("these began: %s", log)
	}
	in.endServer()
}
