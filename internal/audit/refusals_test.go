package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/internal/audit"
	"sallyport/internal/testenv"
)

// refuseMany writes n lines about a verified caller, so that each has a line and is not only counted.
func refuseMany(t testing.TB, l *audit.Log, n int) {
	t.Helper()
	for i := range n {
		l.Decided(audit.Line{
			Decision: audit.Refused, Status: 422, Caller: "ci",
			Reason: fmt.Sprint("refusal ", i, strings.Repeat(".", 100)),
		}, "parameters", audit.Verified)
	}
}

// allowedRuns returns the runs that lines allowed.
func allowedRuns(t testing.TB, state string) (all []string) {
	t.Helper()
	for _, l := range readLines(t, state) {
		if l.Decision == audit.Allowed {
			all = append(all, l.Run)
		}
	}
	return all
}

func bytesIn(t testing.TB, state string) (n int64) {
	t.Helper()
	for _, name := range listSegments(t, state) {
		n += int64(len(readFile(t, name)))
	}
	return n
}

// TestRefusals_NeverPushOutAllowed writes many refusals: they take their part of the room and no more, and every line
// about what was allowed stays.
func TestRefusals_NeverPushOutAllowed(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, small)
	writeLines(t, l, 10)
	refuseMany(t, l, 5000)
	writeLines(t, l, 10)
	verifyState(t, state)
	closeLog(t, l)
	r := verifyState(t, state)
	if n := len(allowedRuns(t, state)); n != 20 {
		t.Errorf("%d of 20 lines about what was allowed are there", n)
	}
	if r.Refusals == nil || r.Refusals.First < 4000 || r.Refusals.Last < 5000 || r.Refusals.Vouched != r.Refusals.Last {
		t.Errorf("of refusals: %+v", r.Refusals)
	}
	if n := bytesIn(t, refusalsState(t, state)); n > small/4 {
		t.Errorf("refusals take %d bytes, of %d", n, small)
	}
}

// TestAllowed_LeastAge keeps a line about what was allowed for its least age, in spite of the size limit, and no
// longer.
func TestAllowed_LeastAge(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	var ahead atomic.Int64
	var log testenv.Log
	l, err := audit.Open(audit.Options{State: state, Keep: small, LeastAge: time.Hour},
		func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	writeLines(t, l, 300)
	ahead.Store(int64(40 * time.Minute))
	writeLines(t, l, 300)
	if n := len(allowedRuns(t, state)); n != 600 || bytesIn(t, state) < 2*small {
		t.Errorf("%d of 600 lines in %d bytes, though all are young", n, bytesIn(t, state))
	}
	if !strings.Contains(log.String(), "its oldest lines are younger than audit.least_age") {
		t.Error("the log does not say that there is more than there should be")
	}
	ahead.Store(int64(90 * time.Minute))
	writeLines(t, l, 30)
	if n := len(allowedRuns(t, state)); n < 330 || n > 350 {
		t.Errorf("%d lines, of 330 that are young", n)
	}
	ahead.Store(int64(3 * time.Hour))
	writeLines(t, l, 30)
	if n := bytesIn(t, state); n > small {
		t.Errorf("%d bytes, though all but some lines are old", n)
	}
	verifyState(t, state)
	closeLog(t, l)
	verifyState(t, state)
}

// TestRefusals_TamperingIsFound changes the folder of refusals: tampering is found as it is among the decisions.
func TestRefusals_TamperingIsFound(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, small)
	refuseMany(t, l, 60)
	writeLines(t, l, 3)
	closeLog(t, l)
	verifyState(t, state)
	v, dir := newVerifier(t, state), filepath.Join(state, "audit", "refusals")
	names := listSegments(t, refusalsState(t, state))
	found := func(what, file string) {
		t.Helper()
		report, err := v.State(state)
		var fault *audit.Fault
		if !errors.As(err, &fault) || filepath.Base(fault.File) != filepath.Base(file) {
			t.Errorf("%s: %+v %v", what, report, err)
		}
	}
	for range 300 {
		name := names[rand.IntN(len(names))]
		whole := readFile(t, name)
		changed := bytes.Clone(whole)
		at := rand.IntN(len(changed))
		changed[at] ^= 1 << rand.IntN(8)
		writeFile(t, name, changed)
		found(fmt.Sprint("byte ", at), name)
		writeFile(t, name, whole)
	}
	last := names[len(names)-1]
	whole := readFile(t, last)
	writeFile(t, last, whole[:bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1])
	found("the last line removed", last)
	writeFile(t, last, whole)
	head := readFile(t, dir+"/checkpoint")
	writeFile(t, dir+"/checkpoint", readFile(t, state+"/audit/checkpoint"))
	found("the checkpoint of the decisions", dir+"/checkpoint")
	writeFile(t, dir+"/checkpoint", head)
	verifyState(t, state)
}

