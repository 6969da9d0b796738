package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/runner"
)

// buildVersion builds a version of the program for release, without some of its source files.
func buildVersion(t *testing.T, file, version string, without ...string) {
	t.Helper()
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for _, name := range without {
		path, err := filepath.Abs(name)
		mustSucceed(t, err)
		overlay.Replace[path] = ""
	}
	text, err := json.Marshal(overlay)
	mustSucceed(t, err)
	write(t, file+".json", text)
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-overlay", file+".json", "-ldflags", "-X main.version="+version, "-o", file, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
}

// installUpgradable returns an installation of one version of the program, which another can replace.
func installUpgradable(t *testing.T) *installation {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "sallyport")
	buildVersion(t, program, "v1")
	in := install(t, program, countingHooks)
	in.write("count.sh", counting, 0o755)
	t.Cleanup(in.killServers) // runs before the cleanup that looks for the supervisor
	in.start(true)
	return in
}

// handOverTo replaces the running program by another one, and makes the server hand over to it.
func (in *installation) handOverTo(program string) {
	in.t.Helper()
	mustSucceed(in.t, os.Rename(program, in.program))
	mustSucceed(in.t, in.server.Process.Signal(syscall.SIGUSR2))
}

// endSuccessor ends the successor.
func (in *installation) endSuccessor() {
	in.t.Helper()
	for _, pid := range in.servers() {
		mustSucceed(in.t, syscall.Kill(pid, syscall.SIGTERM))
	}
	in.waitUntil("the servers to end", func() bool { return len(in.servers()) == 0 })
}

func (in *installation) awaitLog(text string, times int) {
	in.t.Helper()
	in.waitUntil(text, func() bool { return strings.Count(string(in.read("log")), text) >= times })
}

const countingHooks = `
hooks:
  count: {callers: [load], command: [DIR/count.sh, DIR], timeout: 5m}
`

// counting writes numbered lines, some of them after the gate is open.
const counting = `#!/bin/sh
seq 1 100000
until [ -e "$1/gate" ]; do sleep 0.05; done
seq 100001 200000
exit 7
`

func numberLines(from, to int) string {
	var b strings.Builder
	for n := from; n <= to; n++ {
		_, _ = fmt.Fprintln(&b, n)
	}
	return b.String()
}

// checkCounting checks a run of the counting command that went on during the upgrade.
func (in *installation) checkCounting(run runner.Run) {
	in.t.Helper()
	in.write("gate", "", 0o600)
	run = in.sendRequest(in.t.Context(), http.MethodGet, "/runs/"+run.ID, "", "Prefer: wait=30").run()
	if run.State != runner.Failed || run.ExitCode == nil || *run.ExitCode != 7 {
		in.t.Errorf("the run is %+v", run)
	}
	if out := in.sendRequest(in.t.Context(), http.MethodGet, "/runs/"+run.ID+"/output", ""); string(out.body) != numberLines(1, 200_000) {
		in.t.Errorf("its output has %d bytes", len(out.body))
	}
}

// TestUpgrade_RunGoesOn upgrades the real program during a run: the supervisor keeps its process, executes the new
// program, and loses nothing of the run.
func TestUpgrade_RunGoesOn(t *testing.T) {
	t.Parallel()
	in := installUpgradable(t)
	run := in.deliver("count", "{}").run()
	pid, old := in.supervisor(), in.server.Process.Pid
	next := in.program + ".new"
	buildVersion(t, next, "v2")
	in.handOverTo(next)
	in.awaitLog(`"msg":"serving"`, 2)
	in.waitUntil("the old server to go", func() bool { return len(in.servers()) == 1 && in.servers()[0] != old })
	in.awaitLog(fmt.Sprintf(`"msg":"supervisor ready","pid":%d,"version":"v2 `, pid), 1)
	if now := in.supervisor(); now != pid {
		t.Errorf("the supervisor is process %d, and was %d", now, pid)
	}
	in.checkCounting(run)
	in.endSuccessor()
}

// TestUpgrade_ProgramTooOld: a successor that is too old for the store gives up, after its predecessor has closed the
// store, and the predecessor serves again.
func TestUpgrade_ProgramTooOld(t *testing.T) {
	t.Parallel()
	in := installUpgradable(t)
	run := in.deliver("count", "{}").run()
	pid := in.supervisor()
	migrations, err := filepath.Glob("runner/store/migrations/*.sql")
	mustSucceed(t, err)
	other := in.program + ".old"
	buildVersion(t, other, "v0", migrations[len(migrations)-1])
	in.handOverTo(other)
	in.awaitLog("was written by a newer version", 1)
	in.awaitLog(`"msg":"serving"`, 2)
	in.awaitLog(`"msg":"not handed over"`, 1)
	if pids := in.servers(); len(pids) != 1 || pids[0] != in.server.Process.Pid || in.supervisor() != pid {
		t.Errorf("servers %v, supervisor %d", pids, in.supervisor())
	}
	in.checkCounting(run)
	in.endServer()
}
