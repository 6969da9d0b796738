package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/internal/audit"
	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
)

func countLines(t testing.TB, state string) (n int) {
	t.Helper()
	for _, name := range listSegments(t, state) {
		n += len(readFile(t, name))
	}
	return n
}

// TestRefusals_AllCounted writes a hundred thousand refusals: they take little space, and all are counted.
func TestRefusals_AllCounted(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, 64<<20)
	const n, callers = 100_000, 10
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for j := range n / callers {
				line := audit.Line{
					Decision: audit.Refused, Status: 401, Address: fmt.Sprint(i, ".", j),
					Path: strings.Repeat("\x00", 10_000),
				}
				l.Decided(line, "unauthorized", audit.Unverified)
				l.Count("not-found")
				if j%1000 == 0 {
					// A verified caller's refusal is not suppressed, however many others there are.
					l.Decided(audit.Line{Decision: audit.Refused, Caller: "ci", Reason: fmt.Sprint(i, ".", j)},
						"forbidden", audit.Verified)
				}
				l.Decided(audit.Line{Decision: audit.Refused, Caller: "ci"}, audit.TooOften, audit.Verified)
			}
		})
	}
	all.Wait()
	closeLog(t, l)
	verifyState(t, state)
	got, sure, suppressed := map[string]int{}, 0, 0
	for _, l := range readLines(t, refusalsState(t, state)) {
		switch {
		case l.Event == audit.Suppressed:
			got[l.Reason+l.Caller] += l.Count
			suppressed += l.Count
			if l.Since.IsZero() || l.Until.Before(l.Since) || l.Until.After(l.Time) {
				t.Errorf("from when until when: %+v", l)
			}
		case l.Status == 401:
			got["unauthorized"]++
		case l.Reason != "":
			sure++
		case l.Decision == audit.Refused:
			got["too-oftenci"]++
		}
	}
	if sure != 100 || got["unauthorized"] != n || got["not-found"] != n || got["too-oftenci"] != n {
		t.Errorf("of a verified caller %d, counted %v", sure, got)
	}
	if n := l.SuppressedLines(); n != suppressed {
		t.Errorf("%d lines are missing, and %d are counted in the log", n, suppressed)
	}
	size := countLines(t, refusalsState(t, state))
	if size > 300<<10 || len(readLines(t, state)) > 3 {
		t.Errorf("%d bytes, and %d lines among the decisions", size, len(readLines(t, state)))
	}
	t.Logf("%d bytes for %d refusals", size, 3*n)
}

// TestDecided_VerifiedCaller writes decisions about a verified caller as fast as possible: none is lost.
func TestDecided_VerifiedCaller(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, 64<<20)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				l.Decided(audit.Line{Decision: audit.Refused, Caller: "ci"}, "busy", audit.Verified)
			}
		})
	}
	all.Wait()
	closeLog(t, l)
	if r := verifyState(t, state).Refusals; r.Lines < 8000 {
		t.Errorf("got %+v", r)
	}
}

