package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/internal/audit"
)

// trail is an audit log that a test tampers with: its segments by their names, each a list of lines with their ends,
// and the file checkpoint.
type trail struct {
	t        *testing.T
	state    string
	names    []string
	original map[string][][]byte
	head     []byte
}

func newTrail(t *testing.T, state string) *trail {
	t.Helper()
	verifyState(t, state)
	r := &trail{t: t, state: state, names: listSegments(t, state), original: map[string][][]byte{}}
	for _, name := range r.names {
		r.original[name] = slices.Collect(bytes.Lines(readFile(t, name)))
	}
	r.head = readFile(t, r.checkpoint())
	return r
}

func (r *trail) checkpoint() string { return filepath.Join(r.state, "audit", "checkpoint") }

// restore writes the original audit log again.
func (r *trail) restore() {
	for _, name := range listSegments(r.t, r.state) {
		if _, ours := r.original[name]; !ours {
			_ = os.Remove(name)
		}
	}
	for name, text := range r.original {
		writeFile(r.t, name, bytes.Join(text, nil))
	}
	writeFile(r.t, r.checkpoint(), r.head)
}

// expectFault verifies, and checks the place of the fault: in a line of a file, or, with line 0, anywhere in the file.
func (r *trail) expectFault(what, file string, line int) {
	r.t.Helper()
	v := newVerifier(r.t, r.state)
	report, err := v.State(r.state)
	var fault *audit.Fault
	switch {
	case err == nil:
		r.t.Errorf("%s: nothing was found: %+v", what, report)
	case !errors.As(err, &fault):
		r.t.Errorf("%s: no place, but: %v", what, err)
	case fault.File != file || line > 0 && fault.Line != line:
		r.t.Errorf("%s: found %v, want %s:%d", what, err, file, line)
	}
}

// lineAfter returns the place of the line after a line: the next one, or the first of the next file.
func (r *trail) lineAfter(file, line int) (string, int) {
	if line < len(r.original[r.names[file]]) || file == len(r.names)-1 {
		return r.names[file], line + 1
	}
	return r.names[file+1], 1
}

// eachLine calls f with every line.
func (r *trail) eachLine(f func(file, line int)) {
	for i, name := range r.names {
		for n := range r.original[name] {
			f(i, n+1)
		}
	}
}

// writeSegment replaces the lines of a file.
func (r *trail) writeSegment(file int, text ...[]byte) {
	writeFile(r.t, r.names[file], bytes.Join(text, nil))
}

// flipBit changes one bit of a byte of a segment.
func (r *trail) flipBit(file, at int, bit byte) {
	r.t.Helper()
	text := bytes.Join(r.original[r.names[file]], nil)
	line := bytes.Count(text[:at], []byte("\n")) + 1
	text[at] ^= bit
	writeFile(r.t, r.names[file], text)
	r.expectFault(fmt.Sprintf("byte %d of file %d ^ %#x", at, file, bit), r.names[file], line)
}

// TestTamper_FlippedByte flips each byte: the fault is found in the line that has it.
func TestTamper_FlippedByte(t *testing.T) {
	t.Parallel()
	short := newTrail(t, writeState(t, small, 4))
	for at := range readFile(t, short.names[0]) {
		short.flipBit(0, at, 0x20) // the case of a letter
		short.flipBit(0, at, 1<<rand.IntN(8))
	}
	short.restore()
	verifyState(t, short.state)
	long := newTrail(t, writeState(t, small, 60))
	for range 500 {
		file := rand.IntN(len(long.names))
		text := readFile(t, long.names[file])
		long.flipBit(file, rand.IntN(len(text)), byte(1)<<rand.IntN(8))
		writeFile(t, long.names[file], text)
	}
	verifyState(t, long.state)
}

