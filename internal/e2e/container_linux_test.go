package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner"
)

const containerHooks = `
hooks:
  family: {callers: [load], command: [/bin/sh, DIR/family.sh, DIR]}
`

// family has a child whose parent does not wait for it.
const family = `wait='while [ ! -e "$0/go" ]; do sleep 0.05; done'
sh -c "$wait" "$1" &
touch "$1/began"
exec sh -c "$wait" "$1"
`

// zombiesOf returns the children of a process that ended and were not waited for.
func zombiesOf(t *testing.T, parent int) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	mustSucceed(t, err)
	for _, name := range stats {
		text, _ := os.ReadFile(name) // the process may have ended
		_, rest, _ := bytes.Cut(text, []byte(") "))
		fields := strings.Fields(string(rest)) // proc_pid_stat(5): state, ppid
		if len(fields) > 1 && fields[0] == "Z" && fields[1] == strconv.Itoa(parent) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestContainer_ReapOrphans runs the server as process 1. It becomes the parent of the commands of a killed supervisor,
// and must wait for them.
func TestContainer_ReapOrphans(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "the server as the first process of a container: only root may create one")
	}
	in := install(t, "sallyport", containerHooks)
	in.write("family.sh", family, 0o600)
	in.prepare = func(cmd *exec.Cmd) {
		program := cmd.Args[1:]
		path, err := exec.LookPath("unshare")
		mustSucceed(t, err)
		cmd.Path = path
		cmd.Args = append([]string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc", in.program}, program...)
	}
	in.start(true)
	server := 0
	in.waitUntil("the server to be there", func() bool {
		for _, pid := range in.servers() {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if bytes.Contains(status, fmt.Appendf(nil, "NSpid:\t%d\t1\n", pid)) {
				server = pid
			}
		}
		return server != 0
	})
	run := in.deliver("family", "{}").run()
	in.waitUntil("the command to begin", func() bool { _, err := os.Stat(in.dir + "/began"); return err == nil })
	before := in.supervisor()
	mustSucceed(t, syscall.Kill(before, syscall.SIGKILL))
	in.waitUntil("another supervisor", func() bool { now := in.supervisor(); return now != 0 && now != before })

	in.write("go", "", 0o600)
	ended := in.sendRequest(t.Context(), "GET", "/runs/"+run.ID, "", "Prefer: wait=30").run()
	if ended.State != runner.Interrupted {
		t.Errorf("the run ended as %s", ended.State)
	}
	in.waitUntil("every orphan to be reaped", func() bool { return len(zombiesOf(t, server)) == 0 })
}