// killedState returns a state folder of a server that was killed: the audit log has lines and no end.
func killedState(t *testing.T) string {
	t.Helper()
	state := t.TempDir()
	l := openCheckpoint(t, state, small)
	writeLines(t, l, 3)
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(state)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{copied, copied + "/audit"} {
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return copied
}

// TestKilled_CutLineIsQuoted leaves a line that was not written whole: the next line quotes it.
func TestKilled_CutLineIsQuoted(t *testing.T) {
	t.Parallel()
	rests := [][]byte{
		[]byte("x"), make([]byte, 3000), bytes.Repeat([]byte{'"', 0xff}, 5000),
		bytes.Repeat([]byte("y"), 4<<10), bytes.Repeat([]byte("z"), 10<<10),
	}
	line := readFile(t, listSegments(t, killedState(t))[0])
	line = line[bytes.LastIndexByte(line[:len(line)-1], '\n')+1:]
	for size := 1; size < len(line); size += 23 {
		rests = append(rests, line[:size])
	}
	for _, rest := range rests {
		state := killedState(t)
		name := listSegments(t, state)[0]
		whole := readFile(t, name)
		writeFile(t, name, append(whole, rest...))
		v := newVerifier(t, state)
		var fault *audit.Fault
		if _, err := v.State(state); !errors.As(err, &fault) || !strings.Contains(fault.What, "cut off") {
			t.Errorf("%.10q: %v", rest, err)
		}
		l := openCheckpoint(t, state, small)
		writeLines(t, l, 1)
		closeLog(t, l)
		verifyState(t, state)
		cut := readLines(t, state)[bytes.Count(whole, []byte("\n"))]
		sum := sha256.Sum256(rest)
		if cut.Event != audit.Cut || cut.Bytes != int64(len(rest)) || cut.SHA256 != hex.EncodeToString(sum[:]) ||
			!strings.HasPrefix(cut.Cut, string(rest[:1])) {
			t.Errorf("%.10q: %+v", rest, cut)
		}
	}
}

// TestKilled_EmptySegment kills the server, or fills the disk, after a segment was made and before its first line was
// written: the next server continues.
func TestKilled_EmptySegment(t *testing.T) {
	t.Parallel()
	first := func(t *testing.T) (state string, next int) { // the server was killed while it wrote its first line
		t.Helper()
		state = killedState(t)
		writeFile(t, listSegments(t, state)[0], nil)
		return state, 1
	}
	later := func(t *testing.T) (state string, next int) {
		t.Helper()
		state = writeState(t, small, 3)
		next = len(readLines(t, state)) + 1
		writeFile(t, segmentName(state, next), nil)
		return state, next
	}
	for what, made := range map[string]func(*testing.T) (string, int){"the first": first, "a later one": later} {
		for _, rest := range []string{"", `{"seq":1,"ti`, strings.Repeat("long ", 2000)} {
			state, next := made(t)
			writeFile(t, segmentName(state, next), []byte(rest))
			l := openCheckpoint(t, state, small)
			writeLines(t, l, 2)
			closeLog(t, l)
			verifyState(t, state)
			all := readLines(t, state)
			if all[next-1].Event == audit.Cut {
				all = slices.Delete(all, next-1, next)
			} else if rest != "" {
				t.Errorf("%s, %.10q: no word of what was cut", what, rest)
			}
			if next == 1 && (all[0].Event != audit.Begun || all[0].Verifier == "") {
				t.Errorf("%s, %.10q: begins with %+v", what, rest, all[0])
			}
			if last := all[len(all)-2]; last.Run != "run 1" {
				t.Errorf("%s, %.10q: the last line is %+v", what, rest, last)
			}
		}
	}
}

// TestKilled_ManyTimes kills the server many times: lines without a signature do not add up, which would look like a
// forgery.
func TestKilled_ManyTimes(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	for range 20 {
		l := openCheckpoint(t, state, 8<<20)
		writeLines(t, l, 150)
		copied := t.TempDir()
		if err := errors.Join(os.CopyFS(copied, os.DirFS(state)), os.Chmod(copied, 0o700),
			os.Chmod(copied+"/audit", 0o700)); err != nil {
			t.Fatal(err)
		}
		state = copied
	}
	verifyState(t, state)
	closeLog(t, openCheckpoint(t, state, 8<<20))
	verifyState(t, state)
}

// slow is a reader that reports an end between its parts.
type slow struct{ parts [][]byte }

func (s *slow) Read(b []byte) (int, error) {
	if len(s.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.parts[0])
	if s.parts[0] = s.parts[0][n:]; len(s.parts[0]) > 0 || n > 0 {
		return n, nil
	}
	s.parts = s.parts[1:]
	return 0, io.EOF
}

// TestVerify_LineBeingWritten verifies while a line is written: it waits for the end of the line.
func TestVerify_LineBeingWritten(t *testing.T) {
	t.Parallel()
	state := writeState(t, small, 3)
	whole := readFile(t, listSegments(t, state)[0])
	v := newVerifier(t, state)
	for _, at := range []int{1, len(whole) - 300, len(whole) - 1} {
		if err := v.Segment(&slow{[][]byte{whole[:at], whole[at:]}}); err != nil {
			t.Errorf("cut at %d: %v", at, err)
		}
		if err := v.Segment(&slow{[][]byte{whole[:at]}}); err == nil {
			t.Errorf("cut at %d for good, and nothing was found", at)
		}
	}
}

// TestOpen_Damaged refuses to continue a damaged audit log.
func TestOpen_Damaged(t *testing.T) {
	t.Parallel()
	for what, damage := range map[string]func(t *testing.T, state, name string, whole []byte){
		"changed": func(t *testing.T, _, name string, whole []byte) {
			t.Helper()
			whole[20] ^= 1
			writeFile(t, name, whole)
		},
		"truncated": func(t *testing.T, _, name string, whole []byte) {
			t.Helper()
			writeFile(t, name, whole[:len(whole)-1])
		},
		"emptied":       func(t *testing.T, _, name string, _ []byte) { t.Helper(); writeFile(t, name, nil) },
		"removed":       func(_ *testing.T, _, name string, _ []byte) { _ = os.Remove(name) },
		"no checkpoint": func(_ *testing.T, state, _ string, _ []byte) { _ = os.Remove(state + "/audit/checkpoint") },
		"wrong checkpoint": func(t *testing.T, state, _ string, _ []byte) {
			t.Helper()
			writeFile(t, state+"/audit/checkpoint", readFile(t, writeState(t, small, 3)+"/audit/checkpoint"))
		},
		"wrong name": func(_ *testing.T, state, name string, _ []byte) { _ = os.Rename(name, segmentName(state, 5)) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			state := writeState(t, 8<<20, 10)
			name := listSegments(t, state)[0]
			damage(t, state, name, readFile(t, name))
			l, err := audit.Open(audit.Options{State: state, Keep: small}, time.Now, slog.New(slog.DiscardHandler))
			if !errors.Is(err, audit.ErrDamaged) {
				t.Errorf("%v %v", l, err)
			}
		})
	}
}

