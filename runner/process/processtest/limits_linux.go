package processtest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// LimitOf returns the process limit (RLIMIT_NPROC) of a process.
func LimitOf(t testing.TB, pid int) uint64 {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NPROC, nil, &limit); err != nil {
		t.Fatal(err)
	}
	return limit.Cur
}
