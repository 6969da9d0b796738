package store_test

import (
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/internal/pathsafe"
	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// TestStore_MovedFileRefusesAll moves the database: what is committed to a removed file is lost when the server ends,
// so everything is refused. When the file is back, the store works again.
func TestStore_MovedFileRefusesAll(t *testing.T) {
	for _, name := range []string{"state.db", "state.db-wal"} {
		for what, replace := range map[string]func(name string) error{
			"removed":  func(string) error { return nil },
			"replaced": func(name string) error { return os.WriteFile(name, nil, 0o600) },
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "state")
				s := openIn(t, dir)
				before := admitRun(t, s, newRun(t, "build", "before"), hook.Policy{})
				if err := s.Probe(t.Context()); err != nil {
					t.Fatal(err)
				}
				file, away := filepath.Join(dir, name), filepath.Join(dir, "away")
				if err := errors.Join(os.Rename(file, away), replace(file)); err != nil {
					t.Fatal(err)
				}
				r := newRun(t, "build", "f")
				_, err := s.Admit(t.Context(), r, runner.Claim{Key: "d"}, hook.Policy{}, runner.Feed{})
				if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, pathsafe.ErrMoved) {
					t.Errorf("admitted: %v", err)
				}
				if err := s.Probe(t.Context()); !errors.Is(err, pathsafe.ErrMoved) {
					t.Errorf("probed: %v", err)
				}
				if err := os.Rename(away, file); err != nil {
					t.Fatal(err)
				}
				if err := s.Probe(t.Context()); err != nil {
					t.Error(err)
				}
				if _, err := s.Get(t.Context(), r.ID); !errors.Is(err, runner.ErrUnknown) {
					t.Errorf("the refused run: %v", err)
				}
				finishRun(t, s, before.Run.ID)
				admitRun(t, s, r, hook.Policy{})
			})
		}
	}
}

// TestProbe_WritesWithoutDeliveries probes a read-only database without deliveries: reading alone would not show that
// it cannot be written.
func TestProbe_WritesWithoutDeliveries(t *testing.T) {
	s := openStore(t)
	for range 3 {
		if err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.WriteAll(t.Context(), "PRAGMA query_only = 1"); err != nil {
		t.Fatal(err)
	}
	r := newRun(t, "build", "f") // by this error the store learns that the last commit proves nothing any more
	if _, err := s.Admit(t.Context(), r, runner.Claim{}, hook.Policy{},
		runner.Feed{}); !errors.Is(err, store.ErrReadOnly) {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); !errors.Is(err, store.ErrReadOnly) {
		t.Errorf("got %v", err)
	}
	if err := s.WriteAll(t.Context(), "PRAGMA query_only = 0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLock_SurvivesItsFile removes the lock file: a second server is still refused, because two would damage what both
// write.
func TestLock_SurvivesItsFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	openIn(t, dir)
	if err := os.Remove(filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	refuseOpen(t, dir, store.ErrHeld)
}

// TestLog_WarnsOfOutsideReader reads the database with another process, which keeps the log from being reused: a
// warning says so.
func TestLog_WarnsOfOutsideReader(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	var log testenv.Log
	s, err := store.Open(t.Context(), dir, time.Now, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "state.db")+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := tx.QueryRowContext(t.Context(), `SELECT count(*) FROM runs`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	write := func() {
		r := newRun(t, "build", "")
		r.Flight = r.ID
		in := runner.Feed{Stdin: make([]byte, 1<<20)}
		if _, err := s.Admit(t.Context(), r, runner.Claim{}, hook.Policy{}, in); err != nil {
			t.Fatal(err)
		}
	}
	for range 36 {
		write()
	}
	const grows, again = "write-ahead log grows", "write-ahead log copied again"
	for !strings.Contains(log.String(), grows) {
		write()
		<-time.After(50 * time.Millisecond)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(log.String(), again) {
		<-time.After(50 * time.Millisecond)
	}
	if n := strings.Count(log.String(), grows); n > 3 {
		t.Errorf("warned %d times", n)
	}
}