// TestTamper_Lines drops, moves and adds lines: the fault is found where they were.
func TestTamper_Lines(t *testing.T) {
	t.Parallel()
	r := newTrail(t, writeState(t, small, 40))
	stranger := slices.Collect(bytes.Lines(readFile(t, listSegments(t, writeState(t, small, 40))[0])))
	r.eachLine(func(file, line int) {
		text := r.original[r.names[file]]
		i := line - 1
		at := fmt.Sprintf("file %d, line %d", file, line)

		r.writeSegment(file, slices.Delete(slices.Clone(text), i, i+1)...)
		name, n := r.lineAfter(file, line-1)
		if line == len(text) && file < len(r.names)-1 {
			name, n = r.names[file+1], 1
		}
		r.expectFault("dropped: "+at, name, n)

		r.writeSegment(file, slices.Insert(slices.Clone(text), i, text[i])...)
		name, n = r.lineAfter(file, line)
		if line == len(text) {
			name, n = r.names[file], line+1
		}
		r.expectFault("repeated: "+at, name, n)

		other := rand.IntN(len(text))
		swapped := slices.Clone(text)
		swapped[i], swapped[other] = swapped[other], swapped[i]
		if other != i {
			r.writeSegment(file, swapped...)
			r.expectFault("swapped: "+at, r.names[file], min(i, other)+1)
		}

		for what, b := range map[string][]byte{
			"of another audit": stranger[1+rand.IntN(len(stranger)-1)], "empty": []byte("\n"), "JSON": []byte("{}\n"),
			"short": []byte(`","hash":"","prev":""}` + "\n"), "long": append(bytes.Repeat([]byte("x"), 100_000), '\n'),
			"no number": []byte(strings.Replace(string(text[i]), `"seq":`, `"seq":-`, 1)), "NUL": make([]byte, 300),
		} {
			r.writeSegment(file, slices.Insert(slices.Clone(text), i, b)...)
			r.expectFault("inserted, "+what+": "+at, r.names[file], line)
			replaced := slices.Clone(text)
			replaced[i] = b
			r.writeSegment(file, replaced...)
			r.expectFault("replaced, "+what+": "+at, r.names[file], line)
		}
		r.writeSegment(file, text...)
	})
	verifyState(t, r.state)
}

// TestTamper_TruncatedFile truncates a file: the fault is found where it ends.
func TestTamper_TruncatedFile(t *testing.T) {
	t.Parallel()
	r := newTrail(t, writeState(t, small, 14))
	for file, name := range r.names {
		whole := readFile(t, name)
		for size := range whole {
			writeFile(t, name, whole[:size])
			line := bytes.Count(whole[:size], []byte("\n"))
			at, n := name, line+1
			if size == 0 || whole[size-1] == '\n' {
				if file < len(r.names)-1 && size > 0 {
					at, n = r.names[file+1], 1
				}
			}
			r.expectFault(fmt.Sprintf("file %d, %d of %d bytes", file, size, len(whole)), at, n)
		}
		writeFile(t, name, whole)
	}
	verifyState(t, r.state)
}

// TestTamper_Files removes and renames files: each is found.
func TestTamper_Files(t *testing.T) {
	t.Parallel()
	r := newTrail(t, writeState(t, small, 60))
	last := len(r.names) - 1
	for file, name := range r.names {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		switch file {
		case last:
			r.expectFault("the last removed", r.names[file-1], len(r.original[r.names[file-1]])+1)
		default:
			r.expectFault("removed", r.names[file+1], 1)
		}
		r.restore()
		other := segmentName(r.state, 7)
		if file == last {
			other = segmentName(r.state, 1_000_000)
		}
		if err := os.Rename(name, other); err != nil {
			t.Fatal(err)
		}
		r.expectFault("renamed", other, 1)
		r.restore()
	}
	for _, name := range r.names {
		writeFile(t, name, nil)
	}
	r.expectFault("all emptied", r.names[0], 1)
	for _, name := range r.names {
		_ = os.Remove(name)
	}
	v := newVerifier(t, r.state)
	if report, err := v.State(r.state); err == nil {
		t.Errorf("all removed: %+v", report)
	}
	r.restore()
	verifyState(t, r.state)
}

func segmentName(state string, first int) string {
	return filepath.Join(state, "audit", fmt.Sprintf("%020d.jsonl", first))
}

// TestTamper_Checkpoint changes, removes and exchanges checkpoints: each is found.
func TestTamper_Checkpoint(t *testing.T) {
	t.Parallel()
	r := newTrail(t, writeState(t, small, 10))
	for at := range r.head {
		for bit := byte(1); bit != 0; bit <<= 1 {
			b := bytes.Clone(r.head)
			b[at] ^= bit
			writeFile(t, r.checkpoint(), b)
			r.expectFault(fmt.Sprintf("byte %d ^ %#x", at, bit), r.checkpoint(), 0)
		}
		writeFile(t, r.checkpoint(), r.head[:at])
		r.expectFault(fmt.Sprint("cut to ", at), r.checkpoint(), 0)
	}
	other := writeState(t, small, 10)
	writeFile(t, r.checkpoint(), readFile(t, filepath.Join(other, "audit", "checkpoint")))
	r.expectFault("of another audit", r.checkpoint(), 0)
	// An attacker can copy the signatures among the lines.
	for _, l := range readLines(t, r.state) {
		if l.Event == audit.Checkpoint {
			writeFile(t, r.checkpoint(), []byte(l.Note))
			r.expectFault("one from among the lines", r.checkpoint(), 0)
		}
	}
	if err := os.Remove(r.checkpoint()); err != nil {
		t.Fatal(err)
	}
	r.expectFault("removed", r.checkpoint(), 0)
}

