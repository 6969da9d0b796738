package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/internal/audit"
	"sallyport/internal/testenv"
)

// TestMain runs a child process of a test, if the arguments name one: some tests need a process that cannot write to
// its disk.
func TestMain(m *testing.M) {
	testenv.EndProcessesAtOnce()
	if !testenv.RunAsChild(map[string]func(context.Context, string) error{
		"child-limit": limitChild, "child-tmpfs": tmpfsChild,
	}) {
		m.Run()
	}
}

// limitChild makes the kernel refuse each write beyond a file size (EFBIG), in the middle of a line.
func limitChild(ctx context.Context, state string) error {
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return err
	}
	fill := func() error {
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 20_001, Max: before.Max})
	}
	free := func() error { return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before) }
	return fullDisk(ctx, state, fill, free)
}

// tmpfsChild uses up a small filesystem (ENOSPC).
func tmpfsChild(ctx context.Context, dir string) error {
	if err := testenv.MountDisk(dir, "1m"); err != nil {
		return err
	}
	filler := filepath.Join(dir, "filler")
	fill := func() error {
		if err := os.WriteFile(filler, make([]byte, 8<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("the disk is not full: %w", err)
		}
		return nil
	}
	return fullDisk(ctx, dir, fill, func() error { return os.Remove(filler) })
}

// fullDisk fills the disk while an audit log is written, and frees it again. Acknowledged lines must exist, refused
// lines must not, and the log must continue without help.
func fullDisk(ctx context.Context, state string, fill, free func() error) error {
	var looks, ahead atomic.Int64
	now := func() time.Time { looks.Add(1); return time.Now().Add(time.Duration(ahead.Load())) }
	l, err := audit.Open(audit.Options{State: state, Keep: 8 << 20}, now, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	add := func(i int) error {
		return l.Write(ctx, audit.Line{Decision: audit.Allowed, Run: fmt.Sprintf("run %d.", i)})
	}
	if err := errors.Join(add(0), fill()); err != nil {
		return err
	}
	n := 1
	for ; err == nil; n++ {
		if err = add(n); n > 10_000 {
			return errors.New("the disk does not fill")
		}
	}
	n--
	if l.Err() == nil {
		return errors.New("full, and ready")
	}
	// The counts are written after a minute. That fails, so they must be kept.
	l.Count("counted")
	ahead.Store(int64(time.Hour))
	for from := looks.Load(); looks.Load() < from+10; {
		<-time.After(10 * time.Millisecond)
	}
	if err := free(); err != nil {
		return err
	}
	for range time.Tick(10 * time.Millisecond) {
		if l.Err() == nil {
			break
		}
	}
	if err := errors.Join(add(n+1), l.Close()); err != nil {
		return fmt.Errorf("when there is space again: %w", err)
	}
	keys, err := audit.Keys(state)
	if err != nil {
		return err
	}
	known, err := audit.Verifiers(keys)
	if err != nil {
		return err
	}
	v := audit.Verifier{Known: known}
	if _, err := v.State(state); err != nil {
		return err
	}
	text, err := os.ReadFile(segmentName(state, 1))
	if err != nil {
		return err
	}
	refused, err := os.ReadFile(filepath.Join(state, "audit", "refusals", filepath.Base(segmentName(state, 1))))
	if err != nil {
		return err
	}
	if !bytes.Contains(refused, []byte(`"event":"suppressed","reason":"counted","count":1,`)) {
		return errors.New("what was counted is forgotten")
	}
	for i := range n + 2 {
		if there := bytes.Contains(text, fmt.Appendf(nil, "run %d.", i)); there != (i != n) {
			return fmt.Errorf("run %d of %d is there: %t", i, n, there)
		}
	}
	return nil
}

// TestLog_FullDisk fills the disk: lines are refused, and written again once there is space.
func TestLog_FullDisk(t *testing.T) {
	t.Parallel()
	t.Run("file size limit", func(t *testing.T) {
		t.Parallel()
		testenv.RunChild(t, "child-limit", t.TempDir())
	})
	t.Run("tmpfs in a namespace", func(t *testing.T) {
		t.Parallel()
		testenv.RunChildOnDisk(t, "child-tmpfs", "an audit log on a full disk (the limit of files replaces it)")
	})
}
