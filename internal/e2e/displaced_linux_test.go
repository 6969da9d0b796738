package e2e_test

import (
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/runner/supervisor"
)

// TestDisplacedServer_Ends: when another server takes over the supervisor, the server ends with an error, so that its
// service manager notices. Runs in progress go on.
func TestDisplacedServer_Ends(t *testing.T) {
	t.Parallel()
	in := install(t, "sallyport", acceptedHook)
	in.write("job.sh", acceptedJob, 0o755)
	in.write("witness", "", 0o600)
	in.start(true)
	id := in.deliver("job", `{"n": 0}`).run().ID
	in.waitUntil("the run to begin", func() bool { return in.countBegun(id) == 1 })
	version, err := exec.CommandContext(t.Context(), in.program, "version").Output()
	mustSucceed(t, err)
	other, err := supervisor.Connect(t.Context(), supervisor.Options{
		State: filepath.Join(in.dir, "state"), Config: filepath.Join(in.dir, "sallyport.yaml"), Exe: in.program,
		Version: strings.TrimSpace(strings.TrimPrefix(string(version), "sallyport ")), Log: slog.New(slog.DiscardHandler),
	})
	mustSucceed(t, err)
	in.waitUntil("the server to end", func() bool {
		select {
		case <-in.ended:
			return true
		default:
			return false
		}
	})
	if code := in.server.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	in.awaitText("another server took over the supervisor")
	if runs, err := other.List(); err != nil || len(runs) != 1 || runs[0] != id {
		t.Errorf("in progress are %v, %v", runs, err)
	}
	in.write("go", "", 0o600)
	ends, err := other.Follow(id)
	mustSucceed(t, err)
	if e := <-ends; e.ExitCode == nil || *e.ExitCode != 0 {
		t.Errorf("got %+v", e)
	}
	mustSucceed(t, other.Close())
}