// rechainLines makes a valid chain again after some lines were changed, as an attacker without the key can do.
func rechainLines(text [][]byte) [][]byte {
	form := regexp.MustCompile(`,"prev":"[0-9a-f]{64}","hash":"[0-9a-f]{64}"}\n$`)
	number := regexp.MustCompile(`^{"seq":[0-9]+,`)
	var forged [][]byte
	prev, seq := "", 0
	for i, b := range text {
		var own struct {
			Seq  int
			Prev string
		}
		_ = json.Unmarshal(b, &own)
		if i == 0 {
			prev, seq = own.Prev, own.Seq
		}
		b = form.ReplaceAll(b, []byte(`,"prev":"`+prev+`"`))
		b = number.ReplaceAll(b, fmt.Appendf(nil, `{"seq":%d,`, seq))
		// The hash is of what stands before the quote that ends prev.
		sum := sha256.Sum256(b[:len(b)-1])
		prev = hex.EncodeToString(sum[:])
		forged = append(forged, append(b, `,"hash":"`+prev+"\"}\n"...))
		seq++
	}
	return forged
}

// TestTamper_ForgingIsExact forges lines without changing them: the result is the same bytes, so the other tests forge
// well.
func TestTamper_ForgingIsExact(t *testing.T) {
	t.Parallel()
	r := newTrail(t, writeState(t, 8<<20, 20))
	r.writeSegment(0, rechainLines(r.original[r.names[0]])...)
	verifyState(t, r.state)
}

// TestTamper_RewrittenWithoutKey rewrites lines without the key: the first line that is in doubt is the one after the
// last signature before it.
func TestTamper_RewrittenWithoutKey(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	for range 3 { // each ends with a checkpoint
		l := openCheckpoint(t, state, 8<<20)
		writeLines(t, l, 5)
		closeLog(t, l)
	}
	r := newTrail(t, state)
	text := r.original[r.names[0]]
	checkpoint := func(line int) bool { return bytes.Contains(text[line-1], []byte(`"checkpoint"`)) }
	doubt := 1
	for line := 1; line <= len(text); line++ {
		if checkpoint(line) {
			doubt = line // its own text is signed for by what comes later
		}
		changed := slices.Clone(text)
		changed[line-1] = regexp.MustCompile(`"time":"2`).ReplaceAll(text[line-1], []byte(`"time":"3`))
		r.writeSegment(0, rechainLines(changed)...)
		r.expectFault(fmt.Sprint("rewritten: ", line), r.names[0], doubt)
		if !checkpoint(line) {
			r.writeSegment(0, rechainLines(slices.Delete(slices.Clone(text), line-1, line))...)
			r.expectFault(fmt.Sprint("dropped: ", line), r.names[0], doubt)
			r.writeSegment(0, rechainLines(slices.Insert(slices.Clone(text), line-1, text[line-1]))...)
			r.expectFault(fmt.Sprint("repeated: ", line), r.names[0], doubt)
		}
	}
}

// TestTamper_OldCheckpoint puts back an older file checkpoint and rewrites all that came later, without its
// signatures. The attacker has no key.
func TestTamper_OldCheckpoint(t *testing.T) {
	t.Parallel()
	const keep = 64 << 20 // one segment
	for what, later := range map[string]func(text [][]byte) [][]byte{
		"many lines": func(text [][]byte) [][]byte { return text },
		"few lines, over a while": func(text [][]byte) [][]byte {
			last := bytes.Replace(text[4], []byte(`"time":"2`), []byte(`"time":"3`), 1)
			return append(slices.Clone(text[:4]), last)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			state := writeState(t, keep, 5)
			old := readFile(t, state+"/audit/checkpoint")
			seen := bytes.Count(readFile(t, listSegments(t, state)[0]), []byte("\n"))
			l := openCheckpoint(t, state, keep)
			writeLines(t, l, 3000)
			closeLog(t, l)
			r := newTrail(t, state)
			text := r.original[r.names[0]]
			forged := slices.DeleteFunc(slices.Clone(text[seen:]),
				func(b []byte) bool { return bytes.Contains(b, []byte(`"checkpoint"`)) })
			forged = later(forged)
			r.writeSegment(0, rechainLines(append(slices.Clone(text[:seen]), forged...))...)
			writeFile(t, r.checkpoint(), old)
			r.expectFault(what, r.names[0], seen+1)
			l, err := audit.Open(audit.Options{State: state, Keep: keep}, time.Now, slog.New(slog.DiscardHandler))
			if !errors.Is(err, audit.ErrDamaged) {
				t.Errorf("gone on with: %v %v", l, err)
			}
		})
	}
}

