package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// TestMain makes the test program its own child if a test needs a process that it can kill or whose disk it can fill.
func TestMain(m *testing.M) {
	testenv.EndProcessesAtOnce()
	if !testenv.RunAsChild(map[string]func(context.Context, string) error{
		"child-crash": crashChild, "child-limit": limitChild, "child-tmpfs": tmpfsChild, "child-index": indexChild,
	}) {
		m.Run()
	}
}

func openChild(ctx context.Context, dir string) (*store.SQLite, error) {
	return store.Open(ctx, dir, time.Now, slog.New(slog.DiscardHandler))
}

// crashChild runs runs until it is killed, and prints after each call what the store has acknowledged.
func crashChild(ctx context.Context, dir string) error {
	s, err := openChild(ctx, dir)
	if err != nil {
		return err
	}
	active, err := s.Active(ctx)
	if err != nil {
		return err
	}
	for _, r := range active {
		if r.State != runner.Running {
			continue
		}
		if err := endRun(ctx, s, &r, runner.Interrupted); err != nil {
			return err
		}
	}
	var workers sync.WaitGroup
	errs := make(chan error, 16)
	for range cap(errs) {
		workers.Go(func() { errs <- admitAndEnd(ctx, s) })
	}
	return <-errs
}

func admitAndEnd(ctx context.Context, s *store.SQLite) error {
	policies := []hook.Policy{
		{Kind: hook.Reject},
		{Kind: hook.Queue, Depth: 5},
		{Kind: hook.Join},
		{Kind: hook.Replace},
	}
	for {
		id, err := uuid.NewV7()
		if err != nil {
			return err
		}
		r := runner.Run{ID: id.String(), Hook: "build", Flight: fmt.Sprint("flight", rand.IntN(4)), Created: time.Now()}
		a, err := s.Admit(ctx, r, runner.Claim{Key: r.ID}, policies[rand.IntN(len(policies))], runner.Feed{})
		if errors.As(err, new(*runner.Busy)) {
			continue
		}
		if err != nil {
			return err
		}
		fmt.Println("accepted", r.ID, a.Run.ID)
		if a.Run.State == runner.Running {
			if err := endRun(ctx, s, &a.Run, runner.Succeeded); err != nil {
				return err
			}
		}
	}
}

func endRun(ctx context.Context, s *store.SQLite, r *runner.Run, as runner.State) error {
	for r != nil {
		ended, next, err := s.Finish(ctx, r.ID, as, runner.End{Ended: time.Now()},
			runner.KeepClaims, runner.PromoteNext)
		if err != nil {
			return err
		}
		fmt.Println("ended", ended.ID, ended.State)
		r = next
	}
	return nil
}

// TestKill_LosesNothingAcknowledged kills the server during commits: nothing that was acknowledged is lost.
func TestKill_LosesNothingAcknowledged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	rng := rand.New(rand.NewPCG(5, 6))
	for range 8 {
		cmd := testenv.ChildCommand(t, "child-crash", dir)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said []string
		lines := bufio.NewReader(stdout)
		for kill := 50 + rng.IntN(400); ; kill-- {
			if kill == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			line, err := lines.ReadString('\n')
			if err != nil {
				break // an incomplete line does not count
			}
			said = append(said, strings.TrimSpace(line))
		}
		if err := cmd.Wait(); err == nil {
			t.Fatalf("the child ended by itself: %s", said[len(said)-1])
		}
		checkSaid(t, dir, said)
	}
}

