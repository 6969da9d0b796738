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

// Tree is a command with all the processes that it started. With a cgroup, the kernel tracks all of them, except
// processes that write themselves into the cgroup.procs file of another cgroup, if they may. Those processes, and
// without a cgroup all that left the session, are found by what they inherited: the entry of the run in the
// environment, the lock, their parents. A process that dropped all three before the first search escapes, unless its
// run is the only one.
//
// The main process is not reaped before the tree is gone, so while its pid and the process group with that number are
// used here, no other process can get them.
type Tree struct {
	parent *Parent
	run    Run
	main   *os.Process // nil for an orphan
	pid    int
	mark   []byte // entry of the environment
	cgroup cgroup // empty without a cgroup
	left   bool   // some of its processes were found outside the cgroup

	found map[int]string // pid and start of each process that a search has found
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
	// The reason may be the cgroup or the command. In both cases the failed start has run nothing, so a start without
	// a cgroup either works or fails with the reason.
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

// Cgroup returns the path of the run's cgroup; empty if it has none.
func (t *Tree) Cgroup() string { return string(t.cgroup) }

// AwaitMain returns when the main process, which is a child, has ended. It returns nil and does not reap it; on a
// kernel that does not support that, it reaps it and returns its state.
func (t *Tree) AwaitMain() *os.ProcessState {
	if err := awaitZombie(t.main.Pid); err == nil {
		return nil
	}
	return t.ReapMain()
}

// MainHasEnded reports whether the main process, which is a child, has ended. It does not reap it.
func (t *Tree) MainHasEnded() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, t.main.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}

// awaitZombie waits with the runtime's poller, so a run in progress occupies no thread.
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

// Terminate asks every process of the tree to end, including stopped ones.
func (t *Tree) Terminate() {
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGCONT} {
		t.signalAll(sig)
	}
}

// signalAll signals the group with one call, and the other processes one by one. It ignores errors, because a process
// that has ended needs no signal.
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
	// If a pid is still a member now, the handle stands for that process, and not for another one that got the same
	// pid in between.
	members := t.listMembers()
	for pid, fd := range handles {
		if slices.Contains(members, pid) {
			_ = unix.PidfdSendSignal(fd, sig, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

// Kill kills the tree. Without a cgroup the caller may have to repeat it, for processes that were born during the
// search.
func (t *Tree) Kill() {
	if t.cgroup != "" && t.cgroup.killAll() == nil && !t.left {
		return
	}
	t.signalAll(unix.SIGKILL)
}

// IsGone reports whether no process of the tree is alive.
func (t *Tree) IsGone() bool {
	if t.cgroup != "" {
		if populated, err := t.cgroup.isPopulated(); err == nil {
			return !populated && !t.hasEscaped()
		}
	}
	return len(t.listMembers()) == 0
}

// hasEscaped reports whether processes left the cgroup, and records that. It searches all processes only if some may
// have left: such a process holds the lock, or is a child of this process now, because its parent has ended.
func (t *Tree) hasEscaped() bool {
	t.left = (!t.parent.Reaps() || t.run.IsLocked() || t.parent.hasStrays()) && len(t.searchProcesses()) > 0
	return t.left
}

// Census counts the processes of the tree, and returns the names of some of their programs.
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

// Close removes the cgroup and those that the command made in it, and removes the tree from those of its Parent.
func (t *Tree) Close() error {
	t.parent.mains.Delete(t)
	if t.cgroup == "" {
		return nil
	}
	return t.cgroup.removeGroups()
}

// listMembers returns the living processes of the tree.
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

// searchProcesses finds the tree among all processes. It keeps commands from being started during the search: until a
// child executes its program, it shares the descriptors of this process, and the search might find the lock in it.
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

// strayFilter returns a function that reports whether a process dropped all that it inherited and was left to this
// process as the subreaper. Its run is known only while a single run is in progress; all strays end with the last
// run.
func (t *Tree) strayFilter() func(pid int, p process) bool {
	own := os.Getpid()
	mains, trees := t.parent.mainPIDs()
	if pid, ok := t.parent.mains.Load(t); !t.parent.subreaper || trees != 1 || !ok || pid != t.pid {
		return func(int, process) bool { return false }
	}
	return func(pid int, p process) bool { return p.parent == own && !mains[pid] }
}

// isMarked reports whether a process has the entry of the run in its environment, or the lock of the run at the
// descriptor where the command got it. A process that this one may not read counts as unmarked.
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
	start                  string // ticks since boot; pid and start together identify one process
}

// readProcesses reads the table of processes. A process that ends during the read is left out.
func readProcesses() map[int]process {
	all := map[int]process{}
	dir, err := os.Open("/proc")
	if err != nil {
		return all
	}
	names, _ := dir.Readdirnames(-1) // after an error, the names that were read
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
	// pid (name) state ppid pgrp session … start; the name may contain any characters.
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

// readKernelFile reads a file of /proc or of a cgroup, which the kernel generates.
func readKernelFile(path ...string) ([]byte, error) {
	return os.ReadFile(filepath.Join(path...))
}

// mainPIDs returns the pids of the main processes, and the number of trees.
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

// adoptedChildren returns the children that this process did not start: those that commands left to it as their
// subreaper, or as the first process of a container. The caller holds spawning, so that every child that this process
// started is known.
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

// Reap reaps the adopted children. No other code does that, and zombies count against the process limit.
func (p *Parent) Reap() {
	p.spawning.Lock()
	defer p.spawning.Unlock()
	for _, pid := range p.adoptedChildren() {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // returns 0 for a process that is alive
	}
}