// TestRefusals_FolderIsMissed removes or empties the folder of refusals, or puts back an older one: verification
// fails, and no server continues without it.
func TestRefusals_FolderIsMissed(t *testing.T) {
	t.Parallel()
	for what, damage := range map[string]func(t *testing.T, dir, before string){
		"removed": func(t *testing.T, dir, _ string) { t.Helper(); check(t, os.RemoveAll(dir)) },
		"emptied": func(t *testing.T, dir, _ string) {
			t.Helper()
			check(t, os.RemoveAll(dir))
			check(t, os.Mkdir(dir, 0o700))
		},
		"as it was before": func(t *testing.T, dir, before string) {
			t.Helper()
			check(t, os.RemoveAll(dir))
			check(t, os.CopyFS(dir, os.DirFS(before)))
			check(t, os.Chmod(dir, 0o700))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			state, before := t.TempDir(), t.TempDir()
			dir := filepath.Join(state, "audit", "refusals")
			for range 3 {
				l := openCheckpoint(t, state, small)
				refuseMany(t, l, 3)
				writeLines(t, l, 3)
				closeLog(t, l)
				if len(listSegments(t, refusalsState(t, state))) == 1 && len(readLines(t, refusalsState(t, state))) < 6 {
					check(t, os.CopyFS(before, os.DirFS(dir)))
				}
			}
			verifyState(t, state)
			damage(t, dir, before)
			v := newVerifier(t, state)
			var fault *audit.Fault
			if report, err := v.State(state); !errors.As(err, &fault) || fault.File != dir ||
				!strings.Contains(fault.What, "among the decisions") {
				t.Errorf("%+v %v", report, err)
			}
			for _, err := range []error{audit.Check(state), openAndClose(state)} {
				if !errors.Is(err, audit.ErrDamaged) {
					t.Errorf("gone on with: %v", err)
				}
			}
		})
	}
}

func openAndClose(state string) error {
	l, err := audit.Open(audit.Options{State: state, Keep: small}, time.Now, slog.New(slog.DiscardHandler))
	if err == nil {
		return l.Close()
	}
	return err
}

// TestChains_CannotBeExchanged exchanges the two chains, which are signed with one key: neither passes for the other.
func TestChains_CannotBeExchanged(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, 1<<20)
	refuseMany(t, l, 5)
	writeLines(t, l, 5)
	closeLog(t, l)
	v := newVerifier(t, state)
	if r, err := v.Files(listSegments(t, refusalsState(t, state))); err != nil || r.Vouched != r.Last-1 {
		t.Errorf("copied refusals: %+v %v", r, err)
	}
	v.Checkpoints = map[string]string{
		"a": string(readFile(t, state+"/audit/checkpoint")), "b": string(readFile(t, state+"/audit/refusals/checkpoint")),
	}
	if _, err := v.State(state); err != nil {
		t.Errorf("with checkpoints of both: %v", err)
	}
	delete(v.Checkpoints, "a")
	if _, err := v.Files(listSegments(t, state)); err == nil {
		t.Error("decisions verify against a checkpoint of refusals")
	}
	for _, name := range []string{filepath.Base(listSegments(t, state)[0]), "checkpoint"} {
		writeFile(t, filepath.Join(state, "audit", name), readFile(t, filepath.Join(state, "audit", "refusals", name)))
	}
	v.Checkpoints = nil
	if r, err := v.State(state); err == nil {
		t.Errorf("refusals pass for decisions: %+v", r)
	}
}

// TestOpen_EarlierVersion continues testdata/earlier, which was written by a version that had one chain.
func TestOpen_EarlierVersion(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	check(t, os.CopyFS(state, os.DirFS("testdata/earlier")))
	check(t, os.Chmod(state+"/audit", 0o700))
	before := verifyState(t, state)
	if before.Refusals != nil || before.Lines < 48 {
		t.Errorf("got %+v", before)
	}
	check(t, audit.Check(state))
	l := openCheckpoint(t, state, 1<<20)
	writeLines(t, l, 3)
	refuseMany(t, l, 3)
	closeLog(t, l)
	after, all := verifyState(t, state), readLines(t, state)
	if after.First != 1 || after.Refusals == nil || after.Refusals.Lines < 4 {
		t.Errorf("got %+v with %+v", after, after.Refusals)
	}
	if first := all[before.Last]; first.Event != audit.Refusals {
		t.Errorf("its first new line is %+v", first)
	}
	if n := len(allowedRuns(t, state)); n != 27 {
		t.Errorf("%d of 27 lines about what was allowed", n)
	}
}

// stoppedLog is the writer of a log that stops the goroutine that writes the line "audit unavailable" until it is
// released.
type stoppedLog struct{ reached, release chan struct{} }

func (s *stoppedLog) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("audit unavailable")) {
		s.reached <- struct{}{}
		<-s.release
	}
	return len(p), nil
}

