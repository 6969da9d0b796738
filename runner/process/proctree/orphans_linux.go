package proctree

import (
	"context"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ReapOrphans reaps the processes that became children of this process because it is the first of a container, until
// ctx is done. These are the commands of a supervisor that was killed. In any other process it does nothing.
func ReapOrphans(ctx context.Context) {
	if os.Getpid() != 1 {
		return
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ended:
		}
		// Processes that this one started are reaped by the goroutine that waits for them, and are zombies for less
		// than a second.
		before := zombieChildren()
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
		for pid, start := range zombieChildren() {
			if before[pid] == start {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
				continue
			}
			select { // check this zombie again
			case ended <- syscall.SIGCHLD:
			default:
			}
		}
	}
}

// zombieChildren returns the children of this process that have ended, each with its birth.
func zombieChildren() map[int]string {
	found := map[int]string{}
	for _, pid := range listChildren() {
		if p, ok := readStat(pid); ok && p.zombie {
			found[pid] = p.start
		}
	}
	return found
}

// listChildren returns the processes that the kernel gave to this one when their parent ended, and some that it
// started itself. The kernel gives them to the first thread.
func listChildren() (pids []int) {
	self := strconv.Itoa(os.Getpid())
	list, err := readKernelFile("/proc", self, "task", self, "children")
	if err != nil { // a kernel without CONFIG_PROC_CHILDREN
		for pid, p := range readProcesses() {
			if p.parent == os.Getpid() {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	for word := range strings.FieldsSeq(string(list)) {
		if pid, err := strconv.Atoi(word); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
