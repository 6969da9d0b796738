package e2e_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
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
	var heard atomic.Int64
	go func() {
		for b := make([]byte, 1000); ; {
			n, err := socket.Read(b)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), "WATCHDOG=1") {
				heard.Add(1)
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
}