// TestLog_FolderRemoved removes the folder of a running server: lines are refused until it is back. The file that was
// removed could still be written, and its lines would be lost.
func TestLog_FolderRemoved(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, small)
	writeLines(t, l, 3)
	from, away := filepath.Join(state, "audit"), filepath.Join(state, "away")
	if err := os.Rename(from, away); err != nil {
		t.Fatal(err)
	}
	// It is long, so that it would show under the next one.
	long := audit.Line{Decision: audit.Allowed, Run: "lost", Version: strings.Repeat("long ", 1000)}
	if err := l.Write(t.Context(), long); err == nil {
		t.Error("written to a file that is not there")
	}
	l.Decided(audit.Line{Decision: audit.Refused, Run: "lost", Caller: "ci"}, "busy", audit.Verified)
	if err := l.Write(t.Context(), long); err == nil || l.Err() == nil { // by then the queued lines were tried
		t.Error("written, or ready")
	}
	if err := l.Probe(t.Context()); err == nil { // by then the refusal was tried, too
		t.Error("ready without a folder")
	}
	if err := os.Rename(away, from); err != nil {
		t.Fatal(err)
	}
	testenv.WaitUntil(t, "the audit log to find its folder by itself", func() bool { return l.Err() == nil })
	verifyState(t, state)
	writeLines(t, l, 3)
	closeLog(t, l)
	verifyState(t, state)
	resumed, counted := 0, 0
	for _, l := range append(readLines(t, state), readLines(t, refusalsState(t, state))...) {
		switch {
		case l.Run == "lost" && l.Decision == audit.Allowed:
			t.Error("a line that was refused is there")
		case l.Event == audit.Resumed:
			resumed++
		case l.Event == audit.Suppressed:
			counted += l.Count
		case l.Run == "lost":
			counted++
		}
	}
	if resumed != 2 || counted != 1 {
		t.Errorf("resumed %d times, the refusal is there %d times", resumed, counted)
	}
}

// TestLog_FolderRemovedWhileIdle removes the folder while nothing is written: it is noticed.
func TestLog_FolderRemovedWhileIdle(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, small)
	if err := os.Remove(listSegments(t, state)[0]); err != nil {
		t.Fatal(err)
	}
	testenv.WaitUntil(t, "the audit log to miss its file", func() bool { return l.Err() != nil })
}

// record is a store that reads the audit log when it is called.
type record struct {
	audit.ConfirmingStore

	t     *testing.T
	state string
	err   error
	run   string // the answer of AdmitIf, instead of the given run
	seen  []audit.Line
}

func (r *record) AdmitIf(
	_ context.Context, run runner.Run, _ runner.Claim, _ hook.Policy, _ runner.Feed,
	_ func(runner.Admission) error,
) (runner.Admission, error) {
	r.seen = readLines(r.t, r.state)
	if r.run != "" {
		run.ID = r.run
	}
	return runner.Admission{Run: run}, r.err
}

