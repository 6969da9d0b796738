package rundir_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"sallyport/runner"
	"sallyport/runner/process/processtest"
	"sallyport/runner/process/rundir"
)

// TestRemoveUnstarted_SparesRevoked checks that RemoveUnstarted removes what is left of a run without a status, but
// not the folder of a concurrent revocation.
func TestRemoveUnstarted_SparesRevoked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs")
	runs, err := rundir.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = runs.Root.Close() }()
	id := processtest.NewOrder().Run
	folder := filepath.Join(dir, id)
	for _, left := range []string{"", ".", "work/of/it"} { // nothing, an empty folder, and a folder that is not empty
		if left != "" {
			if err := os.MkdirAll(filepath.Join(folder, left), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := runs.RemoveUnstarted(id); err != nil {
			t.Errorf("left %q: %v", left, err)
		}
		if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left %q: %v", left, err)
		}
	}
	if revoked, err := rundir.Revoke(runs.Root, id, runner.Cancelled); err != nil || !revoked {
		t.Fatal(revoked, err)
	}
	if err := runs.RemoveUnstarted(id); err != nil {
		t.Error(err)
	}
	if s, err := runs.ReadStatus(id); err != nil || !s.IsRevoked() {
		t.Errorf("got %+v, %v", s, err)
	}
}

// TestOpen_MovesBeforeItEmpties checks that a starting supervisor empties a folder in ready/ only under another name.
// So a rename to the id of a run, as Revoke does it at the worst moment, finds a whole folder or none.
func TestOpen_MovesBeforeItEmpties(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs")
	if err := os.MkdirAll(filepath.Join(dir, "ready", "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	const files = 5000 // so that it takes some time to remove them
	name := filepath.Join(dir, "ready", "folder")
	for i := range files {
		if err := os.WriteFile(filepath.Join(name, strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opened := make(chan error, 1)
	go func() {
		runs, err := rundir.Open(dir, slog.New(slog.DiscardHandler))
		if err == nil {
			err = runs.Root.Close()
		}
		opened <- err
	}()
	for whole := true; whole; {
		found, err := os.ReadDir(name)
		whole = err == nil && len(found) == files
	}
	if err := os.Rename(name, filepath.Join(dir, processtest.NewOrder().Run)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder is found while it is emptied: %v", err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// TestRevoke_StartingSupervisor checks that a revocation leaves a folder with its status, or none, while supervisors
// start that remove the folders of no run. An empty folder would let the command of the revoked run start.
func TestRevoke_StartingSupervisor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs")
	open := func() *rundir.Runs {
		runs, err := rundir.Open(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Error(err)
			return nil
		}
		return runs
	}
	runs := open()
	defer func() { _ = runs.Root.Close() }()
	var starts sync.WaitGroup
	defer starts.Wait()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	starts.Go(func() {
		for ctx.Err() == nil {
			if other := open(); other != nil {
				_ = other.Root.Close()
			}
		}
	})
	for range 300 {
		id := processtest.NewOrder().Run
		revoked, err := rundir.Revoke(runs.Root, id, runner.Cancelled)
		s, unread := runs.ReadStatus(id)
		switch {
		case revoked && (err != nil || unread != nil || !s.IsRevoked()):
			t.Fatalf("revoked: %v, %+v, %v", err, s, unread)
		case !revoked && !errors.Is(err, fs.ErrNotExist), !revoked && !runs.IsGone(id):
			t.Fatalf("not revoked: %v, %v", err, unread)
		}
	}
}
