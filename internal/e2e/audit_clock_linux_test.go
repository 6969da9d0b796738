package e2e_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"sallyport/internal/testenv"
)

// TestAudit_ClockSetBack: a server that is killed just after the clock was set back and forward again starts again. The
// lines before and after the second step have no signature yet, and are far apart by their times.
func TestAudit_ClockSetBack(t *testing.T) {
	testenv.Long(t)
	program := filepath.Join(t.TempDir(), "sallyport")
	buildWithClock(t, program, "v1") // not in parallel: TestStress then finds the packages in the cache
	stepClock(t, program, 0)
	in := install(t, program, "\nhooks:\n  job: {callers: [load], command: [/bin/true]}\n")
	in.start(true)
	deliver := func(n int) {
		if run := in.deliver("job", fmt.Sprintf(`{"n":%d}`, n), "Prefer: wait=20").run(); run.ID == "" {
			t.Fatalf("delivery %d is not accepted", n)
		}
	}
	deliver(1)
	in.waitUntil("the checkpoint of the last line", func() bool {
		lines := bytes.Count(in.read("state/audit/00000000000000000001.jsonl"), []byte("\n"))
		return bytes.Contains(in.read("state/audit/checkpoint"), fmt.Appendf(nil, "\n%d\n", lines))
	})
	stepClock(t, program, -time.Hour)
	deliver(2)
	stepClock(t, program, 0)
	deliver(3)
	in.killServers()
	in.start(true)
	in.endServer()
}
