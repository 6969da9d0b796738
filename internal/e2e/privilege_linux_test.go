package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner"
)

const privilegeHooks = `
hooks:
  look: {callers: [load], command: [/bin/sh, DIR/look.sh]}
`

// look tries to read what belongs to the server and to the supervisor, which run as the same user.
const lookJob = `grep ^Cap /proc/self/status
for pid in $PPID $(cat "$(dirname "$0")/server"); do
	for file in environ maps mem auxv; do
		head -c 1 /proc/$pid/$file >/dev/null 2>&1 && echo "reads $file of $pid"
	done
	ls /proc/$pid/fd >/dev/null 2>&1 && echo "lists the descriptors of $pid"
	test -r /proc/$pid/status && echo "sees $pid"
done
`

// TestCommand_Privileges: a command has neither the capability to listen on port 443 nor access to the memory of the
// processes that hold the keys.
func TestCommand_Privileges(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "the privileges of a command: only root may start a server as another user")
	}
	in := install(t, "sallyport", privilegeHooks)
	// Longer than the path of a socket may be, so the server uses /proc/self/fd.
	config := strings.Replace(string(in.read("sallyport.yaml")), in.dir+"/state", in.dir+"/"+strings.Repeat("s", 100), 1)
	in.write("sallyport.yaml", config, 0o600)
	in.write("look.sh", lookJob, 0o600)
	in.write("server", "", 0o600)
	in.runAsUser(5000)
	start := in.prepare
	const bind = 10 // CAP_NET_BIND_SERVICE
	in.prepare = func(cmd *exec.Cmd) {
		start(cmd)
		cmd.SysProcAttr.AmbientCaps = []uintptr{bind}
	}
	in.start(true)
	server := in.servers()
	if len(server) != 1 {
		t.Fatalf("%d servers", len(server))
	}
	if !someThreadHasAmbient(t, server[0], 1<<bind) {
		t.Fatal("the server lacks the capability, so the test proves nothing")
	}
	mustSucceed(t, os.WriteFile(in.dir+"/server", fmt.Append(nil, server[0]), 0o600))

	run := in.deliver("look", "{}", "Prefer: wait=20").run()
	out := string(in.sendRequest(t.Context(), "GET", "/runs/"+run.ID+"/output", "").body)
	if run.State != runner.Succeeded || strings.Count(out, "sees ") != 2 {
		t.Fatalf("%+v\n%s", run, out)
	}
	for line := range strings.Lines(out) {
		if name, value, is := strings.Cut(line, ":"); is && name != "CapBnd" && strings.Trim(value, "\t 0\n") != "" {
			t.Errorf("the command has capabilities: %s", line)
		}
		if strings.HasPrefix(line, "reads ") || strings.HasPrefix(line, "lists ") {
			t.Errorf("the command %s", line)
		}
	}
	in.endServer()
}

// someThreadHasAmbient reports whether a thread of a process has exactly these ambient capabilities. The thread that
// started the supervisor has none, and it may be the first one, of which /proc/PID/status speaks.
func someThreadHasAmbient(t *testing.T, pid, want int) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	mustSucceed(t, err)
	return slices.ContainsFunc(threads, func(file string) bool {
		status, err := os.ReadFile(file) // fails for a thread that has ended
		return err == nil && strings.Contains(string(status), fmt.Sprintf("CapAmb:\t%016x\n", want))
	})
}

// TestListen_PrivilegedPort: without the permission for the port, the server says how to get it, and ends.
func TestListen_PrivilegedPort(t *testing.T) {
	first, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if os.Geteuid() != 0 || err != nil || strings.TrimSpace(string(first)) != "1024" {
		testenv.Skip(t, "listening on port 443 without permission: it needs root, and a system where other users may not listen there")
	}
	in := install(t, "sallyport", privilegeHooks)
	in.write("sallyport.yaml", strings.Replace(string(in.read("sallyport.yaml")), "localhost:0", "127.0.0.1:443", 1), 0o600)
	in.write("look.sh", lookJob, 0o600)
	in.runAsUser(5000)
	in.start(false)
	in.waitUntil("the server to end", func() bool {
		select {
		case <-in.ended:
			return true
		default:
			return false
		}
	})
	for _, want := range []string{"127.0.0.1:443: bind: permission denied", "AmbientCapabilities=CAP_NET_BIND_SERVICE", "ListenStream=443"} {
		if !strings.Contains(string(in.read("log")), want) {
			t.Errorf("the server does not say %q: %s", want, in.read("log"))
		}
	}
}
