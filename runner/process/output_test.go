package process_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"sallyport/runner"
	"sallyport/runner/process"
)

// The command of these tests writes lines of nine bytes, each its own number,
// so every byte tells where it belongs.
const (
	firstLine = 10_000_000
	lineBytes = 9
)

func counting(lines int) []string {
	return []string{"/usr/bin/seq", strconv.Itoa(firstLine), strconv.Itoa(firstLine + lines - 1)}
}

// right checks that p is what the command wrote at the offset.
func right(t testing.TB, p []byte, at int64) {
	t.Helper()
	for len(p) > 0 {
		line := strconv.AppendInt(nil, firstLine+at/lineBytes, 10)
		rest := string(append(line, '\n')[at%lineBytes:])
		n := min(len(rest), len(p))
		if string(p[:n]) != rest[:n] {
			t.Fatalf("at %d stands %q, want %q", at, p[:n], rest[:n])
		}
		p, at = p[n:], at+int64(n)
	}
}

// readAlong reads an output from its start to the end of the run, and returns
// how many bytes were there.
func (b *subject) readAlong(t testing.TB, run string, chunk int) (kept int64) {
	t.Helper()
	ends, err := b.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	o, err := b.Output(run)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	p := make([]byte, chunk)
	ended := false
	for off := int64(0); ; {
		at, n, err := o.Next(p, off)
		if errors.Is(err, io.EOF) {
			if ended {
				return kept
			}
			select {
			case <-ends:
				ended = true
			default:
				runtime.Gosched()
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		right(t, p[:n], at)
		kept += int64(n)
		off = at + int64(n)
	}
}

func bounded(t testing.TB, lines int, prepare func(*process.Local)) {
	t.Helper()
	const head, tail = 1<<20 + 5, 3<<20 + 7
	b := newBench(t, runner.HookSpec{Command: counting(lines), Output: runner.OutputSpec{Head: head, Tail: tail}})
	prepare(b.Local)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run := b.start(t, order())
	b.readAlong(t, run, 10_000)
	e := b.end(t, run)
	runtime.ReadMemStats(&after)
	exited(t, e, 0)
	size := int64(lines) * lineBytes
	if e.Output.Bytes != size {
		t.Errorf("%d bytes counted, want %d", e.Output.Bytes, size)
	}
	if after.Sys > before.Sys+64<<20 {
		t.Errorf("%d bytes of memory for it", after.Sys-before.Sys)
	}
	kept := b.readAlong(t, run, 100_000)
	if kept+e.Output.Dropped != size || kept < head+tail || kept > head+tail+2*4096 {
		t.Errorf("kept %d and dropped %d of %d, with room for %d", kept, e.Output.Dropped, size, head+tail)
	}
	info, err := os.Stat(filepath.Join(b.dir, run, "output"))
	if err != nil {
		t.Fatal(err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Blocks*512 > head+tail+64<<10 {
		t.Errorf("%+v takes more disk than about %d", stat, head+tail)
	}
	o, err := b.Output(run)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	gotSize, dropped := o.State()
	if gotSize != size || dropped.Bytes() != e.Output.Dropped {
		t.Errorf("readers are told %d and %+v", gotSize, dropped)
	}
	p := make([]byte, 1000)
	if at, n, err := o.Next(p, dropped.From-10); err != nil || n != 10 || at != dropped.From-10 {
		t.Errorf("before the middle: %d bytes at %d, %v", n, at, err)
	}
	if at, n, err := o.Next(p, dropped.From); err != nil || n == 0 || at != dropped.To {
		t.Errorf("in the middle: %d bytes at %d, %v", n, at, err)
	}
	if _, _, err := o.Next(p, size); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestLongOutputKeepsHeadAndTailOnly(t *testing.T) {
	bounded(t, 30_000_000, func(*process.Local) {}) // 270 MB
}

func TestLongOutputIsBoundedWhereTheFilesystemCannotFreeTheMiddle(t *testing.T) {
	bounded(t, 6_000_000, (*process.Local).WithoutPunch) // 54 MB
}

func TestShortOutputIsKeptWhole(t *testing.T) {
	for name, prepare := range map[string]func(*process.Local){"file": func(*process.Local) {}, "pipe": (*process.Local).WithoutPunch} {
		t.Run(name, func(t *testing.T) {
			const lines = 20_000
			b := newBench(t, runner.HookSpec{Command: counting(lines), Output: runner.OutputSpec{Head: 100_000, Tail: 80_000}})
			prepare(b.Local)
			run := b.start(t, order())
			e := b.end(t, run)
			exited(t, e, 0)
			if e.Output != (runner.Output{Bytes: lines * lineBytes}) {
				t.Errorf("output %+v", e.Output)
			}
			if kept := b.readAlong(t, run, 1000); kept != lines*lineBytes {
				t.Errorf("read %d", kept)
			}
		})
	}
}

func TestOutputThatTheCommandCutsShortIsReadAsItStands(t *testing.T) {
	b := newBench(t, runner.HookSpec{
		Command: shell(t, `seq 1000000; echo ready; until [ -e go ]; do sleep 0.01; done; : > /proc/self/fd/1; sleep 1; echo last`),
		Output:  runner.OutputSpec{Head: 100_000, Tail: 100_000},
	})
	run := b.start(t, order())
	eventually(t, "the middle is dropped", func() bool {
		o, err := b.Output(run)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = o.Close() }()
		_, d := o.State()
		return d.Bytes() > 0
	})
	if err := os.WriteFile(filepath.Join(b.dir, run, "work", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	exited(t, b.end(t, run), 0)
	if got := b.output(t, run); got != "last\n" {
		t.Errorf("got %.40q", got)
	}
}

func TestAnOutputThatTheQuotaRemovedIsNotKeptAndItsRunIsKnown(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: shell(t, "echo much")})
	run := b.start(t, order())
	exited(t, b.end(t, run), 0)
	if freed, err := process.Trim(b.dir, 0); err != nil || freed == 0 {
		t.Fatal(freed, err)
	}
	_, live := b.Output(run)
	_, files := process.OpenOutput(b.dir, run)
	for _, err := range []error{live, files} {
		if !errors.Is(err, process.ErrNotKept) || errors.Is(err, process.ErrUnknown) {
			t.Error(err)
		}
	}
}