// checkSaid compares the store with what the child acknowledged.
func checkSaid(t *testing.T, dir string, said []string) {
	t.Helper()
	s := openIn(t, dir)
	for _, line := range said {
		what := strings.Fields(line)
		switch what[0] {
		case "accepted":
			got, err := s.Find(t.Context(), "build", runner.Claim{Key: what[1]})
			if err != nil || got.ID != what[2] || got.State == "" {
				t.Errorf("%s: %v %+v", line, err, got)
			}
		case "ended":
			got, err := s.Get(t.Context(), what[1])
			if err != nil || string(got.State) != what[2] {
				t.Errorf("%s: %v %+v", line, err, got)
			}
		default:
			t.Errorf("the child said: %s", line)
		}
	}
	active, err := s.Active(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	running := map[string]bool{}
	for _, r := range active {
		switch {
		case r.State == runner.Running && running[r.Flight]:
			t.Errorf("two runs of %s", r.Flight)
		case r.State == runner.Queued && !running[r.Flight]:
			t.Errorf("%s waits for nothing", r.ID)
		}
		running[r.Flight] = running[r.Flight] || r.State == runner.Running
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// limitChild has the kernel refuse every write beyond a file size (EFBIG).
func limitChild(ctx context.Context, dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return err
	}
	fill := func() error {
		info, err := os.Stat(filepath.Join(dir, "state.db-wal"))
		if err != nil {
			return err
		}
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE,
			&syscall.Rlimit{Cur: uint64(info.Size()) + 100_000, Max: before.Max})
	}
	free := func() error { return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before) }
	return fullDisk(ctx, dir, fill, free, store.ErrUnavailable)
}

// tmpfsChild fills a small filesystem (ENOSPC).
func tmpfsChild(ctx context.Context, dir string) error {
	if err := testenv.MountDisk(dir, "4m"); err != nil {
		return err
	}
	filler := filepath.Join(dir, "filler")
	fill := func() error {
		err := os.WriteFile(filler, make([]byte, 8<<20), 0o600)
		if !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("the disk is not full: %w", err)
		}
		info, err := os.Stat(filler)
		if err != nil {
			return err
		}
		return os.Truncate(filler, info.Size()-12<<10) // space for a small commit, and not for a delivery
	}
	free := func() error { return os.Remove(filler) }
	return fullDisk(ctx, filepath.Join(dir, "state"), fill, free, store.ErrDiskFull)
}

