package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/testenv"
)

const (
	reloads = 1000
	growth  = 16 << 10 // KiB by which memory may vary
)

// TestReload_UnderLoad changes the configuration a thousand times under load: by a write, by a rename, and by swapping
// a symlink as Kubernetes does. Every other configuration is broken. No good delivery fails, and no bad one is
// accepted.
func TestReload_UnderLoad(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	r := &reloadTest{t: t, dir: t.TempDir()}
	buildShipped(t, r.dir)
	_, err := certs.Dev(filepath.Join(r.dir, "certs"), time.Now(), false)
	mustSucceed(t, err)
	r.mount(r.configuration("with guest"))
	serve := exec.Command(filepath.Join(r.dir, "sallyport"), "serve", "--config", filepath.Join(r.dir, "conf", "sallyport.yaml")) //nolint:noctx // ended by a signal
	logs := t.TempDir()
	url := startListening(t, logs, serve)
	r.log, err = os.Open(filepath.Join(logs, "log"))
	mustSucceed(t, err)
	defer func() { _ = r.log.Close() }()
	r.roots = roots(t, filepath.Join(r.dir, "certs", "ca.pem"))
	r.url = url + "/work"

	stop := r.startTraffic()
	guest := r.client(false) // on one connection for the whole test
	allowed, early := true, 0
	for i := range reloads {
		kind := []string{"without guest", "a key that is unknown", "with guest", "a secret that is missing"}[i%4]
		switch i % 4 {
		case 0:
			allowed = false
		case 2:
			allowed = true
		}
		[]func(string){r.write, r.rename, r.mount}[i%3](r.configuration(kind))
		if i%25 > 0 { // else the server notices the change by polling
			mustSucceed(t, serve.Process.Signal(syscall.SIGHUP))
		}
		r.awaitReload(i%2 == 0)
		status, err := r.send(t.Context(), guest, "the guest's token, of thirty-two bytes")
		mustSucceed(t, err)
		if ran := status == http.StatusOK || status == http.StatusServiceUnavailable; ran != allowed {
			t.Fatalf("reload %d, %s: the guest got status %d", i, kind, status)
		}
		if i == reloads/10 {
			early = readMemory(t, serve.Process.Pid, "VmRSS")
		}
	}
	stop()
	late := readMemory(t, serve.Process.Pid, "VmRSS")
	t.Logf("%d reloads, %d deliveries passed, %d were refused; %d KiB after a tenth of them, %d after all",
		reloads, r.passed.Load(), r.refused.Load(), early, late)
	if late > early+growth {
		t.Errorf("memory grew from %d to %d KiB", early, late)
	}
	if r.passed.Load() == 0 || r.refused.Load() == 0 {
		t.Error("no delivery was sent")
	}
}

// reloadTest is a server with a changing configuration.
type reloadTest struct {
	t     *testing.T
	dir   string
	url   string
	roots *x509.CertPool
	log   *os.File
	seen  []byte

	version         int
	passed, refused atomic.Int64
}

// configuration returns a configuration of some kind. All kinds accept the worker.
func (r *reloadTest) configuration(kind string) string {
	text := `
listen: "localhost:0"
state: DIR/state
tls: {cert: ../certs/server.pem, key: ../certs/server.key}
limits:
  address: {rate: 1000000/s, burst: 1000000}
  failures: {rate: 1000000/s, burst: 1000000}
  caller: {rate: 1000000/s, burst: 1000000}
callers:
  worker: {token: {keys: [{file: worker}]}}
  guest: {token: {keys: [{file: guest}]}}
hooks:
  work: {path: /work, callers: [worker, guest], command: [/bin/true]}
`
	switch kind {
	case "without guest":
		text = strings.ReplaceAll(strings.ReplaceAll(text, ", guest]", "]"), "  guest:", "  # guest:")
	case "a key that is unknown":
		text = strings.ReplaceAll(text, "command:", "comand:")
	case "a secret that is missing":
		text = strings.ReplaceAll(text, "file: guest", "file: nowhere")
	}
	return strings.ReplaceAll(text, "DIR", r.dir)
}

