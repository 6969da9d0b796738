package store_test

import (
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

func refuseOpen(t *testing.T, dir string, want ...error) {
	t.Helper()
	s, err := store.Open(t.Context(), dir, new(clock).now, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Fatal("opened", s.Close())
	}
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("%v is not %v", err, w)
		}
	}
	t.Log(err)
}

// TestOpen_OneServer opens a folder twice: the second server is refused.
func TestOpen_OneServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := openIn(t, dir)
	refuseOpen(t, dir, store.ErrHeld)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openIn(t, dir)
}

// TestOpen_UnsafeFolder refuses a folder that other users could change.
func TestOpen_UnsafeFolder(t *testing.T) {
	folder := func(mode os.FileMode) string {
		dir := filepath.Join(t.TempDir(), "state")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, mode := range []os.FileMode{0o770, 0o707, 0o750, 0o704, 0o701} {
		refuseOpen(t, folder(mode), store.ErrUnsafe)
	}
	above := folder(0o777)
	refuseOpen(t, filepath.Join(above, "state"), store.ErrUnsafe)

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(folder(0o777), link); err != nil {
		t.Fatal(err)
	}
	refuseOpen(t, link, store.ErrUnsafe)

	turnable := filepath.Join(folder(0o777), "link")
	if err := os.Symlink(folder(0o700), turnable); err != nil {
		t.Fatal(err)
	}
	refuseOpen(t, turnable, store.ErrUnsafe)

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refuseOpen(t, file, store.ErrUnsafe)
	refuseOpen(t, filepath.Join(t.TempDir(), "no", "state"), os.ErrNotExist)
	openIn(t, folder(0o700))
}

// TestOpen_FileModes makes files that only their owner can read.
func TestOpen_FileModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := openIn(t, dir)
	admitRun(t, s, newRun(t, "build", "f"), hook.Policy{})
	for name, want := range map[string]os.FileMode{
		"": 0o700, "lock": 0o600, "state.db": 0o600, "state.db-wal": 0o600,
		"state.db-shm": 0o600,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v", name, err, info.Mode())
		}
	}
}

// executeRaw changes the database of a closed store with SQL of the test.
func executeRaw(t *testing.T, dir string, queries ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queries {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOpen_OlderSchema migrates an older schema with its runs.
func TestOpen_OlderSchema(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile("migrations/0001_runs.sql")
	if err != nil {
		t.Fatal(err)
	}
	executeRaw(t, dir, string(first),
		`CREATE TABLE schema_version (version BIGINT NOT NULL PRIMARY KEY, applied BIGINT NOT NULL)`,
		`INSERT INTO schema_version VALUES (1, 1)`,
		`INSERT INTO runs (id, hook, caller, flight, state, place, params, created, started, trace)
		 VALUES ('018bcfe5-6800-7000-8000-000000000000', 'build', 'ci', 'f', 'running', 0, '{"a":"b"}', 1, 2, '')`)
	// Only a server migrates the schema.
	if _, err := store.OpenRead(t.Context(), dir); !errors.Is(err, store.ErrOlder) {
		t.Errorf("to read: %v", err)
	}
	s := openIn(t, dir)
	active, err := s.Active(t.Context())
	if err != nil || len(active) != 1 || active[0].Params["a"] != "b" {
		t.Fatalf("%v %+v", err, active)
	}
	finishRun(t, s, active[0].ID)
	if page, _, err := s.List(t.Context(), runner.Filter{Hooks: []string{"build"}}); err != nil || len(page) != 1 {
		t.Fatalf("%v %+v", err, page)
	}
	admitRun(t, s, newRun(t, "build", "f"), hook.Policy{})
}

// TestOpen_NewerSchema refuses a newer schema and leaves it as it is.
func TestOpen_NewerSchema(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := openIn(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	executeRaw(t, dir, `INSERT INTO schema_version VALUES (1000, 1)`)
	refuseOpen(t, dir, store.ErrNewer)
	if _, err := store.OpenRead(t.Context(), dir); !errors.Is(err, store.ErrNewer) {
		t.Errorf("to read: %v", err)
	}
	executeRaw(t, dir, `DELETE FROM schema_version WHERE version = 1000`)
	openIn(t, dir)
}

// crashedFolder returns a folder as a crash leaves it: the database, and a log that does not hide changes of the
// database.
func crashedFolder(t *testing.T) (dir string) {
	t.Helper()
	from := filepath.Join(t.TempDir(), "state")
	s := openIn(t, from)
	fillStore(t, s, 50)
	if whole, err := s.Checkpoint(t.Context()); err != nil || !whole {
		t.Fatal(whole, err)
	}
	dir = filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"state.db", "state.db-wal"} {
		content, err := os.ReadFile(filepath.Join(from, name))
		if err != nil || len(content) == 0 {
			t.Fatalf("%s of %d bytes: %v", name, len(content), err)
		}
		if name == "state.db-wal" {
			content = content[:32] // its header; all of it was copied
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestOpen_CorruptFile refuses a corrupt file after a crash.
func TestOpen_CorruptFile(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"no database": func([]byte) []byte { return make([]byte, 8192) },
		"text": func([]byte) []byte {
			return []byte("this is not a database, it is a text file with a few words, and it goes on")
		},
		"a page of junk": func(b []byte) []byte { return append(b[:4096:4096], append(junkBytes(4096), b[8192:]...)...) },
		"cut off":        func(b []byte) []byte { return b[:len(b)/2/4096*4096] },
	} {
		t.Run(name, func(t *testing.T) {
			dir := crashedFolder(t)
			file := filepath.Join(dir, "state.db")
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, damage(content), 0o600); err != nil {
				t.Fatal(err)
			}
			refuseOpen(t, dir, store.ErrUnavailable, store.ErrCorrupt)
		})
	}
}

func junkBytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + 1)
	}
	return b
}

