package proctree

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// reservedProcesses is how many processes and threads are reserved for the server and the supervisor. The Go
	// runtime ends a process that cannot create a thread.
	reservedProcesses = 256
	// oomRaise makes the kernel kill a command rather than the server when memory is short. The kernel treats the
	// command as if it used 30 % of the memory more.
	oomRaise = 300
	oomMost  = 1000
)

// ProcessLimit returns the soft RLIMIT_NPROC of commands. It stays below each limit that a fork bomb could reach
// together with the server and the supervisor: their own RLIMIT_NPROC, the limits of the system, and those of their
// cgroups.
func ProcessLimit() uint64 {
	limit := uint64(math.MaxUint64)
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &own); err == nil {
		limit = own.Cur
	}
	files := []string{"/proc/sys/kernel/threads-max", "/proc/sys/kernel/pid_max"}
	dir, _ := ownCgroup() // empty without a cgroup
	for ; len(dir) > 1; dir = filepath.Dir(dir) {
		files = append(files, filepath.Join(dir, "pids.max"))
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // no such limit
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil { // or "max"
			limit = min(limit, n)
		}
	}
	return limit - min(reservedProcesses, limit/2)
}

// whileSet calls fork while this process has the umask and the process limit of a command. A child inherits both when
// it is created. Between fork and exec nothing can set them, except a second exec. If the limit were set after the
// start, it would miss the processes that the command has forked by then.
//
// Both apply to the whole process. The umask does no harm, because every file of the supervisor is made with an
// explicit mode for its owner only. The limit could prevent the runtime from making a thread, so there are spare
// threads: see MakeThreads.
func (l *commandLimits) whileSet(umask int, fork func() (*os.Process, error)) (*os.Process, error) {
	own := syscall.Umask(umask)
	defer syscall.Umask(own)
	var limit unix.Rlimit
	if l.processes == 0 || unix.Getrlimit(unix.RLIMIT_NPROC, &limit) != nil || limit.Cur <= l.processes {
		return fork()
	}
	// This does not fail: a process may always lower a soft limit, and raise it back to what it was.
	_ = unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: l.processes, Max: limit.Max})
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NPROC, &limit) }()
	return fork()
}

// commandOOMScore returns the oom_score_adj of commands. If the server is protected by a negative score, commands do
// not inherit that.
func commandOOMScore() int {
	text, err := readKernelFile("/proc/self/oom_score_adj")
	if err != nil {
		return oomRaise
	}
	own, _ := strconv.Atoi(strings.TrimSpace(string(text))) // the kernel writes a number
	return min(max(own, 0)+oomRaise, oomMost)
}

// RaiseOOMScore marks a command as the first that the kernel is to kill. Processes that it has forked by now keep the
// earlier score, but they are few. A program that its user cannot read cannot be marked.
func (p *Parent) RaiseOOMScore(pid int) {
	score := []byte(strconv.Itoa(p.limits.oomScore))
	err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"), score, 0)
	if err != nil {
		p.log.Debug("raising the OOM score of a command", "pid", pid, "error", err)
	}
}