// TestRefusals_LostLinesAreCounted loses lines about refusals because they cannot be written, because the queue is
// full, and because the log is closed: each is counted once.
func TestRefusals_LostLinesAreCounted(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	stop := &stoppedLog{make(chan struct{}), make(chan struct{})}
	l, err := audit.Open(audit.Options{State: state, Keep: 8 << 20}, time.Now,
		slog.New(slog.NewTextHandler(stop, nil)))
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	dir, away := filepath.Join(state, "audit", "refusals"), filepath.Join(state, "away")
	check(t, os.Rename(dir, away))
	refuseMany(t, l, 1)
	<-stop.reached // the line, or the check each second, could not be written
	const kinds, each = 12, 100
	for i := range kinds * each { // the queue has room for 1024
		l.Decided(audit.Line{Decision: audit.Refused, Status: 401}, fmt.Sprint("kind ", i/each), audit.Unverified)
	}
	full := l.SuppressedLines()
	if full < kinds*each-1024 {
		t.Errorf("%d lines are missing", full)
	}
	close(stop.release)
	testenv.WaitUntil(t, "the lines to be lost", func() bool { return l.SuppressedLines() == kinds*each+1 })
	check(t, os.Rename(away, dir))
	closeLog(t, l)
	counted := 0
	for _, line := range readLines(t, refusalsState(t, state)) {
		counted += line.Count
	}
	if n := l.SuppressedLines(); n != kinds*each+1 || counted != n {
		t.Errorf("%d lines are missing, and %d are counted in the log, of %d", n, counted, kinds*each+1)
	}
	refuseMany(t, l, 1)
	if n := l.SuppressedLines(); n != kinds*each+2 {
		t.Errorf("%d lines are missing after one more", n)
	}
}

// TestErr_StaysWhileBroken asks a broken audit log for its error all the time: it is never nil.
func TestErr_StaysWhileBroken(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, small)
	writeLines(t, l, 1)
	check(t, os.Remove(listSegments(t, state)[0])) // of the decisions alone
	testenv.WaitUntil(t, "the audit log to miss its files", func() bool { return l.Err() != nil })
	var well atomic.Int64
	var done atomic.Bool
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for !done.Load() {
			if l.Err() == nil {
				well.Add(1)
			}
		}
	})
	for range 50_000 { // each call makes the writer check again
		_ = l.Probe(t.Context())
	}
	done.Store(true)
	watcher.Wait()
	if n := well.Load(); n > 0 {
		t.Errorf("it looked well %d times", n)
	}
}

// TestCheckpoint_UnwrittenIsNoOutage makes the file checkpoint unwritable: lines are written without it for a minute,
// the log says what is wrong, and only then nothing is started.
func TestCheckpoint_UnwrittenIsNoOutage(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	var ahead atomic.Int64
	var log testenv.Log
	l, err := audit.Open(audit.Options{State: state, Keep: 8 << 20},
		func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	inTheWay := state + "/audit/checkpoint.new/full" // a folder that is not empty
	check(t, os.MkdirAll(inTheWay, 0o700))
	const unwritten, unavailable = "audit checkpoint not written", "audit unavailable"
	testenv.WaitUntil(t, "the log to say so", func() bool {
		writeLines(t, l, 1)
		return strings.Contains(log.String(), unwritten)
	})
	writeLines(t, l, 10)
	if l.Err() != nil || l.Probe(t.Context()) == nil || strings.Contains(log.String(), unavailable) {
		t.Errorf("%v\n%s", l.Err(), log.String())
	}
	ahead.Store(int64(2 * time.Minute))
	if err := l.Write(t.Context(), audit.Line{Decision: audit.Allowed, Run: "late"}); err == nil || l.Err() == nil {
		t.Error("after two minutes without a checkpoint, it still allows")
	}
	if n := strings.Count(log.String(), unwritten); n != 1 {
		t.Errorf("said %d times", n)
	}
	check(t, os.RemoveAll(filepath.Dir(inTheWay)))
	testenv.WaitUntil(t, "it to go on", func() bool { return l.Err() == nil })
	writeLines(t, l, 1)
	check(t, l.Probe(t.Context()))
	closeLog(t, l)
	verifyState(t, state)
	for _, line := range readLines(t, state) {
		if line.Run == "late" {
			t.Error("what was refused is there")
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDecided_IgnoredLimited: ignored deliveries of a verified caller are counted once there are too many, so that a
// sender of many events does not displace refusals. Its other decisions have a line each.
func TestDecided_IgnoredLimited(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, 1<<20)
	for range 500 {
		l.Decided(audit.Line{Decision: audit.Ignored, Status: 200, Caller: "github"}, "ignored", audit.Verified)
	}
	refuseMany(t, l, 150)
	closeLog(t, l)
	lines, counted, refused := 0, 0, 0
	for _, line := range readLines(t, refusalsState(t, state)) {
		switch {
		case line.Decision == audit.Ignored:
			lines++
		case line.Decision == audit.Refused:
			refused++
		case line.Event == audit.Suppressed && line.Reason == "ignored" && line.Caller == "github":
			counted += line.Count
		}
	}
	if lines < 100 || lines > 110 || lines+counted != 500 || refused != 150 {
		t.Errorf("%d lines and %d counted of 500 ignored; %d lines of 150 refused", lines, counted, refused)
	}
}