// fullDisk fills the disk while a store works, and frees it again: what the store acknowledged is there, what it
// refused is not, and it continues.
func fullDisk(ctx context.Context, dir string, fill, free func() error, want error) error {
	s, err := openChild(ctx, dir)
	if err != nil {
		return err
	}
	add := func(i int) (runner.Run, error) {
		r := runner.Run{ID: fmt.Sprint("run", i), Hook: "build", Flight: fmt.Sprint("flight", i), Created: time.Now()}
		_, err := s.Admit(ctx, r, runner.Claim{Key: r.ID}, hook.Policy{}, runner.Feed{Stdin: make([]byte, 10_000)})
		return r, err
	}
	if _, err := add(0); err != nil {
		return err
	}
	if err := fill(); err != nil {
		return err
	}
	n := 1
	for ; err == nil; n++ {
		if _, err = add(n); n > 10_000 {
			return errors.New("the disk does not fill")
		}
	}
	n--
	if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, want) {
		return fmt.Errorf("full, but: %w", err)
	}
	fmt.Printf("refused run %d: %v\n", n, err)
	if r, err := s.Get(ctx, "run0"); err != nil || r.State != runner.Running {
		return fmt.Errorf("reading while full: %w", err)
	}
	if errors.Is(want, store.ErrDiskFull) && s.Probe(ctx) == nil {
		return errors.New("full, and the probe finds room")
	}
	if _, err := s.Checkpoint(ctx); err != nil && !errors.Is(err, store.ErrUnavailable) {
		return err
	}
	if err := free(); err != nil {
		return err
	}
	if _, _, err := s.Finish(ctx, "run0", runner.Succeeded, runner.End{Ended: time.Now()},
		runner.KeepClaims, runner.PromoteNext); err != nil {
		return fmt.Errorf("finishing when space is back: %w", err)
	}
	if _, err := s.Get(ctx, fmt.Sprint("run", n)); !errors.Is(err, runner.ErrUnknown) {
		return fmt.Errorf("the refused run is there: %w", err)
	}
	if _, err := add(n); err != nil {
		return fmt.Errorf("admitting when space is back: %w", err)
	}
	if err := s.Probe(ctx); err != nil {
		return fmt.Errorf("probing when space is back: %w", err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = openChild(ctx, dir); err != nil {
		return err
	}
	for i := 1; i <= n; i++ {
		if r, err := s.Get(ctx, fmt.Sprint("run", i)); err != nil || r.State != runner.Running {
			return fmt.Errorf("run %d of %d: %+v %w", i, n, r, err)
		}
	}
	return s.Close()
}

// TestFullDisk_LosesNothing fills the disk: operations are refused, nothing is lost, and they succeed once there is
// space.
func TestFullDisk_LosesNothing(t *testing.T) {
	t.Run("file size limit", func(t *testing.T) {
		testenv.RunChild(t, "child-limit", filepath.Join(t.TempDir(), "state"))
	})
	t.Run("tmpfs in a namespace", func(t *testing.T) {
		testenv.RunChildOnDisk(t, "child-tmpfs", "a store on a full disk (the limits of files and pages replace it)")
	})
}

// TestAdmit_NoSpaceForIndex fills the disk so that a commit is written to the log whole and synced, and only the index
// of the log has no space. The next server finds such a commit, unless it is overwritten.
func TestAdmit_NoSpaceForIndex(t *testing.T) {
	testenv.RunChildOnDisk(t, "child-index", "a disk without space for the index of the log")
}

// indexChild commits operations of more pages than the first part of the index has room for, with a little more space
// each time, until there is space for the log and not for the next part of the index.
func indexChild(ctx context.Context, dir string) error {
	if err := testenv.MountDisk(dir, "64m"); err != nil {
		return err
	}
	state, filler := filepath.Join(dir, "state"), filepath.Join(dir, "filler")
	s, err := openChild(ctx, state)
	if err != nil {
		return err
	}
	if _, err := s.Checkpoint(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(filler, make([]byte, 64<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the disk is not full: %w", err)
	}
	full, err := os.Stat(filler)
	if err != nil {
		return err
	}
	log, err := os.Stat(state + "/state.db-wal") // it is written from its beginning again
	if err != nil {
		return err
	}
	stdin := make([]byte, 17<<20)
	size := full.Size() + log.Size() - int64(len(stdin))
	run := runner.Run{Hook: "build", Flight: "build", Created: time.Now()}
	var failure *sqlite.Error
	for n := 0; failure == nil || failure.Code() != sqlite3.SQLITE_IOERR_SHMSIZE; n++ {
		if err := os.Truncate(filler, size-int64(n)*8<<10); err != nil { // a part of the index has 32 KiB
			return err
		}
		run.ID = fmt.Sprint("run", n)
		_, err = s.Admit(ctx, run, runner.Claim{}, hook.Policy{}, runner.Feed{Stdin: stdin})
		if !errors.As(err, &failure) || !errors.Is(err, store.ErrDiskFull) {
			return fmt.Errorf("the index had space each time; at last: %w", err)
		}
	}
	after, removeErr := os.MkdirTemp("", "sallyport-index")
	if removeErr != nil {
		return removeErr
	}
	defer os.RemoveAll(after) //nolint:errcheck // not needed any more
	if err := copyDatabase(state, after+"/state"); err != nil {
		return err
	}
	next, openErr := openChild(ctx, after+"/state")
	if openErr != nil {
		return openErr
	}
	_, found := next.Get(ctx, run.ID)
	fmt.Printf("admitted: %v; found after a crash: %v\n", err, found)
	if !errors.Is(err, runner.ErrUncertain) && !errors.Is(found, runner.ErrUnknown) {
		return errors.New("the error is definite, and the next server finds the run")
	}
	return errors.Join(next.Close(), s.Close())
}