func (r *record) Cancel(_ context.Context, id string) (runner.Run, bool, error) {
	r.seen = readLines(r.t, r.state)
	return runner.Run{ID: id}, true, r.err
}

// TestStore_WritesBeforeAllowing finds each line about what is allowed in the audit log before it is done.
func TestStore_WritesBeforeAllowing(t *testing.T) {
	t.Parallel()
	asked := audit.Line{Request: "R", Address: "A", Caller: "ci", Kind: "hmac", Key: "k"}
	run := runner.Run{ID: "new", Hook: "build", Caller: "ci", Params: hook.Values{"a": "x"}}
	rerun, repeated := run, run
	rerun.RerunOf = "old"
	repeated.RerunOf, repeated.Attempt = "old", 1
	allowed := audit.Line{
		Decision: audit.Allowed, Action: "start", Request: "R", Address: "A", Caller: "ci", Kind: "hmac", Key: "k",
		Hook: "build", Params: audit.Digest(run.Params), Run: "new",
	}
	allowedRerun, byItself := allowed, audit.Line{
		Decision: audit.Allowed, Action: "start", Caller: "ci", Hook: "build",
		Params: audit.Digest(run.Params), Run: "new", RerunOf: "old",
		Reason: "on_interrupted: rerun",
	}
	allowedRerun.RerunOf = "old"
	cancel := asked
	cancel.Decision, cancel.Action, cancel.Run = audit.Allowed, "cancel", "new"
	for what, c := range map[string]struct {
		run    *runner.Run // nil to cancel
		err    error
		as     string
		before audit.Line
		void   string
	}{
		"started":        {run: &run, before: allowed},
		"repeated by it": {run: &repeated, before: byItself},
		"started again":  {run: &rerun, before: allowedRerun},
		"busy": {
			run: &run, err: &runner.Busy{Run: runner.Run{ID: "other"}}, before: allowed,
			void: "busy with run other",
		},
		"replayed": {
			run: &run, err: &runner.Replayed{Run: runner.Run{ID: "other"}}, before: allowed,
			void: "delivery accepted before, as run other",
		},
		"not recorded":     {run: &run, err: runner.ErrUnavailable, before: allowed, void: "the store cannot record"},
		"uncertain start":  {run: &run, err: runner.ErrUncertain, before: allowed},
		"joined":           {run: &run, as: "other", before: allowed, void: "joined run other"},
		"cancelled":        {before: cancel},
		"uncertain cancel": {err: runner.ErrUncertain, before: cancel},
		"no such run":      {err: runner.ErrUnknown, before: cancel, void: "no such run"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			state := t.TempDir()
			l := openCheckpoint(t, state, small)
			inner := &record{t: t, state: state, err: c.err, run: c.as}
			st := audit.Store(inner, l)
			do := func() (err error) {
				ctx := audit.WithRequest(t.Context(), func() audit.Line { return asked })
				if c.run == nil {
					_, _, err = st.Cancel(ctx, "new")
				} else {
					_, err = st.Admit(ctx, *c.run, runner.Claim{}, hook.Policy{}, runner.Feed{})
				}
				return err
			}
			if err := do(); !errors.Is(err, c.err) {
				t.Errorf("got %v", err)
			}
			closeLog(t, l)
			plain := func(l audit.Line) audit.Line { l.Seq, l.Time = 0, time.Time{}; return l }
			if n := len(inner.seen); n != 3 || plain(inner.seen[2]) != c.before {
				t.Errorf("when it was done there was\n%+v\nwant\n%+v", inner.seen, c.before)
			}
			after := readLines(t, state)[3:]
			want := c.before
			want.Decision, want.Reason = audit.Void, c.void
			if c.void != "" && plain(after[0]) != want || c.void == "" && after[0].Event != audit.Checkpoint {
				t.Errorf("after it there is\n%+v\nwant\n%+v", after[0], want)
			}
			// A change is not made if its line cannot be written.
			inner.seen = nil
			if err := do(); !errors.Is(err, runner.ErrUnavailable) || inner.seen != nil {
				t.Errorf("done without a line: %v", err)
			}
		})
	}
}