func (r *reloadTest) configPath(name ...string) string {
	return filepath.Join(append([]string{r.dir, "conf"}, name...)...)
}

func (r *reloadTest) write(text string) {
	r.t.Helper()
	write(r.t, r.configPath("sallyport.yaml"), []byte(text))
}

func (r *reloadTest) rename(text string) {
	r.t.Helper()
	write(r.t, r.configPath("..data", "new"), []byte(text))
	mustSucceed(r.t, os.Rename(r.configPath("..data", "new"), r.configPath("..data", "sallyport.yaml")))
}

// mount writes the files into a new folder, and swaps the symlink through which all of them are read.
func (r *reloadTest) mount(text string) {
	r.t.Helper()
	old := fmt.Sprint("..v", r.version)
	r.version++
	dir := fmt.Sprint("..v", r.version)
	mustSucceed(r.t, os.MkdirAll(r.configPath(dir), 0o700))
	for name, text := range map[string]string{
		"sallyport.yaml": text, "worker": "the worker's token, of thirty-two bytes", "guest": "the guest's token, of thirty-two bytes",
	} {
		write(r.t, r.configPath(dir, name), []byte(text))
		if r.version == 1 {
			mustSucceed(r.t, os.Symlink(filepath.Join("..data", name), r.configPath(name)))
		}
	}
	mustSucceed(r.t, os.Symlink(dir, r.configPath("..data_tmp")))
	mustSucceed(r.t, os.Rename(r.configPath("..data_tmp"), r.configPath("..data")))
	mustSucceed(r.t, os.RemoveAll(r.configPath(old)))
}

// awaitReload waits until the log reports the end of a reload that is good or not, as the configuration is.
func (r *reloadTest) awaitReload(good bool) {
	r.t.Helper()
	end := time.After(2 * time.Minute)
	for {
		more, err := io.ReadAll(r.log)
		mustSucceed(r.t, err)
		r.seen = append(r.seen, more...)
		if line, rest, ok := bytes.Cut(r.seen, []byte("\n")); ok {
			r.seen = rest
			yes, no := bytes.Contains(line, []byte(`"msg":"reloaded"`)), bytes.Contains(line, []byte(`"msg":"not reloaded`))
			if yes && good || no && !good {
				return
			}
			continue // the line of the reload before, when the server noticed its change by polling, too
		}
		select {
		case <-end:
			r.t.Fatal("timed out waiting for a reload")
		case <-time.After(time.Millisecond):
		}
	}
}

func (r *reloadTest) client(fresh bool) *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: r.roots, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true, DisableKeepAlives: fresh,
	}}
}

func (r *reloadTest) send(ctx context.Context, c *http.Client, token string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if res.StatusCode == http.StatusServiceUnavailable && !bytes.Contains(text, []byte("urn:sallyport:busy")) {
		return 0, fmt.Errorf("answered %s", text)
	}
	return res.StatusCode, err
}

// startTraffic sends good and bad deliveries, on kept connections and on new ones, until stop is called.
func (r *reloadTest) startTraffic() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var all sync.WaitGroup
	for i := range 4 {
		good, c := i%2 == 0, r.client(i < 2)
		all.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond) // leaves the processors to the reloads
			defer pace.Stop()
			for ctx.Err() == nil {
				<-pace.C
				token, count, want := "the worker's token, of thirty-two bytes", &r.passed, "200 503"
				if !good {
					token, count, want = "the worker's token, of thirty-two bytez", &r.refused, "401"
				}
				status, err := r.send(context.WithoutCancel(ctx), c, token)
				if err != nil || !strings.Contains(want, fmt.Sprint(status)) {
					r.t.Errorf("want %s, got %d %v", want, status, err)
					return
				}
				count.Add(1)
			}
		})
	}
	return func() { cancel(); all.Wait() }
}
