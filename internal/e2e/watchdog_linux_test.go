package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWatchdog_FollowsReadiness: the server notifies systemd while all parts answer, and its successor does after a
// hand-over.
func TestWatchdog_FollowsReadiness(t *testing.T) {
	t.Parallel()
	in := install(t, "sallyport", "hooks:\n  quick: {callers: [load], command: [/bin/true]}\n")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(in.dir, "notify"), Net: "unixgram"})
	mustSucceed(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	cmd, ended := exec.CommandContext(context.Background(), "/bin/sh", "-c", //nolint:usetesting // it ends after the test's context
		`WATCHDOG_PID=$$ exec "$0" serve -c "$1"`, in.program, filepath.Join(in.dir, "sallyport.yaml")), make(chan struct{})
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(in.dir, "notify"), "WATCHDOG_USEC=200000")
	cmd.Stdout, cmd.Stderr = in.log, in.log
	mustSucceed(t, cmd.Start())
	go func() { _ = cmd.Wait(); close(ended) }()
	in.server, in.ended = cmd, ended
	t.Cleanup(in.killServers)
	raw, err := socket.SyscallConn()
	mustSucceed(t, err)
	mustSucceed(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }))
	mustSucceed(t, err)
	var heard atomic.Int64
	var named atomic.Value // the main process that the first server named last
	named.Store("")
	go func() {
		for b, control := make([]byte, 1000), make([]byte, 1000); ; {
			n, m, _, _, err := socket.ReadMsgUnix(b, control)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), "WATCHDOG=1") {
				heard.Add(1)
			}
			_, pid, found := strings.Cut(string(b[:n]), "MAINPID=")
			if found && senderOf(control[:m]) == cmd.Process.Pid {
				named.Store(pid)
			}
		}
	}()
	hear := func(what string) {
		t.Helper()
		from := heard.Load()
		in.waitUntil("a notification "+what, func() bool { return heard.Load() > from+1 })
	}
	const silent = `"msg":"systemd watchdog not notified"`
	in.waitUntil("the server to serve", func() bool { return in.isServing(0) })
	hear("while all is well")

	supervisor := in.supervisor()
	mustSucceed(t, syscall.Kill(supervisor, syscall.SIGSTOP))
	in.awaitLog(silent, 1)
	in.sendRequest(t.Context(), http.MethodGet, "/readyz", "") // its answer shows that earlier notifications have arrived
	from := heard.Load()
	for range 3 {
		if a := in.sendRequest(t.Context(), http.MethodGet, "/readyz", ""); a.code != http.StatusServiceUnavailable || !strings.Contains(string(a.body), `"parts":["supervisor"]`) {
			t.Errorf("/readyz: %d %s", a.code, a.body)
		}
	}
	if n := heard.Load() - from; n > 0 {
		t.Errorf("%d notifications while the supervisor hangs", n)
	}
	mustSucceed(t, syscall.Kill(supervisor, syscall.SIGCONT))
	hear("when the supervisor goes on")

	// A restart does not help a part that answers with an error.
	mustSucceed(t, os.Rename(filepath.Join(in.dir, "state/state.db"), filepath.Join(in.dir, "away")))
	in.waitUntil("the server to miss its database", func() bool {
		return in.sendRequest(t.Context(), http.MethodGet, "/readyz", "").code == http.StatusServiceUnavailable
	})
	hear("without a database")
	mustSucceed(t, cmd.Process.Signal(syscall.SIGUSR2)) // the server does not hand over what its successor could not open
	in.awaitLog(`"msg":"not handed over"`, 1)
	mustSucceed(t, os.Rename(filepath.Join(in.dir, "away"), filepath.Join(in.dir, "state/state.db")))
	in.waitUntil("the server to be ready", func() bool {
		return in.sendRequest(t.Context(), http.MethodGet, "/readyz", "").code == http.StatusOK
	})

	mustSucceed(t, cmd.Process.Signal(syscall.SIGUSR2))
	<-ended
	hear("from the next server")
	// systemd may accept notifications of the main process only (NotifyAccess=main), so that no command can send one.
	next := in.servers()
	in.waitUntil("the first server to name the next as the main process", func() bool {
		return len(next) == 1 && named.Load() == fmt.Sprint(next[0])
	})
}

// senderOf returns the process that sent a message, or 0 if the kernel did not say.
func senderOf(control []byte) int {
	messages, _ := unix.ParseSocketControlMessage(control) // none, if it cannot be read
	for _, m := range messages {
		if credentials, err := unix.ParseUnixCredentials(&m); err == nil {
			return int(credentials.Pid)
		}
	}
	return 0
}
