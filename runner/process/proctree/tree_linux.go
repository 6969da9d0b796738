package proctree

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Tree is all that a command started. With a cgroup the kernel keeps the account,
// of all but the processes that write themselves into cgroup.procs of another, where
// they may. Those, and without a cgroup all that left the session, are found by
// what they inherited: the run's entry in the environment, the lock, their parents.
// A process that shed all three before anybody looked escapes, unless its run is
// the only one.
//
// The main process is not reaped before the tree is gone, so its pid and the
// group of that number are nobody else's as long as they are used here.
type Tree struct {
	parent *Parent
	run    Run
	main   *os.Process // nil for an orphan
	pid    int
	mark   []byte // entry of the environment
	cgroup cgroup // empty without one
	left   bool   // processes of it were found outside of the cgroup

	found map[int]string // pid and start of all that a search ever found
}

func (p *Parent) newTree(r Run) *Tree {
	return &Tree{parent: p, run: r, mark: []byte(RunMark + r.ID), found: map[int]string{}}
}

func (p *Parent) startTree(c Command) (*Tree, error) {
	t := p.newTree(c.Run)
	if p.cgroups != "" {
		if err := t.startInCgroup(c); err == nil {
			return t, nil
		}
	}
	// Whether the cgroup was the trouble or the command, a failed start has run
	// nothing: the plain way shows that, or works.
	main, err := p.limits.startProcess(c, c.Attr)
	if err != nil {
		return nil, err
	}
	t.main, t.pid = main, main.Pid
	if p.cgroups != "" {
		p.log.Warn("run started without a cgroup", "run", c.Run.ID)
	}
	return t, nil
}

func (t *Tree) startInCgroup(c Command) error {
	dir := t.parent.CgroupOf(c.Run.ID)
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // the folder of a cgroup holds nothing secret
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	sys := *c.Attr.Sys
	sys.UseCgroupFD, sys.CgroupFD = true, int(f.Fd())
	within := *c.Attr
	within.Sys = &sys
	main, err := t.parent.limits.startProcess(c, &within)
	_ = f.Close() // only read
	if err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	t.main, t.pid, t.cgroup = main, main.Pid, cgroup(dir)
	return nil
}

// Cgroup is the path of the run's cgroup; empty if it has none.
func (t *Tree) Cgroup() string { return string(t.cgroup) }

// AwaitMain returns when the main process, which is a child, has ended. It leaves it to be reaped
// and returns nil; or, on a kernel that cannot do that, it has reaped it.
func (t *Tree) AwaitMain() *os.ProcessState {
	if err := awaitZombie(t.main.Pid); err == nil {
		return nil
	}
	return t.ReapMain()
}

// MainHasEnded reports whether the main process, which is a child, has ended, and leaves it to be reaped.
func (t *Tree) MainHasEnded() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, t.main.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}

// awaitZombie waits by the runtime's poller, so a run in progress holds no thread.
func awaitZombie(pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = f.Close() }() // nothing was written
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ended error
	err = conn.Read(func(fd uintptr) bool {
		var info unix.Siginfo
		ended = unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		return !errors.Is(ended, unix.EINTR) && (ended != nil || info.Signo != 0)
	})
	return errors.Join(err, ended)
}

// Terminate asks every process of the tree to end, a stopped one too.
func (t *Tree) Terminate() {
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGCONT} {
		t.signalAll(sig)
	}
}

