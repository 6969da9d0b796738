package e2e_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner"
)

const forkBombHooks = `
hooks:
  bomb: {callers: [load], command: [DIR/bomb.sh], timeout: 3s, grace: 1s}
  quick: {callers: [load], command: [/bin/true], busy: {queue: 1000}}
  env: {callers: [load], command: [/bin/sh, DIR/env.sh]}
`

// forkBomb forks without end and ignores SIGTERM. It stops by itself after 30 seconds, so that an interrupted test
// leaves no process behind.
const forkBomb = `#!/usr/bin/perl
$SIG{TERM} = 'IGNORE';
while (time - $^T < 30) { fork }
`

// runAsUser runs the servers of an installation as a user without other processes and without an entry in /etc/passwd,
// with a limit of processes.
func (in *installation) runAsUser(processes int) (uid uint32) {
	in.t.Helper()
	uid = 100_000 + rand.Uint32N(100_000)
	program := filepath.Join(in.dir, "sallyport") // only root can read its folder
	text, err := os.ReadFile(in.program)
	mustSucceed(in.t, err)
	mustSucceed(in.t, os.WriteFile(program, text, 0o700))
	mustSucceed(in.t, os.Chmod(filepath.Dir(in.dir), 0o755)) // the user needs to pass through the folder of the test
	mustSucceed(in.t, filepath.WalkDir(in.dir, func(path string, _ fs.DirEntry, err error) error {
		mustSucceed(in.t, err)
		return os.Lchown(path, int(uid), int(uid))
	}))
	in.program = program
	in.prepare = func(cmd *exec.Cmd) {
		limit := fmt.Sprintf(`ulimit -u %d && exec "$0" "$@"`, processes)
		cmd.Path, cmd.Args = "/bin/bash", append([]string{"bash", "-c", limit, program}, cmd.Args[1:]...)
		cmd.Env = []string{"PATH=/usr/bin:/bin", "TZ=Europe/Berlin"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	return uid
}

// TestForkBomb_Timeout: the timeout ends a command that forks without end while deliveries arrive, and both processes
// live on.
func TestForkBomb_Timeout(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "a fork bomb: only root may start a server as a user without other processes")
	}
	in := install(t, "sallyport", forkBombHooks)
	in.write("bomb.sh", forkBomb, 0o700)
	in.write("env.sh", "printenv | sort; umask; date +%Z", 0o700)
	uid := in.runAsUser(600)
	in.start(true)
	server, supervisor := in.servers(), in.supervisor()

	var tasks []byte
	bomb := in.deliver("bomb", "{}")
	if bomb.code != 200 {
		t.Fatalf("got %d: %s", bomb.code, bomb.body)
	}
	in.waitUntil("the bomb to be at its limit", func() bool {
		var err error
		tasks, err = exec.CommandContext(t.Context(), "ps", "-L", "-o", "pid=", "-u", fmt.Sprint(uid)).Output()
		mustSucceed(t, err)
		return bytes.Count(tasks, []byte("\n")) > 300
	})
	var deliveries sync.WaitGroup
	for i := range 8 {
		deliveries.Go(func() {
			for j := range 10 {
				in.deliver("quick", fmt.Sprintf(`{"n":"%d-%d"}`, i, j)) // it may fail: the limit leaves no process for it
			}
		})
	}
	deliveries.Wait()

	ended := in.sendRequest(t.Context(), "GET", "/runs/"+bomb.run().ID, "", "Prefer: wait=30").run()
	if ended.State != runner.TimedOut {
		t.Errorf("the bomb ended as %s: %s", ended.State, ended.Error)
	}
	if now := in.servers(); !slices.Equal(now, server) || in.supervisor() != supervisor || supervisor == 0 {
		t.Errorf("server %d and supervisor %d before, %d and %d after", server, supervisor, now, in.supervisor())
	}
	after := in.deliver("quick", `{"after":true}`, "Prefer: wait=20").run()
	if after.State != runner.Succeeded {
		t.Errorf("a delivery after the bomb: %+v", after)
	}

	// The user has no entry in /etc/passwd, and the server has a TZ.
	run := in.deliver("env", `{}`, "Prefer: wait=20").run()
	out := string(in.sendRequest(t.Context(), "GET", "/runs/"+run.ID+"/output", "").body)
	for _, want := range []string{"HOME=/\n", fmt.Sprintf("USER=%d\n", uid), fmt.Sprintf("LOGNAME=%d\n", uid), "SHELL=/bin/sh\n", "TZ=Europe/Berlin\n", "0022\n", "CE"} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q in %s", want, out)
		}
	}
}
