package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/runner"
)

// acceptedJob is the command of the hook of TestQueuedRuns_StartFails: job.sh DIR N. The first one waits for DIR/go.
const acceptedJob = `#!/bin/sh
echo "begin $SALLYPORT_RUN" >>"$1/witness"
[ "$2" != 0 ] || until [ -e "$1/go" ]; do sleep 0.02; done
`

const acceptedHook = `
hooks:
  job:
    callers: [load]
    command: [DIR/job.sh, DIR, "{n}"]
    params: {n: {from: body.n, type: int}}
    busy: {queue: 60}
`

const acceptedRuns = 50 // queued behind the first one

// TestQueuedRuns_StartFails removes what a start needs while 50 accepted runs are queued, and restores it: each run is
// executed exactly once.
func TestQueuedRuns_StartFails(t *testing.T) {
	t.Parallel()
	for what, take := range map[string]func(*installation) (giveBack func()){
		"program removed":     removeProgram,
		"program written":     openProgram,
		"hook missing":        removeHook,
		"descriptors":         limitDescriptors,
		"folders removed":     removeFolders("active", "ready"),
		"all folders removed": removeFolders(""),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			queueRunsWithout(t, take)
		})
	}
}

// TestQueuedRuns_NoProcesses does the same with the limit of processes. That limit does not bind root, so the test
// starts itself again as another user.
func TestQueuedRuns_NoProcesses(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		queueRunsWithout(t, limitProcesses)
		return
	}
	dir, uid := t.TempDir(), 60000+os.Getpid()%5000 // the limit counts all processes of a user
	program := filepath.Join(dir, "program.test")
	text, err := os.ReadFile(os.Args[0])
	mustSucceed(t, err)
	mustSucceed(t, os.WriteFile(program, text, 0o755))
	for _, folder := range []string{dir, filepath.Dir(dir)} { // the parent belongs to the test, too
		mustSucceed(t, os.Chmod(folder, 0o755))
	}
	mustSucceed(t, os.Mkdir(filepath.Join(dir, "tmp"), 0o700))
	mustSucceed(t, os.Chown(filepath.Join(dir, "tmp"), uid, uid))
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestQueuedRuns_NoProcesses$", "-test.v", "-test.count=1")
	cmd.Dir, cmd.Env = filepath.Join(dir, "tmp"), append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestQueuedRuns_NoProcesses ")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// queueRunsWithout removes something while runs are queued, and restores it when the log reports that a start failed.
func queueRunsWithout(t *testing.T, take func(*installation) (giveBack func())) {
	t.Helper()
	in := install(t, "sallyport", acceptedHook)
	in.write("job.sh", acceptedJob, 0o755)
	in.write("witness", "", 0o600)
	in.start(true)
	var ids []string
	for n := range 1 + acceptedRuns {
		a := in.deliver("job", fmt.Sprintf(`{"n": %d}`, n))
		if a.code != http.StatusOK && a.code != http.StatusAccepted {
			t.Fatalf("delivery %d: %d %s", n, a.code, a.body)
		}
		ids = append(ids, a.run().ID)
	}
	in.waitUntil("the first to begin", func() bool { return in.countBegun(ids[0]) == 1 })
	giveBack := take(in)
	in.write("go", "", 0o600)
	if giveBack != nil {
		pid := in.supervisor()
		in.waitUntil("a start to fail", func() bool {
			return bytes.Contains(in.read("log"), []byte("run stays queued: its command cannot be started yet")) || in.supervisor() != pid
		})
		giveBack()
	}
	in.awaitSuccess(ids[1:])
}

// countBegun returns how often the command of a run began.
func (in *installation) countBegun(id string) int {
	return bytes.Count(in.read("witness"), []byte("begin "+id))
}

// awaitText waits until the log contains a text.
func (in *installation) awaitText(text string) {
	in.t.Helper()
	in.waitUntil("the log to contain "+text, func() bool { return bytes.Contains(in.read("log"), []byte(text)) })
}

// awaitSuccess waits for the ends of runs.
func (in *installation) awaitSuccess(ids []string) {
	in.t.Helper()
	lost := 0
	for _, id := range ids {
		var run runner.Run
		in.waitUntil("the end of a run", func() bool {
			run = in.sendRequest(in.t.Context(), http.MethodGet, "/runs/"+id, "").run()
			return run.State.Ended()
		})
		if run.State != runner.Succeeded || in.countBegun(id) != 1 {
			lost++
			in.t.Logf("run %s is %s (%s), and began %d times", id, run.State, run.Error, in.countBegun(id))
		}
	}
	in.t.Logf("%d accepted, %d lost", len(ids), lost)
	if lost > 0 {
		in.t.Errorf("%d of %d accepted runs are lost", lost, len(ids))
	}
}

// removeProgram replaces the program as a deployment by rename does.
func removeProgram(in *installation) func() {
	job := filepath.Join(in.dir, "job.sh")
	mustSucceed(in.t, os.Rename(job, job+".old"))
	return func() { mustSucceed(in.t, os.Rename(job+".old", job)) }
}

// openProgram replaces the program as a deployment by copying does: a start fails with ETXTBSY.
func openProgram(in *installation) func() {
	f, err := os.OpenFile(filepath.Join(in.dir, "job.sh"), os.O_APPEND|os.O_WRONLY, 0)
	mustSucceed(in.t, err)
	return func() { mustSucceed(in.t, f.Close()) }
}

func removeHook(in *installation) func() {
	was := in.read("sallyport.yaml")
	in.write("sallyport.yaml", strings.ReplaceAll(string(was), "  job:\n", "  another:\n"), 0o600)
	in.awaitText(`"msg":"reloaded"`)
	return func() { in.write("sallyport.yaml", string(was), 0o600) }
}

// limitDescriptors lowers the limit of descriptors of the supervisor, so that a start fails with EMFILE.
func limitDescriptors(in *installation) func() {
	var was unix.Rlimit
	mustSucceed(in.t, unix.Prlimit(in.supervisor(), unix.RLIMIT_NOFILE, nil, &was))
	mustSucceed(in.t, unix.Prlimit(in.supervisor(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}, nil))
	return func() { mustSucceed(in.t, unix.Prlimit(in.supervisor(), unix.RLIMIT_NOFILE, &was, nil)) }
}

func removeFolders(names ...string) func(*installation) func() {
	return func(in *installation) func() {
		for _, name := range names {
			in.waitUntil("the folder to be gone", func() bool { return os.RemoveAll(filepath.Join(in.dir, "state/runs", name)) == nil })
		}
		return nil // the program restores the folders itself
	}
}

// limitProcesses lowers the limit of processes of the supervisor, so that a start fails with EAGAIN.
func limitProcesses(in *installation) func() {
	pid := in.supervisor()
	var was unix.Rlimit
	mustSucceed(in.t, unix.Prlimit(pid, unix.RLIMIT_NPROC, nil, &was))
	mustSucceed(in.t, unix.Prlimit(pid, unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 1, Max: was.Max}, nil))
	return func() { _ = unix.Prlimit(pid, unix.RLIMIT_NPROC, &was, nil) } // the process may have ended
}
