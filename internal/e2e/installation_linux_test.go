package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/client"
	"sallyport/internal/pathsafe"
	"sallyport/runner"
)

const patience = 30 * time.Second // a limit for steps that take milliseconds on an idle machine

// installation is the program in a folder, with certificates and a caller named load that has no limits.
type installation struct {
	t       testing.TB
	dir     string
	program string
	log     *os.File
	prepare func(*exec.Cmd) // changes the command of a server before it starts; may be nil
	server  *exec.Cmd
	ended   <-chan struct{} // closed when the server has ended
	url     atomic.Pointer[string]
	http    *http.Client
	sign    client.Signer
}

const installed = `
listen: "localhost:0"
state: DIR/state
tls: {cert: DIR/certs/server.pem, key: DIR/certs/server.key}
limits: {address: {rate: 1000000/s, burst: 1000000}, caller: {rate: 1000000/s, burst: 1000000}, connections_per_address: 1024}
callers:
  load: {hmac: {scheme: github, keys: [{file: DIR/secret}]}, replay: check}
`

// install prepares a program. more is appended to the configuration above; DIR in it is replaced by the folder.
func install(t testing.TB, program, more string) *installation {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	in := &installation{t: t, dir: t.TempDir(), program: path}
	if _, err := certs.Dev(filepath.Join(in.dir, "certs"), time.Now(), false); err != nil {
		t.Fatal(err)
	}
	secret := []byte("a secret of thirty-two bytes or so")
	in.write("secret", string(secret), 0o600)
	in.write("sallyport.yaml", strings.ReplaceAll(installed+more, "DIR", in.dir), 0o600)
	if in.log, err = os.OpenFile(filepath.Join(in.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600); err != nil {
		t.Fatal(err)
	}
	if in.sign, err = client.HMAC("github", secret); err != nil {
		t.Fatal(err)
	}
	in.http = &http.Client{Timeout: 2 * patience, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots(t, filepath.Join(in.dir, "certs/ca.pem")), MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true,
	}}
	t.Cleanup(in.endProcesses)
	return in
}

func (in *installation) write(name, text string, mode os.FileMode) {
	in.t.Helper()
	if err := os.WriteFile(filepath.Join(in.dir, name), []byte(text), mode); err != nil {
		in.t.Fatal(err)
	}
}

func (in *installation) read(name string) []byte {
	in.t.Helper()
	b, err := os.ReadFile(filepath.Join(in.dir, name))
	if err != nil {
		in.t.Fatal(err)
	}
	return b
}

// endProcesses ends all processes. If the test failed, it keeps the log and the witness file.
func (in *installation) endProcesses() {
	if in.server != nil {
		in.killServer()
	}
	for end := time.Now().Add(patience); ; <-time.After(10 * time.Millisecond) {
		pid, sig := in.supervisor(), syscall.SIGTERM // SIGTERM also ends its runs
		if time.Now().After(end) {
			in.t.Errorf("the supervisor does not end")
			sig = syscall.SIGKILL
		}
		if pid == 0 || syscall.Kill(pid, sig) != nil || sig == syscall.SIGKILL {
			break
		}
	}
	in.http.CloseIdleConnections()
	_ = in.log.Close()
	if !in.t.Failed() {
		return
	}
	log := filepath.Join(os.TempDir(), "sallyport-"+strings.ReplaceAll(in.t.Name(), "/", "-")+".log")
	witness, _ := os.ReadFile(filepath.Join(in.dir, "witness")) // not every test has one
	in.t.Logf("the log is kept as %s: %v", log, os.WriteFile(log, append(in.read("log"), witness...), 0o600))
}

// start starts a server. With await, it returns when the server serves.
func (in *installation) start(await bool) {
	in.t.Helper()
	from, err := in.log.Seek(0, io.SeekEnd)
	mustSucceed(in.t, err)
	cmd, ended := exec.CommandContext(context.Background(), in.program, "serve", "-c", filepath.Join(in.dir, "sallyport.yaml")), make(chan struct{})
	cmd.Stdout, cmd.Stderr = in.log, in.log
	if in.prepare != nil {
		in.prepare(cmd)
	}
	mustSucceed(in.t, cmd.Start())
	go func() {
		_ = cmd.Wait() // tests read ProcessState
		close(ended)
	}()
	in.server, in.ended = cmd, ended
	if await {
		in.waitUntil("the server to serve", func() bool { return in.isServing(from) })
	}
}

// isServing reports whether a server logged that it serves, from an offset in the log on. Later requests go to that
// server.
func (in *installation) isServing(from int64) bool {
	in.t.Helper()
	found := regexp.MustCompile(`"msg":"serving","address":"(https://[^"]+)"`).FindAllSubmatch(in.read("log")[from:], -1)
	if found == nil {
		return false
	}
	url := string(found[len(found)-1][1])
	in.url.Store(&url)
	return true
}

// killServer kills the server process alone.
func (in *installation) killServer() {
	_ = in.server.Process.Kill() // it may have ended
	<-in.ended
}

