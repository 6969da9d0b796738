package main_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/certs"
)

const (
	strangers  = 20
	theirBody  = 100 << 20 // bytes each
	memoryGoal = 64 << 10  // KiB, of the whole server at its largest
)

// TestStrangersBodiesTakeNoMemory sends bodies of 100 MB, twenty at once and
// all without a credential, to a server that is built as it is shipped: the race
// detector would take more than they.
func TestStrangersBodiesTakeNoMemory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shipped(t, dir)
	_, err := certs.Dev(filepath.Join(dir, "certs"), time.Now(), false)
	check(t, err)
	write(t, filepath.Join(dir, "secret"), []byte("a secret of thirty-two bytes or so"))
	write(t, filepath.Join(dir, "sallyport.yaml"), []byte(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
callers:
  github: {hmac: {scheme: github, keys: [{file: secret}]}}
hooks:
  usual: {callers: [github], command: [/bin/true]}
  large: {callers: [github], command: [/bin/true], body: {max: 25MiB}} # the most that GitHub sends
`))
	for _, kind := range []string{"declared", "chunked"} {
		for _, hook := range []string{"usual", "large"} {
			t.Run(kind+" for the "+hook+" hook", func(t *testing.T) {
				serve := exec.Command(filepath.Join(dir, "sallyport"), "serve", "--config", filepath.Join(dir, "sallyport.yaml")) //nolint:noctx // ended by a signal
				url := listening(t, t.TempDir(), serve)
				before := highWater(t, serve.Process.Pid)
				var all sync.WaitGroup
				answers := make(chan string, strangers)
				for range strangers {
					all.Go(func() {
						answers <- upload(t, dir, strings.TrimPrefix(url, "https://"), "/hooks/"+hook, kind == "chunked")
					})
				}
				all.Wait()
				close(answers)
				for a := range answers {
					if !strings.HasPrefix(a, "HTTP/1.1 413 ") && !strings.HasPrefix(a, "HTTP/1.1 503 ") {
						t.Errorf("answered %.200q", a)
					}
				}
				after := highWater(t, serve.Process.Pid)
				t.Logf("%d KiB at its largest, %d before", after, before)
				if after > memoryGoal {
					t.Errorf("the server took %d KiB, and %d are allowed", after, memoryGoal)
				}
			})
		}
	}
}

// shipped builds the program into a folder as it is shipped.
func shipped(t testing.TB, dir string) {
	t.Helper()
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "sallyport"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
}

// highWater is the most memory that a process ever had, in KiB.
func highWater(t testing.TB, pid int) int {
	t.Helper()
	return memory(t, pid, "VmHWM")
}

// memory is a line of /proc/PID/status, in KiB.
func memory(t testing.TB, pid int, line string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(t, err)
	found := regexp.MustCompile(line + `:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		t.Fatalf("no %s in %s", line, status)
	}
	n, err := strconv.Atoi(string(found[1]))
	check(t, err)
	return n
}

// upload sends as much of a body as the server takes and returns its answer.
func upload(t *testing.T, dir, address, path string, chunked bool) string {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(dir, "certs", "ca.pem"))
	if err != nil {
		return err.Error()
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	plain, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		return err.Error()
	}
	c := tls.Client(plain, &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13})
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err.Error()
	}
	answer := make(chan string, 1)
	part := bytes.Repeat([]byte("x"), 64<<10)
	header := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", path, theirBody)
	if chunked {
		header = fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", path)
		part = fmt.Appendf(nil, "%x\r\n%s\r\n", len(part), part)
	}
	if _, err := io.WriteString(c, header); err != nil {
		return err.Error()
	}
	go func() {
		b, err := io.ReadAll(c)
		answer <- string(b) + fmt.Sprint(" ", err)
	}()
	for range theirBody / (64 << 10) {
		if _, err := c.Write(part); err != nil {
			break // the server has closed; what it answered was read
		}
	}
	return <-answer
}
