package output_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
	"sallyport/runner/process/processtest"
	"sallyport/runner/process/rundir"
)

// keepsEnds runs a command that writes size bytes, and checks that exactly the bytes
// that its hook keeps are there, during the run and afterwards.
func keepsEnds(t *testing.T, head, tail, size int64) {
	t.Helper()
	b := processtest.NewBench(t, hook.Spec{
		Command: processtest.Script(t, fmt.Sprintf("seq %d %d | head -c %d", processtest.FirstLine, processtest.FirstLine+size/processtest.LineBytes, size)),
		Output:  hook.OutputSpec{Head: hook.Size(head), Tail: hook.Size(tail)},
	})
	run := b.Begin(t, processtest.NewOrder())
	b.ReadAlong(t, run, 10_000)
	e := b.AwaitEnd(t, run)
	processtest.CheckExit(t, e, 0)
	want := rundir.Dropped{From: head, To: size - tail}
	if want.To <= want.From {
		want = rundir.Dropped{}
	}
	if e.Output != (runner.Output{Bytes: size, Dropped: want.Bytes()}) {
		t.Errorf("the end has %+v, want %d bytes and %d dropped", e.Output, size, want.Bytes())
	}
	if kept := b.ReadAlong(t, run, 100_000); kept != size-want.Bytes() {
		t.Errorf("%d bytes are there, want %d", kept, size-want.Bytes())
	}
	if onDisk, most := b.DiskUsage(t, run), head+tail+256<<10+16<<10; onDisk > most {
		t.Errorf("%d bytes of the disk are taken, want at most %d", onDisk, most)
	}
	o, err := b.Output(run)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	if gotSize, got := o.State(); gotSize != size || got != want {
		t.Errorf("readers see %d bytes without %+v, want %d without %+v", gotSize, got, size, want)
	}
	if _, _, err := o.Next(make([]byte, 1), size); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if want.Bytes() == 0 {
		return
	}
	p := make([]byte, 1000)
	if at, n, err := o.Next(p, want.From-1); err != nil || n != 1 || at != want.From-1 {
		t.Errorf("before the middle: %d bytes at %d, %v", n, at, err)
	}
	if at, n, err := o.Next(p, want.From); err != nil || n == 0 || at != want.To {
		t.Errorf("in the middle: %d bytes at %d, %v", n, at, err)
	}
}

// TestOutput_HeadAndTail checks that exactly the configured head and tail of an output are kept.
func TestOutput_HeadAndTail(t *testing.T) {
	const head, tail = 100_000, 300_000
	for _, size := range []int64{0, 1, head - 1, head, head + 1, head + tail, head + tail + 1, head + tail + 75_000, 2_000_003} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { keepsEnds(t, head, tail, size) })
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	for range 12 {
		head, tail := 1+random.Int64N(1<<20), 1+random.Int64N(1<<20)
		size := random.Int64N(3 * (head + tail))
		t.Run(fmt.Sprintf("seed %d, %d of %d and %d", seed, size, head, tail), func(t *testing.T) { keepsEnds(t, head, tail, size) })
	}
}

// TestOutput_NoMemory checks that a long output is not held in memory.
func TestOutput_NoMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	keepsEnds(t, 1<<20+5, 3<<20+7, 270_000_000)
	runtime.ReadMemStats(&after)
	if after.Sys > before.Sys+64<<20 {
		t.Errorf("%d bytes of memory for it", after.Sys-before.Sys)
	}
}

// TestOutput_FIFO checks that a FIFO in place of the output file is refused.
func TestOutput_FIFO(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, "echo much")})
	run := b.Begin(t, processtest.NewOrder())
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	for _, name := range []string{"output", "status"} {
		file := filepath.Join(b.Dir, run, name)
		if err := errors.Join(os.Rename(file, file+".old"), syscall.Mkfifo(file, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := output.Open(b.Dir, run); err == nil || !strings.Contains(err.Error(), name+" is not a regular file") {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Rename(file+".old", file); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOutput_RemovedByQuota checks that an output that the quota removed is reported as not kept, and not its run as
// unknown.
func TestOutput_RemovedByQuota(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, "echo much")})
	run := b.Begin(t, processtest.NewOrder())
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	if freed, err := rundir.Trim(b.Dir, 0); err != nil || freed == 0 {
		t.Fatal(freed, err)
	}
	_, live := b.Output(run)
	_, files := output.Open(b.Dir, run)
	for _, err := range []error{live, files} {
		if !errors.Is(err, output.ErrNotKept) || errors.Is(err, runner.ErrUnknown) {
			t.Error(err)
		}
	}
}

// TestOutput_StreamsOpenedByName checks that earlier output stays when a command opens its streams by name, as on a
// terminal.
func TestOutput_StreamsOpenedByName(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `
echo 1; echo 2 > /dev/stderr; echo 3 >&2; echo 4 | tee /dev/stderr; echo 5 > /proc/self/fd/1; echo 6 >> /dev/stdout
: > /proc/self/fd/1; echo 7 | dd of=/dev/stderr status=none; cat /dev/null > /dev/stdout; echo 8`)})
	run := b.Begin(t, processtest.NewOrder())
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	if got := b.ReadOutput(t, run); got != "1\n2\n3\n4\n4\n5\n6\n7\n8\n" {
		t.Errorf("got %q", got)
	}
}
