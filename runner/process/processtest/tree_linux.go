package processtest

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// IsAlive reports whether a process runs. A zombie does not.
func IsAlive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// Family is a script that starts processes, each of which tries to escape in another way, and writes their pids. They
// ignore TERM if its first argument is empty.
const Family = `
trap "$1" TERM
keep='trap "$0" TERM; echo $$; while :; do sleep 1; done'
sh -c "$keep" "$1" &                                # in the group
setsid sh -c "$keep" "$1" &                         # in a session of its own
(setsid sh -c "$keep" "$1" 3>&- &)                  # forked twice, without the lock
(env -i /usr/bin/setsid /bin/sh -c "$keep" "$1" &)  # forked twice, without the environment
setsid sh -c '(env -i /bin/sh -c "$1" "$0" 3>&- & echo $!; wait)' "$1" "$keep" & # found by its parent only
`

// AwaitPIDs waits until a command has written at least n process ids, and returns them.
func AwaitPIDs(t testing.TB, b *Subject, run string, n int) (all []int) {
	t.Helper()
	Eventually(t, "the family is there", func() bool {
		all = nil
		seen := map[int]bool{}
		for line := range strings.Lines(b.ReadOutput(t, run)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && strings.HasSuffix(line, "\n") &&
				!seen[pid] {
				seen[pid] = true
				all = append(all, pid)
			}
		}
		return len(all) >= n
	})
	for _, pid := range all {
		if !IsAlive(pid) {
			t.Fatalf("the process %d is not there, so the test shows nothing", pid)
		}
	}
	return all
}

// CheckGone checks that none of the processes is alive, and kills those that are.
func CheckGone(t testing.TB, all []int) {
	t.Helper()
	for _, pid := range all {
		if IsAlive(pid) {
			t.Errorf("the process %d outlived its run", pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
