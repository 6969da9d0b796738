package process_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
)

// TestOutput_EscapedWriter checks that a run ends although a process that escaped continues to write.
func TestOutput_EscapedWriter(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `
(env -i /usr/bin/setsid /bin/sh -c 'exec 3<&-; echo $$ > "$0"; exec /usr/bin/yes' "$1" &)
until [ -s "$1" ]; do sleep 0.01; done`, pid)})
	b.WithoutCgroups()
	run := b.Begin(t, processtest.NewOrder())
	e := b.AwaitEnd(t, run)
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	escaped, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(escaped, syscall.SIGKILL); err != nil {
		t.Errorf("no process escaped: %v", err)
	}
	processtest.CheckExit(t, e, 0)
}
