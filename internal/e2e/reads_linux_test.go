package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

const (
	largeRuns   = 120
	largeParams = 15 // parameters of 64 KiB each
	readsAtOnce = 12
	readsGoal   = 150 << 10 // KiB of peak memory of the server
)

// TestReads_LargestAtOnce reads as much as one caller can at once, from a server without the race detector. The server
// answers the deliveries of another caller, and its memory stays within a limit.
func TestReads_LargestAtOnce(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	dir := makeShippedFolder(t, `
limits: {address: {rate: 10000/s, burst: 10000}, caller: {rate: 10000/s, burst: 10000}}
callers:
  reader: {token: {keys: [{file: secret}]}}
  sender: {token: {header: X-Token, keys: [{file: secret}]}}
hooks:
  large: {callers: [{caller: reader, may: [start, read]}], command: [/bin/true]}
  other: {callers: [sender], command: [/bin/true], busy: {queue: 1000}}
`)
	mustSucceed(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
	fillLarge(t, filepath.Join(dir, "state"))
	trusted := roots(t, filepath.Join(dir, "certs", "ca.pem"))
	serve := exec.Command(filepath.Join(dir, "sallyport"), "serve", "--config", filepath.Join(dir, "sallyport.yaml")) //nolint:noctx // ended by a signal
	address := strings.TrimPrefix(startListening(t, t.TempDir(), serve), "https://")
	before := peakMemory(t, serve.Process.Pid)
	ask := func(request string) string {
		c := dialTLS(t, trusted, address)
		if _, err := io.WriteString(c, request); err != nil {
			return err.Error()
		}
		answer, err := io.ReadAll(c)
		return string(answer) + fmt.Sprint(errors.Join(err, c.Close()))
	}
	var reads, all sync.WaitGroup
	for range readsAtOnce {
		reads.Go(func() {
			a := ask("GET /runs?limit=1000 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer a secret of thirty-two bytes or so\r\n\r\n")
			if !strings.HasPrefix(a, "HTTP/1.1 200 ") && !strings.HasPrefix(a, "HTTP/1.1 429 ") {
				t.Errorf("read: %.300q", a)
			}
		})
	}
	all.Go(func() {
		for i := range 20 {
			began := time.Now()
			a := ask(fmt.Sprintf("POST /hooks/other HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Token: a secret of thirty-two bytes or so\r\nContent-Length: 2\r\n\r\n%02d", i))
			if !strings.HasPrefix(a, "HTTP/1.1 20") {
				t.Errorf("delivery: %.300q", a)
			}
			t.Logf("delivery %d was answered after %s", i, time.Since(began).Round(time.Millisecond))
		}
	})
	reads.Wait()
	all.Wait()
	after := peakMemory(t, serve.Process.Pid)
	t.Logf("peak memory %d KiB, %d before", after, before)
	if after > readsGoal {
		t.Errorf("peak memory %d KiB is over the limit of %d", after, readsGoal)
	}
}

// fillLarge records runs with as many parameters as fit into a body.
func fillLarge(t *testing.T, state string) {
	t.Helper()
	s, err := store.Open(t.Context(), state, time.Now, slog.New(slog.DiscardHandler))
	mustSucceed(t, err)
	long := strings.Repeat("x", 64<<10)
	params := map[string]string{}
	for i := range largeParams {
		params[fmt.Sprint("p", i)] = long
	}
	for range largeRuns {
		id, err := uuid.NewV7()
		mustSucceed(t, err)
		r := runner.Run{ID: id.String(), Hook: "large", Caller: "reader", Flight: id.String(), Params: params, Created: time.Now()}
		_, err = s.Admit(t.Context(), r, runner.Claim{}, hook.Policy{}, runner.Feed{})
		mustSucceed(t, err)
		_, _, err = s.Finish(t.Context(), r.ID, runner.Succeeded, runner.End{Ended: time.Now()},
			runner.KeepClaims, runner.LeaveQueued)
		mustSucceed(t, err)
	}
	mustSucceed(t, s.Close())
}