// TestStore_ReadOnlyOrFull makes the database read-only or full: operations fail, and succeed afterwards.
func TestStore_ReadOnlyOrFull(t *testing.T) {
	for name, row := range map[string]struct {
		spoil, repair string
		want          error
	}{
		"read-only": {"PRAGMA query_only = 1", "PRAGMA query_only = 0", store.ErrReadOnly},
		"full":      {"PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000", store.ErrDiskFull},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			before := admitRun(t, s, newRun(t, "build", "before"), hook.Policy{})
			if err := s.WriteAll(t.Context(), row.spoil); err != nil {
				t.Fatal(err)
			}
			r := newRun(t, "build", "f")
			r.Params["much"] = string(make([]byte, 100_000))
			_, err := s.Admit(t.Context(), r, runner.Claim{Key: "d"}, hook.Policy{}, runner.Feed{})
			if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, row.want) {
				t.Fatal(err)
			}
			checkState(t, s, before.Run.ID, runner.Running)
			if err := s.WriteAll(t.Context(), row.repair); err != nil {
				t.Fatal(err)
			}
			finishRun(t, s, before.Run.ID)
			if _, err := s.Admit(t.Context(), r, runner.Claim{Key: "d"}, hook.Policy{}, runner.Feed{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestClose_LaterCalls calls a closed store: every method fails with ErrUnavailable.
func TestClose_LaterCalls(t *testing.T) {
	s := openStore(t)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Admit(t.Context(), newRun(t, "build", "f"), runner.Claim{}, hook.Policy{},
		runner.Feed{}); !errors.Is(err, store.ErrUnavailable) {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "x"); !errors.Is(err, store.ErrUnavailable) {
		t.Fatal(err)
	}
}

// TestLog_CopiedDuringWrites writes without a pause: the write-ahead log is copied during the writes, and stays short.
func TestLog_CopiedDuringWrites(t *testing.T) {
	s := openStore(t)
	fillStore(t, s, 20)
	if whole, err := s.Checkpoint(t.Context()); err != nil || !whole {
		t.Fatal(whole, err)
	}
	fillStore(t, openStore(t), 5)
}
