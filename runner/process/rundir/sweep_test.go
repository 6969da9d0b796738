package rundir_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
	"sallyport/runner/process/rundir"
)

const kept = 64 << 10 // bytes that each run of these tests writes

// newHoard returns a Bench whose command writes, and then waits until its run is released.
func newHoard(t *testing.T) (b *processtest.Bench, release func(run string)) {
	t.Helper()
	gates := t.TempDir()
	b = processtest.NewBench(t, hook.Spec{Command: processtest.Script(t,
		`head -c 65536 /dev/zero; until [ -e "$1/$SALLYPORT_RUN" ]; do sleep 0.01; done`, gates)})
	return b, func(run string) {
		if err := os.WriteFile(filepath.Join(gates, run), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// startWriter starts a run and waits until it has written everything.
func startWriter(t *testing.T, b *processtest.Bench) (run string) {
	t.Helper()
	run = b.Begin(t, processtest.NewOrder())
	processtest.Eventually(t, "all is written", func() bool {
		info, err := os.Stat(filepath.Join(b.Dir, run, "output"))
		return err == nil && info.Size() == kept
	})
	return run
}

// having returns the runs that have a file or folder with the name.
func having(b *processtest.Bench, runs []string, file string) (some []string) {
	for _, run := range runs {
		if _, err := os.Stat(filepath.Join(b.Dir, run, file)); err == nil {
			some = append(some, run)
		}
	}
	return some
}

// TestQuota_OldestOutputs checks that the quota removes the oldest outputs, and none of a run in progress.
func TestQuota_OldestOutputs(t *testing.T) {
	b, release := newHoard(t)
	var runs []string
	for i := range 6 {
		runs = append(runs, startWriter(t, b))
		if i > 0 {
			release(runs[i])
			processtest.CheckExit(t, b.AwaitEnd(t, runs[i]), 0)
		}
	}
	freed, err := rundir.Trim(b.Dir, 3*kept)
	if want := []string{runs[0], runs[4], runs[5]}; err != nil || freed != 3*kept || !slices.Equal(having(b, runs, "output"), want) {
		t.Errorf("freed %d of %v, %v: %v are left, want %v", freed, runs, err, having(b, runs, "output"), want)
	}
	if got := having(b, runs, "status"); !slices.Equal(got, runs) {
		t.Errorf("more than outputs went: %v have a status", got)
	}
	release(runs[0])
	processtest.CheckExit(t, b.AwaitEnd(t, runs[0]), 0)
	if freed, err = rundir.Trim(b.Dir, 0); err != nil || freed != 3*kept {
		t.Errorf("freed %d, %v", freed, err)
	}
}

// TestSweep_UnknownRuns checks that folders of unknown runs are removed, unless a process of the run is alive.
func TestSweep_UnknownRuns(t *testing.T) {
	b, release := newHoard(t)
	known, forgotten, lives := startWriter(t, b), startWriter(t, b), startWriter(t, b)
	for _, run := range []string{known, forgotten} {
		release(run)
		processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	}
	for range 300 { // of several steps
		if err := os.MkdirAll(filepath.Join(b.Dir, processtest.NewOrder().Run, "work"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	asked := map[string]int{}
	removed, err := rundir.Sweep(t.Context(), b.Dir, 0, func(run string) (bool, error) {
		asked[run]++
		return run == known, nil
	})
	if err != nil || removed != 301 || len(asked) != 303 {
		t.Errorf("removed %d of %d, %v", removed, len(asked), err)
	}
	all := []string{known, forgotten, lives}
	if got, want := having(b, all, "."), []string{known, lives}; !slices.Equal(got, want) {
		t.Errorf("of %v %v are left, want %v", all, got, want)
	}
	if got := having(b, []string{"active", "ready"}, "."); len(got) != 2 {
		t.Errorf("of the supervisor's own folders only %v are left", got)
	}
	release(lives)
	processtest.CheckExit(t, b.AwaitEnd(t, lives), 0)
	o := processtest.NewOrder()
	o.Run = forgotten
	b.Begin(t, o) // for the clean-up, which asks for its end
}

// TestSweep_LookupFails checks that no folder is removed if the known runs cannot be looked up.
func TestSweep_LookupFails(t *testing.T) {
	b, release := newHoard(t)
	run := startWriter(t, b)
	release(run)
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	unavailable := errors.New("unavailable")
	if _, err := rundir.Sweep(t.Context(), b.Dir, 0, func(string) (bool, error) { return false, unavailable }); !errors.Is(err, unavailable) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := rundir.Sweep(ctx, b.Dir, 0, func(string) (bool, error) { return false, nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(having(b, []string{run}, "output")) == 0 {
		t.Error("it was removed")
	}
}

// TestSweep_OneFolderFails checks that a folder that cannot be removed does not keep the others from being removed.
func TestSweep_OneFolderFails(t *testing.T) {
	dir := t.TempDir()
	var stubborn []string
	for i := range 40 {
		run, inside := processtest.NewOrder().Run, "work"
		if i%3 == 0 {
			stubborn, inside = append(stubborn, run), "lock" // the lock is not a file, so it cannot be tested
		}
		if err := os.MkdirAll(filepath.Join(dir, run, inside), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := rundir.Sweep(t.Context(), dir, 0, func(string) (bool, error) { return false, nil })
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if removed != 40-len(stubborn) || len(left) != len(stubborn) {
		t.Errorf("removed %d, and %d are left, want %d", removed, len(left), len(stubborn))
	}
	if err == nil || strings.Count(err.Error(), "removing run") != 10 || !strings.HasSuffix(err.Error(), fmt.Sprintf("and %d more", len(stubborn)-10)) {
		t.Errorf("%v", err)
	}
}

// TestSweep_UnknownForADay checks that folders of unknown runs stay for a day. A database that was replaced by an
// older one does not know the newer runs, and can be restored until then.
func TestSweep_UnknownForADay(t *testing.T) {
	b, release := newHoard(t)
	run := startWriter(t, b)
	release(run)
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	unknown := func(string) (bool, error) { return false, nil }
	sweep := func(known func(string) (bool, error)) int {
		t.Helper()
		removed, err := rundir.Sweep(t.Context(), b.Dir, rundir.SweepAfter, known)
		if err != nil {
			t.Fatal(err)
		}
		return removed
	}
	mark := filepath.Join(b.Dir, run, "unknown")
	age := func() {
		t.Helper()
		before := time.Now().Add(-rundir.SweepAfter)
		if err := os.Chtimes(mark, before, before); err != nil {
			t.Fatal(err)
		}
	}
	if n := sweep(unknown) + sweep(unknown); n != 0 {
		t.Errorf("%d folders were removed at once", n)
	}
	age()
	if sweep(func(string) (bool, error) { return true, nil }) != 0 {
		t.Error("a known run was removed")
	}
	if sweep(unknown) != 0 {
		t.Error("a run that was known in between was removed at once")
	}
	age()
	if sweep(unknown) != 1 {
		t.Error("a run that was unknown for a day is still there")
	}
	o := processtest.NewOrder()
	o.Run = run
	b.Begin(t, o) // for the clean-up, which asks for its end
}
