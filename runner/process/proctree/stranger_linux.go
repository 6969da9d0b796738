package proctree

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"sallyport/runner/process/rundir"

	"golang.org/x/sys/unix"
)

// CheckStranger refuses a process that is a command or was started by one: a process that descends from the
// supervisor, or is in the cgroup of a run that isRun knows. A command runs as the server's user and can read the
// supervisor's secret, so it could act as a server or as an administrator.
func CheckStranger(pid, supervisor int, isRun func(id string) bool) error {
	for at := pid; at > 1; {
		if at == supervisor {
			return fmt.Errorf("the peer, process %d, was started by a command", pid)
		}
		p, ok := readStat(at)
		if !ok && at == pid && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			// it may have passed its connection to another process
			return fmt.Errorf("the peer, process %d, has ended", pid)
		}
		if !ok {
			break // a process of another user, or one that this process cannot see
		}
		at = p.parent
	}
	groups, err := readKernelFile("/proc", strconv.Itoa(pid), "cgroup")
	if err != nil {
		return nil // this process cannot see it
	}
	for part := range strings.SplitSeq(string(groups), "/") {
		run, ok := strings.CutPrefix(strings.TrimSpace(part), cgroupPrefix)
		if !ok || rundir.CheckID(run) != nil {
			continue
		}
		if isRun(run) { // else it is a run of another installation, which runs this one
			return fmt.Errorf("the peer, process %d, is in the cgroup of run %s", pid, run)
		}
	}
	return nil
}