// endServer ends the server. It must leave no run and no supervisor.
func (in *installation) endServer() {
	in.t.Helper()
	mustSucceed(in.t, in.server.Process.Signal(syscall.SIGTERM))
	<-in.ended
	if !in.server.ProcessState.Success() {
		in.t.Errorf("the server did not end well: %v", in.server.ProcessState)
	}
}

func (in *installation) waitUntil(what string, done func() bool) {
	in.t.Helper()
	end := time.After(patience)
	for !done() {
		select {
		case <-end:
			in.printStacks()
			in.t.Fatalf("timed out waiting for %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// printStacks has all processes end with their stacks in the log.
func (in *installation) printStacks() {
	for _, pid := range append(in.servers(), in.supervisor()) {
		if pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGQUIT) // it may have ended
		}
	}
	for end := time.Now().Add(5 * time.Second); len(in.servers()) > 0 && time.Now().Before(end); {
		<-time.After(10 * time.Millisecond)
	}
}

// supervisor returns the pid of the supervisor, or 0 if there is none. A command that was just forked has the command
// line of the supervisor, so the oldest process is the supervisor.
func (in *installation) supervisor() (oldest int) {
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is valid
	for _, p := range processes {
		line, _ := os.ReadFile(filepath.Join(p, "cmdline")) // the process may have ended
		if pid, err := strconv.Atoi(filepath.Base(p)); err == nil && bytes.Contains(line, []byte("\x00supervise\x00--state\x00"+in.dir)) &&
			(oldest == 0 || cmp.Or(cmp.Compare(startTicks(pid), startTicks(oldest)), cmp.Compare(pid, oldest)) < 0) {
			oldest = pid
		}
	}
	return oldest
}

// servers returns the processes that serve or are about to, the oldest first.
func (in *installation) servers() (pids []int) {
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is valid
	for _, p := range processes {
		line, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		if pid, err := strconv.Atoi(filepath.Base(p)); err == nil && bytes.Contains(line, []byte("\x00serve\x00-c\x00"+in.dir)) {
			pids = append(pids, pid)
		}
	}
	slices.SortFunc(pids, func(a, b int) int { return cmp.Compare(startTicks(a), startTicks(b)) })
	return pids
}

// startTicks returns when a process was started, in ticks since the machine was.
func startTicks(pid int) (ticks int) {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	if fields := strings.Fields(rest); len(fields) > 19 {
		ticks, _ = strconv.Atoi(fields[19])
	}
	return ticks
}

// killServers kills the servers, and returns when none is left and none holds the state folder. A process that was
// killed or just forked has no command line, and may still hold the locks.
func (in *installation) killServers() {
	in.t.Helper()
	in.waitUntil("the servers to be dead", func() bool {
		pids := in.servers()
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
		}
		return len(pids) == 0 && in.isFree() && len(in.servers()) == 0
	})
}

// isFree says whether a server could take the state folder.
func (in *installation) isFree() bool {
	lock, err := pathsafe.LockFolder(filepath.Join(in.dir, "state"))
	if err == nil {
		mustSucceed(in.t, lock.Close())
	}
	return !errors.Is(err, pathsafe.ErrLocked)
}

// reply is an answer whose body was read. Its code is 0 if no answer came.
type reply struct {
	code   int
	header http.Header
	body   []byte
}

// run returns the run in an answer.
func (a reply) run() (r runner.Run) {
	_ = json.Unmarshal(a.body, &r) // zero in a problem
	return r
}

// runs returns the number of runs on a page of the list.
func (a reply) runs() int {
	var page struct{ Runs []runner.Run }
	_ = json.Unmarshal(a.body, &page) // zero in a problem
	return len(page.Runs)
}

// sendRequest sends a signed request. Each of more is a header field, "Name: value".P born is => born returns when a
// process was started, in ticks since the machine was.
func (in *installation) sendRequest(ctx context.Context, method, path, body string, more ...string) reply {
	header, err := in.sign("", []byte(body), time.Now())
	if err != nil {
		in.t.Error(err)
		return reply{}
	}
	req, err := http.NewRequestWithContext(ctx, method, *in.url.Load()+path, strings.NewReader(body))
	if err != nil {
		in.t.Error(err)
		return reply{}
	}
	maps.Copy(req.Header, header)
	req.Header.Set("Content-Type", "application/json")
	for _, field := range more {
		name, value, _ := strings.Cut(field, ": ")
		req.Header.Set(name, value)
	}
	res, err := in.http.Do(req)
	if err != nil {
		return reply{}
	}
	defer func() { _ = res.Body.Close() }()
	a := reply{res.StatusCode, res.Header, nil}
	if a.body, err = io.ReadAll(res.Body); err != nil {
		return reply{}
	}
	return a
}

// deliver sends a delivery to a hook.
func (in *installation) deliver(hook, body string, more ...string) reply {
	return in.sendRequest(context.Background(), http.MethodPost, "/hooks/"+hook, body, more...)
}
