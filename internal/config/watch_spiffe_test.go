package config_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"sallyport/internal/spiffetest"
	"sallyport/internal/testenv"
)

// goroutines returns the stacks of the goroutines that wait for a Workload API or a CA.
func goroutines() []string {
	return testenv.FindGoroutines("grpc.(*ClientConn)", "go-spiffe", "certs.(*renewal)", "crypto/acme")
}

// TestReload_RefusedLeavesNothing loads a configuration that names a Workload API and a CA, and is refused each time:
// no connection stays open, and no request is sent to the CA.
func TestReload_RefusedLeavesNothing(t *testing.T) {
	p := startWatching(t)
	corp, err := spiffetest.NewDomain("spiffe://corp")
	if err != nil {
		t.Fatal(err)
	}
	svid, err := corp.SVID("spiffe://corp/sallyport", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent.sock")
	agent, err := spiffetest.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Stop)
	if err := agent.Issue(svid, corp); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	ca := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(ca.Close)
	tls := fmt.Sprintf(`, spiffe: {socket: "unix://%s"}, acme: {domains: [a.example.com], directory: %q, accept_tos: true}`, socket, ca.URL)

	p.setRefusal(errors.New("no room for the audit"))
	p.configureTLS(tls, "worker")
	for n := 1; n <= 2; n++ {
		p.hup <- syscall.SIGHUP
		testenv.WaitUntil(t, "a refusal", func() bool { return p.Status().Failures >= n })
		testenv.WaitUntil(t, "the end of the watch", func() bool { return agent.Calls() == 0 })
		testenv.WaitUntil(t, "the end of all goroutines", func() bool { return len(goroutines()) == 0 })
	}
	p.configureTLS(tls+", client_ca: missing.pem", "worker") // a fault in the file itself
	p.hup <- syscall.SIGHUP
	testenv.WaitUntil(t, "a refusal", func() bool { return p.logs.Count("missing.pem") > 0 })
	testenv.WaitUntil(t, "the end of the watch", func() bool { return agent.Calls() == 0 })
	testenv.WaitUntil(t, "the end of all goroutines", func() bool { return len(goroutines()) == 0 })
	if asked.Load() > 0 {
		t.Error("the CA of a refused configuration was asked")
	}
	if p.logs.Count("svid issued") > 0 {
		t.Errorf("the log has what a refused configuration led to:\n%s", &p.logs)
	}
}

// TestWatch_EndsDuringAWait ends a server while a reload waits for a Workload API that never answers. During that wait,
// the clock of the bubble stands still, so only the end of the server can end the wait.
func TestWatch_EndsDuringAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "agent.sock")
		accepted, stop, err := spiffetest.Hang(socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop) // when the watch has ended
		p := startWatching(t)
		p.configureTLS(fmt.Sprintf(`, spiffe: {socket: "unix://%s"}`, socket), "worker")
		p.hup <- syscall.SIGHUP
		<-accepted
	})
}