// TestVerify_QuietTime writes nothing for a long time: nothing is signed then, so the first lines after it have no
// signature for a while, which is not a forgery.
func TestVerify_QuietTime(t *testing.T) {
	t.Parallel()
	state := writeState(t, 8<<20, 5)
	old := readFile(t, state+"/audit/checkpoint")
	late := func() time.Time { return time.Now().Add(time.Hour) }
	l, err := audit.Open(audit.Options{State: state, Keep: 8 << 20}, late, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	writeLines(t, l, 2)
	v := newVerifier(t, state)
	if report, err := v.Files(listSegments(t, state)); err != nil { // as it is copied now
		t.Errorf("%+v %v", report, err)
	}
	killed := t.TempDir() // and just before the file checkpoint was replaced the last time
	if err := errors.Join(os.CopyFS(killed, os.DirFS(state)), os.Chmod(killed, 0o700),
		os.Chmod(killed+"/audit", 0o700)); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	writeFile(t, killed+"/audit/checkpoint", old)
	writeFile(t, listSegments(t, killed)[0], append(readFile(t, listSegments(t, killed)[0]), "torn"...))
	for range 3 { // each is killed when it has said what was cut
		l, err := audit.Open(audit.Options{State: killed, Keep: 8 << 20}, late, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		closeLog(t, l)
	}
	verifyState(t, killed)
}

// TestTamper_UnsignedRemoval removes lines and adds a line that records it, without a signature: that does not make it
// true.
func TestTamper_UnsignedRemoval(t *testing.T) {
	t.Parallel()
	r := newTrail(t, writeState(t, small, 60))
	last := len(r.names) - 1
	text := r.original[r.names[last]]
	var first audit.Line
	if err := json.Unmarshal(r.original[r.names[2]][0], &first); err != nil {
		t.Fatal(err)
	}
	says := fmt.Appendf(nil, `"event":"removed","through":%d`, first.Seq-1)
	add := bytes.Replace(text[len(text)-1], []byte(`"event":"checkpoint"`), says, 1)
	r.writeSegment(last, rechainLines(append(slices.Clone(text), add))...)
	verifyState(t, r.state) // it only hangs on the chain
	for _, name := range r.names[:2] {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	r.expectFault("removed", r.names[2], 1)
}

// TestVerify_CheckpointElsewhere rewrites everything with the key of the machine: a checkpoint that is kept elsewhere
// shows it.
func TestVerify_CheckpointElsewhere(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	kept := map[string]string{}
	early := ""
	for i := range 3 {
		l := openCheckpoint(t, state, small)
		writeLines(t, l, 5)
		closeLog(t, l)
		kept[fmt.Sprint("kept ", i)] = string(readFile(t, state+"/audit/checkpoint"))
		if i == 0 {
			early = string(bytes.Join([][]byte{readFile(t, listSegments(t, state)[0])}, nil))
		}
	}
	v := newVerifier(t, state)
	v.Checkpoints = kept
	if _, err := v.State(state); err != nil {
		t.Errorf("nothing was done yet: %v", err)
	}
	// Restore the state after the first time, complete and with its checkpoint.
	for _, name := range listSegments(t, state)[1:] {
		_ = os.Remove(name)
	}
	writeFile(t, listSegments(t, state)[0], []byte(early))
	writeFile(t, state+"/audit/checkpoint", []byte(kept["kept 0"]))
	verifyState(t, state)
	var fault *audit.Fault
	if _, err := v.State(state); !errors.As(err, &fault) || !strings.Contains(fault.What, "is missing") {
		t.Errorf("truncated: %v", err)
	}
	// Then continue from there.
	l := openCheckpoint(t, state, small)
	writeLines(t, l, 20)
	closeLog(t, l)
	verifyState(t, state)
	for from := range maps.Keys(kept) {
		v := newVerifier(t, state)
		v.Checkpoints = map[string]string{from: kept[from]}
		if _, err := v.State(state); (err == nil) != (from == "kept 0") {
			t.Errorf("rewritten, with %s: %v", from, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	// The same in every process that the fuzzer starts.
	state, key := f.TempDir(), ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	l, err := audit.Open(audit.Options{State: state, Keep: small, Key: key},
		func() time.Time { return time.Unix(1, 0) }, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	writeLines(f, l, 3)
	closeLog(f, l)
	whole := readFile(f, listSegments(f, state)[0])
	v := newVerifier(f, state)
	f.Add(whole)
	f.Add([]byte("{}\n"))
	f.Add(bytes.Replace(whole, []byte(`"seq":3`), []byte(`"seq":18446744073709551615`), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		name := filepath.Join(t.TempDir(), "lines")
		writeFile(t, name, b)
		got, err := v.Files([]string{name})
		if err != nil || got.Vouched == 0 {
			return
		}
		vouched := slices.Collect(bytes.Lines(b))[:got.Vouched-got.First+1]
		if !bytes.Contains(whole, bytes.Join(vouched, nil)) {
			t.Errorf("vouched for up to %d: %q", got.Vouched, b)
		}
	})
}