// signalAll reaches the group in one stroke, and the rest one by one. What is gone
// meanwhile needs no signal, so errors say nothing.
func (t *Tree) signalAll(sig syscall.Signal) {
	if t.pid > 0 {
		_ = unix.Kill(-t.pid, sig)
	}
	handles := map[int]int{}
	for _, pid := range t.listMembers() {
		if group, err := unix.Getpgid(pid); err == nil && group == t.pid {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			handles[pid] = fd
		}
	}
	if len(handles) == 0 {
		return
	}
	// Who is still a member now is the process that the handle stands for, and
	// not one that was given the same pid in between.
	members := t.listMembers()
	for pid, fd := range handles {
		if slices.Contains(members, pid) {
			_ = unix.PidfdSendSignal(fd, sig, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

// Kill kills the tree. Without a cgroup it may have to be done again, for
// processes that were born meanwhile.
func (t *Tree) Kill() {
	if t.cgroup != "" && t.cgroup.killAll() == nil && !t.left {
		return
	}
	t.signalAll(unix.SIGKILL)
}

// IsGone tells whether no process of the tree is alive.
func (t *Tree) IsGone() bool {
	if t.cgroup != "" {
		if populated, err := t.cgroup.isPopulated(); err == nil {
			return !populated && !t.hasEscaped()
		}
	}
	return len(t.listMembers()) == 0
}

// hasEscaped looks for processes that left the cgroup, and remembers whether there
// are any. All processes are searched only where there can be some: one that left
// has the lock, or is a child of this process now, because its parent has ended.
func (t *Tree) hasEscaped() bool {
	t.left = (!t.parent.Reaps() || t.run.IsLocked() || t.parent.hasStrays()) && len(t.searchProcesses()) > 0
	return t.left
}

// Census counts the processes of the tree, and names some of their programs.
func (t *Tree) Census() (n int, names []string) {
	const most = 5
	pids := t.listMembers()
	for _, pid := range pids[:min(len(pids), most)] {
		if name, err := readKernelFile("/proc", strconv.Itoa(pid), "comm"); err == nil {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return len(pids), names
}

// Close removes the cgroup and those that the command made in it. The main process is not awaited any more.
func (t *Tree) Close() error {
	t.parent.mains.Delete(t)
	if t.cgroup == "" {
		return nil
	}
	return t.cgroup.removeGroups()
}

// listMembers are the living processes of the tree.
func (t *Tree) listMembers() (pids []int) {
	if t.cgroup == "" {
		return t.searchProcesses()
	}
	if t.left {
		pids = t.searchProcesses()
	}
	for _, pid := range t.cgroup.listMembers() {
		if !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// searchProcesses finds the tree among all processes. No command is born meanwhile:
// until it executes its program it shares our descriptors, and might be taken
// for one that inherited the lock.
func (t *Tree) searchProcesses() (pids []int) {
	t.parent.spawning.Lock()
	defer t.parent.spawning.Unlock()
	stray := t.strayFilter()
	all := readProcesses()
	children := map[int][]int{}
	var queue []int
	for pid, p := range all {
		children[p.parent] = append(children[p.parent], pid)
		ours := t.pid > 0 && (p.group == t.pid || p.session == t.pid)
		if ours || stray(pid, p) || t.found[pid] == p.start || t.isMarked(pid) {
			queue = append(queue, pid)
		}
	}
	seen := map[int]bool{os.Getpid(): true}
	for len(queue) > 0 {
		pid := queue[0]
		queue = queue[1:]
		if seen[pid] {
			continue
		}
		seen[pid] = true
		queue = append(queue, children[pid]...)
		if p := all[pid]; !p.zombie {
			t.found[pid] = p.start
			pids = append(pids, pid)
		}
	}
	return pids
}

// strayFilter returns a function that reports of a process whether it is one that shed all that it inherited
// and was left to this process as the subreaper. Whose it was can be said only
// while one run is in progress; with the last one all of them end.
func (t *Tree) strayFilter() func(pid int, p process) bool {
	own := os.Getpid()
	mains, trees := t.parent.mainPIDs()
	if pid, ok := t.parent.mains.Load(t); !t.parent.subreaper || trees != 1 || !ok || pid != t.pid {
		return func(int, process) bool { return false }
	}
	return func(pid int, p process) bool { return p.parent == own && !mains[pid] }
}

// isMarked tells whether a process has the run's entry in its environment, or
// its lock where the command was given it. One that may not be read is not ours.
func (t *Tree) isMarked(pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	if lock, err := os.Readlink(proc + "/fd/3"); err == nil && lock == t.run.LockPath {
		return true
	}
	env, err := readKernelFile(proc, "environ")
	return err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(entry []byte) bool {
		return bytes.Equal(entry, t.mark)
	})
}

type process struct {
	parent, group, session int
	zombie                 bool
	start                  string // ticks since boot: with the pid, the process and no later one
}

// readProcesses reads the table of processes. One that ends meanwhile is left out.
func readProcesses() map[int]process {
	all := map[int]process{}
	dir, err := os.Open("/proc")
	if err != nil {
		return all
	}
	names, _ := dir.Readdirnames(-1) // as far as it can be read
	_ = dir.Close()
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, ok := readStat(pid); ok {
			all[pid] = p
		}
	}
	return all
}

// readStat reads the entry of one process.
func readStat(pid int) (p process, ok bool) {
	text, err := readKernelFile("/proc", strconv.Itoa(pid), "stat")
	if err != nil {
		return p, false
	}
	// pid (name) state ppid pgrp session … start; the name may hold anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return p, false
	}
	p = process{zombie: fields[0] == "Z" || fields[0] == "X", start: fields[19]}
	p.parent, _ = strconv.Atoi(fields[1]) // the kernel writes numbers
	p.group, _ = strconv.Atoi(fields[2])
	p.session, _ = strconv.Atoi(fields[3])
	return p, true
}

// readKernelFile reads a file that the kernel makes up.
func readKernelFile(path ...string) ([]byte, error) {
	return os.ReadFile(filepath.Join(path...))
}

// mainPIDs are the pids whose end is awaited, and of how many trees they are.
func (p *Parent) mainPIDs() (pids map[int]bool, trees int) {
	pids = map[int]bool{}
	p.mains.Range(func(_, pid any) bool {
		if n, ok := pid.(int); ok {
			pids[n] = true
		}
		trees++
		return true
	})
	return pids, trees
}

// adoptedChildren are the children that this process did not start: those that commands
// left to it as their subreaper, or as the first process of a container. The caller
// holds spawning, so that every child which was started is known.
func (p *Parent) adoptedChildren() []int {
	mains, _ := p.mainPIDs()
	return slices.DeleteFunc(listChildren(), func(pid int) bool { return mains[pid] })
}

// hasStrays reports whether any adopted child is alive.
func (p *Parent) hasStrays() bool {
	p.spawning.Lock()
	defer p.spawning.Unlock()
	return slices.ContainsFunc(p.adoptedChildren(), func(pid int) bool { c, ok := readStat(pid); return ok && !c.zombie })
}

// Reap takes the exit codes of adopted children. Nothing else would, and zombies
// count against the limit of processes.
func (p *Parent) Reap() {
	p.spawning.Lock()
	defer p.spawning.Unlock()
	for _, pid := range p.adoptedChildren() {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // 0 for one that is alive
	}
}
