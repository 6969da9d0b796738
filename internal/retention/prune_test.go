package retention_test

import (
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/internal/config"
	"sallyport/internal/retention"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// TestPruneRuns_NewestUnreadable: the newest run cannot be read, so it is not known whether the clock was set, and
// nothing is removed. Pauses end and queued runs expire all the same, also those of hooks after one whose queue cannot
// be read.
func TestPruneRuns_NewestUnreadable(t *testing.T) {
	t.Parallel()
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), dir, time.Now, log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}()
	up := 100 * time.Hour
	st.Uptime = func() time.Duration { return up }
	hooks, policy := map[string]*hook.Hook{}, hook.Policy{Kind: hook.Queue, Depth: 9}
	var queued []string
	for i, name := range []string{"broken", "build"} {
		hooks[name] = &hook.Hook{Name: name, QueueTimeout: time.Minute}
		for n := range 2 {
			run := runner.Run{ID: runner.LowestID(time.Now().Add(-time.Duration(8-4*i-n) * time.Second)), Hook: name, Flight: name, Created: time.Now()}
			if _, err := st.Admit(t.Context(), run, runner.Claim{}, policy, runner.Feed{}); err != nil {
				t.Fatal(err)
			}
			queued = append(queued, run.ID)
		}
	}
	newest := runner.Run{ID: runner.LowestID(time.Now()), Hook: "other", Flight: "other", Created: time.Now()}
	if _, err := st.Admit(t.Context(), newest, runner.Claim{}, policy, runner.Feed{}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Pause(t.Context(), runner.Pause{Hook: "build", Reason: "r", By: "uid 0", Length: time.Minute}); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "UPDATE runs SET params = '{' WHERE id IN ($1, $2)", newest.ID, queued[1]); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	up += time.Hour
	byName := func(name string) (*hook.Hook, bool) { h, ok := hooks[name]; return h, ok }
	runs := runner.New(st, nil, byName, time.Now, log)
	retention.PruneOnce(t.Context(), &config.Config{State: dir, Hooks: hooks}, runs, st, log)
	if run, err := st.Get(t.Context(), queued[3]); err != nil || run.State != runner.TimedOut {
		t.Errorf("the queued run is %+v, %v", run, err)
	}
	if list, err := st.Pauses(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("the pauses are %+v, %v", list, err)
	}
	if ended, err := st.EndPauses(t.Context()); err != nil || len(ended) > 0 {
		t.Errorf("a pause was not ended: %v, %v", ended, err)
	}
}
