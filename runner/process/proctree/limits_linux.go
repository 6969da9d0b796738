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
	// reservedProcesses is how many processes and threads are kept for the server and the
	// supervisor: the Go runtime ends a process that is refused a thread.
	reservedProcesses = 256
	// oomRaise makes the kernel kill a command rather than the server when memory
	// is short: as if the command had 30 % of the memory more.
	oomRaise = 300
	oomMost  = 1000
)

// ProcessLimit is the soft RLIMIT_NPROC of commands. It stays below each bound
// that a fork bomb could reach together with the server and the supervisor: their
// own limit, those of the system, and those of their cgroups.
func ProcessLimit() uint64 {
	limit := uint64(math.MaxUint64)
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &own); err == nil {
		limit = own.Cur
	}
	files := []string{"/proc/sys/kernel/threads-max", "/proc/sys/kernel/pid_max"}
	dir, _ := ownCgroup() // empty without one
	for ; len(dir) > 1; dir = filepath.Dir(dir) {
		files = append(files, filepath.Join(dir, "pids.max"))
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // no such bound
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil { // or "max"
			limit = min(limit, n)
		}
	}
	return limit - min(reservedProcesses, limit/2)
}

// whileSet calls fork while this process has the umask and the limit of
// processes that a command is to have: a child takes both from its parent when it
// is born, and nothing sets them between fork and exec but a second exec. Setting
// the limit after the start would leave out what the command has forked by then.
//
// Both are of the whole process. The umask harms nothing, because every file of
// the supervisor is made with an explicit mode for its owner alone. The limit would
// keep the runtime from making a thread, so there are spare ones: see MakeThreads.
func (l *commandLimits) whileSet(umask int, fork func() (*os.Process, error)) (*os.Process, error) {
	l.forking.Lock()
	defer l.forking.Unlock()
	own := syscall.Umask(umask)
	defer syscall.Umask(own)
	var limit unix.Rlimit
	if l.processes == 0 || unix.Getrlimit(unix.RLIMIT_NPROC, &limit) != nil || limit.Cur <= l.processes {
		return fork()
	}
	// No error: lowering a soft limit is always allowed, and so is raising it
	// back to what it was.
	_ = unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: l.processes, Max: limit.Max})
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NPROC, &limit) }()
	return fork()
}

// commandOOMScore is the oom_score_adj of commands. Protection that the server
// was given is not passed on to them.
func commandOOMScore() int {
	text, err := readKernelFile("/proc/self/oom_score_adj")
	if err != nil {
		return oomRaise
	}
	own, _ := strconv.Atoi(strings.TrimSpace(string(text))) // the kernel writes a number
	return min(max(own, 0)+oomRaise, oomMost)
}

// RaiseOOMScore marks a command as what the kernel is to kill first. What it has
// forked by now keeps the score of before, and is not much yet. A program that its
// user cannot read cannot be marked.
func (p *Parent) RaiseOOMScore(pid int) {
	err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"), []byte(strconv.Itoa(p.limits.oomScore)), 0)
	if err != nil {
		p.log.Debug("raising the OOM score of a command", "pid", pid, "error", err)
	}
}
