package e2e_test

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/runner/process/rundir"

	"github.com/google/uuid"

	"sallyport/internal/testenv"
)

const keepHooks = `
outputs: 256KiB
hooks:
  fail:
    callers: [load]
    command: [DIR/fail.sh]
    params: {n: {from: body.n, type: int}}
    env: {N: "{n}"}
    flight: "{n}"
    output: {head: 16KiB, tail: 16KiB}
    keep: {count: 20}
`

// TestRetention_RepeatedFailures: records, folders and outputs stay within their limits, however many runs failed
// before. The server also removes what a crash left behind.
func TestRetention_RepeatedFailures(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	dir := t.TempDir()
	buildShipped(t, dir) // its runs take less time without the race detector
	k := &failingHook{installation: install(t, filepath.Join(dir, "sallyport"), keepHooks)}
	k.write("fail.sh", "#!/bin/sh\nhead -c 65536 /dev/zero\nexit 1\n", 0o755)
	k.start(true)
	k.failRuns(400)
	k.awaitLimits()
	folders, database := k.diskUsage("state/runs"), k.diskUsage("state/state.db")
	k.failRuns(400)
	k.awaitLimits()
	// The store keeps only the claim of each delivery, which recognizes a repetition. SQLite truncates its write-ahead
	// log to 32 MiB.
	f, d, log := k.diskUsage("state/runs"), k.diskUsage("state/state.db"), k.diskUsage("state/state.db-wal")
	t.Logf("folders %d and then %d bytes, database %d and %d, its log %d", folders, f, database, d, log)
	if f > folders+100<<10 || d > database+500<<10 || log > 40<<20 {
		t.Error("the disk usage grows with the number of runs")
	}

	// As if the server had been killed after it pruned these runs and before it removed their folders.
	k.endServer()
	known := k.listFolders()
	gone, held := known[0], known[1]
	db, err := sql.Open("sqlite", filepath.Join(k.dir, "state", "state.db"))
	mustSucceed(t, err)
	_, err = db.ExecContext(t.Context(), `DELETE FROM runs WHERE id IN ($1, $2)`, gone, held)
	mustSucceed(t, err)
	mustSucceed(t, db.Close())
	lock, err := os.Open(filepath.Join(k.dir, "state", "runs", held, "lock"))
	mustSucceed(t, err)
	defer func() { mustSucceed(t, lock.Close()) }()
	mustSucceed(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))
	for _, id := range []string{gone, held} { // as if they had been unknown for a long time
		mark, before := filepath.Join(k.dir, "state", "runs", id, "unknown"), time.Now().Add(-rundir.SweepAfter)
		mustSucceed(t, errors.Join(os.WriteFile(mark, nil, 0o600), os.Chtimes(mark, before, before)))
	}
	k.start(true)
	k.waitUntil("what a crash left to go", func() bool { return !slices.Contains(k.listFolders(), gone) })
	if left := k.listFolders(); !slices.Equal(left, known[1:]) {
		t.Errorf("%v are left, want %v", left, known[1:])
	}
	k.endServer()
}

// failingHook is an installation with a hook whose runs fail.
type failingHook struct {
	*installation
	n int
}

// failRuns makes a number of runs fail.
func (k *failingHook) failRuns(times int) {
	k.t.Helper()
	var all sync.WaitGroup
	for range 8 {
		from := k.n
		k.n += times / 8
		all.Go(func() {
			for n := from; n < from+times/8; n++ {
				a := k.deliver("fail", fmt.Sprintf(`{"n": %d}`, n), "Prefer: wait=60")
				if r := a.run(); a.code != http.StatusOK || r.ExitCode == nil || *r.ExitCode != 1 {
					k.t.Errorf("answered %d %s", a.code, a.body)
					return
				}
			}
		})
	}
	all.Wait()
}

// awaitLimits waits until everything is within its limits.
func (k *failingHook) awaitLimits() {
	k.t.Helper()
	k.waitUntil("20 runs to be left", func() bool {
		a := k.sendRequest(k.t.Context(), http.MethodGet, "/runs?limit=1000", "")
		return a.runs() == 20 && len(k.listFolders()) == 20
	})
	k.waitUntil("256 KiB of outputs to be left", func() bool {
		return k.diskUsage("state/runs/*/output")+k.diskUsage("state/runs/*/tail") <= 256<<10
	})
	if n := len(k.listFolders()); n != 20 {
		k.t.Errorf("%d folders are left of 20 runs", n)
	}
}

// listFolders returns the folders of runs, in order.
func (k *failingHook) listFolders() (names []string) {
	k.t.Helper()
	entries, err := os.ReadDir(filepath.Join(k.dir, "state", "runs"))
	mustSucceed(k.t, err)
	for _, e := range entries {
		if uuid.Validate(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

// diskUsage returns the disk space of all files that match a pattern.
func (in *installation) diskUsage(pattern string) (bytes int64) {
	in.t.Helper()
	roots, err := filepath.Glob(filepath.Join(in.dir, pattern))
	mustSucceed(in.t, err)
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // it was removed meanwhile
			}
			if info, err := d.Info(); err == nil {
				bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return nil
		})
	}
	return bytes
}
