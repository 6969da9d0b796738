package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
	internals "sallyport/internal/e2e"
)

const (
	strangers  = 20
	theirBody  = 100 << 20 // bytes of each body
	memoryGoal = 64 << 10  // KiB of peak memory of the server

	// bodiesGoal is without the pages of the program's file. The system can drop those, and no client makes them more.
	bodiesGoal = 45 << 10 // KiB
)

// TestMemory_RefusedBodies sends bodies of 100 MB without a credential, twenty at once, to a server without the race
// detector, which would take more memory than the bodies.
func TestMemory_RefusedBodies(t *testing.T) {
	t.Parallel()
	dir := makeShippedFolder(t, `
callers:
  github: {hmac: {scheme: github, keys: [{file: secret}]}}
hooks:
  usual: {callers: [github], command: [/bin/true]}
  large: {callers: [github], command: [/bin/true], body: {max: 25MiB}} # the most that GitHub sends
`)
	trusted := roots(t, filepath.Join(dir, "certs", "ca.pem"))
	for _, kind := range []string{"declared", "chunked"} {
		for _, hook := range []string{"usual", "large"} {
			t.Run(kind+" for the "+hook+" hook", func(t *testing.T) {
				serve := exec.Command(filepath.Join(dir, "sallyport"), "serve", "--config", filepath.Join(dir, "sallyport.yaml")) //nolint:noctx // ended by a signal
				url := startListening(t, t.TempDir(), serve)
				before := peakMemory(t, serve.Process.Pid)
				var all sync.WaitGroup
				answers := make(chan string, strangers)
				for range strangers {
					all.Go(func() {
						answers <- upload(t, trusted, strings.TrimPrefix(url, "https://"), "/hooks/"+hook, kind == "chunked")
					})
				}
				all.Wait()
				close(answers)
				for a := range answers {
					if !strings.HasPrefix(a, "HTTP/1.1 413 ") && !strings.HasPrefix(a, "HTTP/1.1 503 ") {
						t.Errorf("answered %.200q", a)
					}
				}
				after, program := peakMemory(t, serve.Process.Pid), readMemory(t, serve.Process.Pid, "RssFile")
				t.Logf("peak memory %d KiB, %d before", after, before)
				if after-program > bodiesGoal {
					t.Errorf("peak memory %d KiB without %d KiB of the program is over the limit of %d", after, program, bodiesGoal)
				}
			})
		}
	}
}

const (
	stalled = 300
	asked   = 100 // requests while the uploads are held
	fewGCs  = 20  // allowed collections; if uploads kept it running, there would be one for each request
)

// TestMemory_StalledUploads holds many uploads that have sent a few bytes, as slow senders and attackers do, and counts
// how often the server collects garbage while it answers other requests.
func TestMemory_StalledUploads(t *testing.T) {
	t.Parallel()
	dir := makeShippedFolder(t, `
limits: {address: {rate: 1000/s, burst: 1000}, caller: {rate: 1000/s, burst: 1000}, connections_per_address: 1000}
metrics: {callers: [prometheus]}
callers:
  prometheus: {token: {keys: [{file: secret}]}}
hooks:
  usual: {callers: [prometheus], command: [/bin/true], body: {timeout: 10m}}
`)
	trusted := roots(t, filepath.Join(dir, "certs", "ca.pem"))
	serve := exec.Command(filepath.Join(dir, "sallyport"), "serve", "--config", filepath.Join(dir, "sallyport.yaml")) //nolint:noctx // ended by a signal
	address := strings.TrimPrefix(startListening(t, t.TempDir(), serve), "https://")
	for range stalled {
		c := dialTLS(t, trusted, address)
		_, err := fmt.Fprintf(c, "POST /hooks/usual HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n%s", bytes.Repeat([]byte("x"), 15<<10))
		mustSucceed(t, err)
	}
	c := dialTLS(t, trusted, address)
	answers := bufio.NewReader(c)
	collected := func() (cycles int) {
		t.Helper()
		_, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a secret of thirty-two bytes or so\r\n\r\n")
		mustSucceed(t, err)
		res, err := http.ReadResponse(answers, nil)
		mustSucceed(t, err)
		text, err := io.ReadAll(res.Body)
		mustSucceed(t, errors.Join(err, res.Body.Close()))
		found := regexp.MustCompile(`(?m)^go_gc_duration_seconds_count (\d+)$`).FindSubmatch(text)
		if found == nil {
			t.Fatalf("%s: %s", res.Status, text)
		}
		cycles, err = strconv.Atoi(string(found[1]))
		mustSucceed(t, err)
		return cycles
	}
	before := collected()
	for range asked - 1 {
		collected()
	}
	n := collected() - before
	t.Logf("%d collections while %d requests were answered and %d uploads held", n, asked, stalled)
	if n > fewGCs {
		t.Errorf("%d collections, but at most %d are allowed", n, fewGCs)
	}
}

// dialTLS connects to a server.
func dialTLS(t *testing.T, trusted *x509.CertPool, address string) *tls.Conn {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{RootCAs: trusted, ServerName: "localhost", MinVersion: tls.VersionTLS13}}
	c, err := d.DialContext(t.Context(), "tcp", address)
	mustSucceed(t, err)
	t.Cleanup(func() { _ = c.Close() })
	mustSucceed(t, c.SetDeadline(time.Now().Add(2*time.Minute)))
	return c.(*tls.Conn)
}

// makeShippedFolder creates a folder with the shipped program, certificates, a secret, and a configuration that ends
// with rest.
func makeShippedFolder(t *testing.T, rest string) (dir string) {
	t.Helper()
	dir = makeFolder(t, rest)
	buildShipped(t, dir)
	return dir
}

// makeFolder creates a folder with a configuration, certificates and a secret.
func makeFolder(t *testing.T, rest string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	_, err := certs.Dev(filepath.Join(dir, "certs"), time.Now(), false)
	mustSucceed(t, err)
	write(t, filepath.Join(dir, "secret"), []byte("a secret of thirty-two bytes or so"))
	write(t, filepath.Join(dir, "sallyport.yaml"), []byte(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
`+rest))
	return dir
}

// buildShipped puts the program into a folder as it is shipped: without the race detector. It is built once for all
// tests, so no test may write into it.
func buildShipped(t testing.TB, dir string) {
	t.Helper()
	file, err := shippedProgram()
	mustSucceed(t, err)
	mustSucceed(t, os.Link(file, filepath.Join(dir, "sallyport")))
}

var shippedProgram = sync.OnceValues(func() (string, error) { //nolint:gochecknoglobals // built once for all tests
	file := filepath.Join(internals.Builds, "sallyport")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", file, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, out)
	}
	return file, nil
})

// peakMemory returns the peak memory of a process in KiB.
func peakMemory(t testing.TB, pid int) int {
	t.Helper()
	return readMemory(t, pid, "VmHWM")
}

// readMemory returns the value of a line of /proc/PID/status in KiB.
func readMemory(t testing.TB, pid int, line string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	mustSucceed(t, err)
	found := regexp.MustCompile(line + `:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		t.Fatalf("no %s in %s", line, status)
	}
	n, err := strconv.Atoi(string(found[1]))
	mustSucceed(t, err)
	return n
}

// upload sends a body until the server answers or closes, and returns the answer.
func upload(t *testing.T, trusted *x509.CertPool, address, path string, chunked bool) string {
	t.Helper()
	plain, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		return err.Error()
	}
	c := tls.Client(plain, &tls.Config{RootCAs: trusted, ServerName: "localhost", MinVersion: tls.VersionTLS13})
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
			break // the server has closed the connection; its answer was read
		}
	}
	return <-answer
}
