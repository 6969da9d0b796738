package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/internal/audit"
)

// small has segments of some ten lines about decisions.
const small = 64 << 10

func openCheckpoint(t testing.TB, state string, keep int64) *audit.Log {
	t.Helper()
	l, err := audit.Open(audit.Options{State: state, Keep: keep}, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func writeLines(t testing.TB, l *audit.Log, n int) {
	t.Helper()
	for i := range n {
		line := audit.Line{
			Decision: audit.Allowed, Action: "start", Caller: "ci", Hook: "build",
			Run: fmt.Sprint("run ", i), Reason: "<&>\u2028\xff\x00",
		}
		if err := l.Write(t.Context(), line); err != nil {
			t.Fatal(err)
		}
	}
}

func closeLog(t testing.TB, l *audit.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// writeState returns a state folder with n lines of decisions in its audit log.
func writeState(t testing.TB, keep int64, n int) (state string) {
	t.Helper()
	state = t.TempDir()
	l := openCheckpoint(t, state, keep)
	writeLines(t, l, n)
	closeLog(t, l)
	return state
}

func newVerifier(t testing.TB, state string) audit.Verifier {
	t.Helper()
	keys, err := audit.Keys(state)
	if err != nil {
		t.Fatal(err)
	}
	known, err := audit.Verifiers(keys)
	if err != nil {
		t.Fatal(err)
	}
	return audit.Verifier{Known: known}
}

// verifyState verifies an audit log that has no fault.
func verifyState(t testing.TB, state string) audit.Report {
	t.Helper()
	v := newVerifier(t, state)
	r, err := v.State(state)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func listSegments(t testing.TB, state string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(state, "audit", "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// refusalsState returns a state folder that has the chain of refusals as its audit log, for functions that read one
// chain.
func refusalsState(t testing.TB, state string) (as string) {
	t.Helper()
	as = t.TempDir()
	if err := os.Symlink(filepath.Join(state, "audit", "refusals"), filepath.Join(as, "audit")); err != nil {
		t.Fatal(err)
	}
	return as
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// readLines returns all lines of an audit log, decoded and without the fields of the chain.
func readLines(t testing.TB, state string) (all []audit.Line) {
	t.Helper()
	for _, name := range listSegments(t, state) {
		for text := range bytes.Lines(readFile(t, name)) {
			var l audit.Line
			if err := json.Unmarshal(text, &l); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			all = append(all, l)
		}
	}
	return all
}

// TestLog_OrderAndFileModes writes lines and finds them in their order, in files that only their owner can read.
func TestLog_OrderAndFileModes(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	from := time.Now()
	l := openCheckpoint(t, state, small)
	writeLines(t, l, 100)
	closeLog(t, l)
	r := verifyState(t, state)
	all := readLines(t, state)
	if r.First != 1 || r.Last != uint64(len(all)) || r.Vouched != r.Last || r.Files < 4 || r.Checkpoints < r.Files {
		t.Errorf("got %+v of %d lines", r, len(all))
	}
	if all[0].Event != audit.Begun || all[len(all)-1].Event != audit.Checkpoint {
		t.Errorf("begins with %+v, ends with %+v", all[0], all[len(all)-1])
	}
	var runs []string
	for i, line := range all {
		if line.Seq != uint64(i+1) || line.Time.Before(from) || line.Time.After(time.Now()) {
			t.Errorf("line %d: %+v", i+1, line)
		}
		if line.Decision == audit.Allowed {
			runs = append(runs, strings.TrimPrefix(line.Run, "run "))
		}
	}
	if len(runs) != 100 || runs[0] != "0" || runs[99] != "99" {
		t.Errorf("the runs are %v", runs)
	}
	for _, name := range append(listSegments(t, state), state+"/audit/checkpoint", state+"/audit/verifier",
		state+"/audit.key") {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	if info, err := os.Stat(filepath.Join(state, "audit")); err != nil || info.Mode().Perm() != 0o700 {
		t.Error(info.Mode(), err)
	}
}

// TestOpen_Continues opens an audit log several times: the chain continues where it was left.
func TestOpen_Continues(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	for range 5 {
		l := openCheckpoint(t, state, small)
		writeLines(t, l, 7)
		if _, err := audit.Open(audit.Options{State: state, Keep: small}, time.Now,
			slog.New(slog.DiscardHandler)); !errors.Is(err, audit.ErrHeld) {
			t.Errorf("a second writer: %v", err)
		}
		verifyState(t, state) // while it is being written
		closeLog(t, l)
		if err := l.Write(t.Context(), audit.Line{Event: audit.Stopped}); err == nil {
			t.Error("written after the end")
		}
	}
	count := map[audit.Event]int{}
	for _, l := range readLines(t, state) {
		count[l.Event]++
	}
	// The start of a file and of a server may be one.
	r := verifyState(t, state)
	if r.First != 1 || r.Vouched != r.Last || count[""] != 5*7 || count[audit.Begun] != 1 ||
		count[audit.Checkpoint] < 5 ||
		count[audit.Refusals] < 5 || count[audit.Refusals] > 5+r.Files-1 || count[audit.Checkpoint] > 5+r.Files-1 {
		t.Errorf("got %+v with %v", r, count)
	}
}

// TestKeep_RecordsRemoval fills an audit log beyond its bound: a line records what was removed, and the rest is within
// the bound. A removal without a signature is a fault: TestTamper_UnsignedRemoval.
func TestKeep_RecordsRemoval(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l := openCheckpoint(t, state, small)
	for range 10 {
		writeLines(t, l, 100)
		verifyState(t, state)
		var total int64
		for _, name := range listSegments(t, state) {
			total += int64(len(readFile(t, name)))
		}
		if total > small {
			t.Errorf("%d bytes, of %d", total, small)
		}
	}
	closeLog(t, l)
	r, all := verifyState(t, state), readLines(t, state)
	removed := slices.IndexFunc(all, func(l audit.Line) bool {
		return l.Event == audit.Removed && l.Through == r.First-1
	})
	if r.First < 500 || removed < 0 {
		t.Errorf("got %+v; the line that says so is at %d", r, removed)
	}
	v := newVerifier(t, state)
	if _, err := v.Files(listSegments(t, state)[1:]); err != nil {
		t.Errorf("segments that were copied: %v", err)
	}
}

// TestKey_Replaced gives an audit log another key: it verifies with both.
func TestKey_Replaced(t *testing.T) {
	t.Parallel()
	state := writeState(t, small, 5)
	if err := os.Remove(state + "/audit.key"); err != nil {
		t.Fatal(err)
	}
	l := openCheckpoint(t, state, small)
	writeLines(t, l, 5)
	closeLog(t, l)
	verifyState(t, state)
	keys, err := audit.Keys(state)
	if err != nil || len(keys) != 2 {
		t.Fatal(keys, err)
	}
	for _, key := range keys {
		known, err := audit.Verifiers([]string{key})
		if err != nil {
			t.Fatal(err)
		}
		v := audit.Verifier{Known: known}
		if r, err := v.State(state); err == nil {
			t.Errorf("one of two keys is enough: %+v", r)
		}
	}
}

// TestDigest_NamesAndValues compares digests of parameters: names and values count, in the order of the names.
func TestDigest_NamesAndValues(t *testing.T) {
	t.Parallel()
	// printf 'a\0x\0b\0\0' | sha256sum
	const want = "8ec54942a19c1649603c347e2673ca591bdc9afdf0b36e9e70c4f2c932145aba"
	if got := audit.Digest(map[string]string{"b": "", "a": "x"}); got != want {
		t.Errorf("got %s", got)
	}
	if audit.Digest(map[string]string{"a": "bc"}) == audit.Digest(map[string]string{"ab": "c"}) {
		t.Error("two sets of values have one digest")
	}
}
