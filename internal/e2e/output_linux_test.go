package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	internals "sallyport/internal/e2e"
	"sallyport/internal/testenv"
	"sallyport/runner"
)

// The parts of an output that are kept by default.
const (
	spillHead = 1 << 20
	spillTail = 9 << 20
)

// checkBlocks checks that a part of an output consists of whole, consecutive blocks of each stream. It returns the
// first block of each stream and the one after the last, both -1 for a stream without blocks.
func checkBlocks(t *testing.T, part []byte) (first, next [2]int) {
	t.Helper()
	b := internals.NewBlocks()
	first, next = [2]int{-1, -1}, [2]int{-1, -1}
	for off := 0; off < len(part); off += internals.SpillBlock {
		var second bool
		var n int
		if _, err := fmt.Sscanf(string(part[off:off+16]), "%t %d\n", &second, &n); err != nil {
			t.Fatalf("no block begins with %q", part[off:off+16])
		}
		stream := 0
		if second {
			stream = 1
		}
		if !bytes.Equal(part[off:min(off+internals.SpillBlock, len(part))], b.Block(second, n)) {
			t.Fatalf("block %d of stream %d has other content than was written", n, stream)
		}
		if first[stream] < 0 {
			first[stream], next[stream] = n, n
		}
		if n != next[stream] {
			t.Fatalf("block %d of stream %d comes after %d", n, stream, next[stream]-1)
		}
		next[stream]++
	}
	return first, next
}

const spillHooks = `
hooks:
  spill: {callers: [load], command: [SPILL, DIR/took, DIR/gate], timeout: 5m} # of its output 1 MiB and 9 MiB are kept
`

// TestOutput_Gigabyte: a gigabyte on both streams uses neither much memory nor, for long, much of the disk, and the
// kept parts are right, byte by byte.
func TestOutput_Gigabyte(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	command, err := exec.LookPath("spill")
	mustSucceed(t, err)
	dir := t.TempDir()
	buildShipped(t, dir)
	in := install(t, filepath.Join(dir, "sallyport"), strings.ReplaceAll(spillHooks, "SPILL", command))
	in.start(true)
	run := in.deliver("spill", "{}").run()
	followed := in.followToTheEnd(run.ID)
	most := int64(0)
	for err = os.ErrNotExist; err != nil; <-time.After(5 * time.Millisecond) {
		most = max(most, in.diskUsage("state/runs/"+run.ID+"/output")+in.diskUsage("state/runs/"+run.ID+"/tail"))
		_, err = os.Stat(filepath.Join(in.dir, "took"))
	}
	t.Logf("written in %s ns; at most %d KiB of disk space were used", in.read("took"), most>>10)
	if most > spillHead+spillTail+300<<10 {
		t.Errorf("the output used %d bytes of disk space", most)
	}
	in.write("gate", "", 0o600)
	run = in.sendRequest(t.Context(), http.MethodGet, "/runs/"+run.ID, "", "Prefer: wait=60").run()
	const dropped = internals.Spilled - spillHead - spillTail
	if run.State != runner.Succeeded || run.Output != (runner.Output{Bytes: internals.Spilled, Dropped: dropped}) {
		t.Errorf("the run is %+v, and of %d bytes %d were dropped", run, internals.Spilled, dropped)
	}
	checkKeptOutput(t, in.sendRequest(t.Context(), http.MethodGet, "/runs/"+run.ID+"/output", ""))
	if n := <-followed; n < spillHead+spillTail {
		t.Errorf("the follower received %d bytes", n)
	}
	for who, pid := range map[string]int{"server": in.server.Process.Pid, "supervisor": in.supervisor()} {
		kib := peakMemory(t, pid)
		t.Logf("peak memory %d KiB of the %s", kib, who)
		if kib > memoryGoal {
			t.Errorf("peak memory of the %s is %d KiB, over the limit of %d", who, kib, memoryGoal)
		}
	}
	in.endServer()
}

// checkKeptOutput checks an output without its middle.
func checkKeptOutput(t *testing.T, a reply) {
	t.Helper()
	const dropped = internals.Spilled - spillHead - spillTail
	if want := fmt.Sprintf("%d-%d", spillHead, internals.Spilled-spillTail-1); a.header.Get("X-Output-Dropped") != want {
		t.Errorf("the answer says that %s bytes were dropped, want %s", a.header.Get("X-Output-Dropped"), want)
	}
	gap := fmt.Sprintf("\n[%d bytes not kept]\n", dropped)
	if len(a.body) != spillHead+len(gap)+spillTail || string(a.body[spillHead:spillHead+len(gap)]) != gap {
		t.Fatalf("the answer has %d bytes", len(a.body))
	}
	first, upTo := checkBlocks(t, a.body[:spillHead])
	from, end := checkBlocks(t, a.body[spillHead+len(gap):])
	between := 0
	for stream := range 2 {
		const all = internals.Spilled / internals.SpillBlock / 2
		if upTo[stream] < 0 { // no block in the first part
			first[stream], upTo[stream] = 0, 0
		}
		if from[stream] < 0 { // no block in the last part
			from[stream], end[stream] = all, all
		}
		if first[stream] != 0 || end[stream] != all {
			t.Errorf("stream %d begins with block %d and ends before %d", stream, first[stream], end[stream])
		}
		between += from[stream] - upTo[stream]
	}
	if between*internals.SpillBlock != dropped {
		t.Errorf("%d blocks are missing, and %d bytes were dropped", between, dropped)
	}
}

// followToTheEnd reads an output while it is written, and sends the number of bytes.
func (in *installation) followToTheEnd(id string) <-chan int64 {
	read := make(chan int64, 1)
	header, err := in.sign("", nil, time.Now())
	mustSucceed(in.t, err)
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, *in.url.Load()+"/runs/"+id+"/output?follow", nil)
	mustSucceed(in.t, err)
	req.Header = header
	go func() {
		defer close(read)
		res, err := (&http.Client{Transport: in.http.Transport}).Do(req)
		if err != nil {
			return
		}
		defer func() { _ = res.Body.Close() }()
		n, _ := io.Copy(io.Discard, res.Body) // the number of bytes is checked
		read <- n
	}()
	return read
}
