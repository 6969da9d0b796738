package e2e_test

import (
	"bufio"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestLog_ReaderStops: the reader of the log stops and keeps the pipe open. The server still answers and runs
// deliveries, and both processes end on SIGTERM.
func TestLog_ReaderStops(t *testing.T) {
	t.Parallel()
	in := install(t, "sallyport", "hooks:\n  quick: {callers: [load], command: [/bin/true], busy: {queue: 1000}}\n")
	r, w, err := os.Pipe()
	mustSucceed(t, err)
	t.Cleanup(func() { _ = r.Close() })
	cmd, ended := exec.CommandContext(t.Context(), in.program, "serve", "-c", filepath.Join(in.dir, "sallyport.yaml")), make(chan struct{})
	cmd.Stdout, cmd.Stderr = w, w
	mustSucceed(t, cmd.Start())
	mustSucceed(t, w.Close())
	go func() {
		_ = cmd.Wait() // the test reads ProcessState
		close(ended)
	}()
	in.server, in.ended = cmd, ended
	address := regexp.MustCompile(`"msg":"serving","address":"(https://[^"]+)"`)
	for lines := bufio.NewScanner(r); in.url.Load() == nil && lines.Scan(); {
		if found := address.FindStringSubmatch(lines.Text()); found != nil {
			in.url.Store(&found[1])
		}
	}
	if in.url.Load() == nil {
		t.Fatal("the server does not serve")
	}
	// Each delivery adds more than 600 bytes to the log, and a pipe holds 64 KiB.
	for i := range 300 {
		if a := in.deliver("quick", strconv.Itoa(i)); a.code != http.StatusOK && a.code != http.StatusAccepted {
			t.Fatalf("delivery %d: %d %s", i, a.code, a.body)
		}
	}
	in.waitUntil("all runs to end", func() bool {
		return in.sendRequest(t.Context(), http.MethodGet, "/runs?state=queued&state=running", "").runs() == 0
	})
	if a := in.sendRequest(t.Context(), http.MethodGet, "/healthz", ""); a.code != http.StatusOK {
		t.Errorf("/healthz: %d", a.code)
	}
	mustSucceed(t, cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the server does not end")
	}
	if !cmd.ProcessState.Success() {
		t.Errorf("the server ended with %v", cmd.ProcessState)
	}
	in.waitUntil("the supervisor to end", func() bool { return in.supervisor() == 0 })
}
