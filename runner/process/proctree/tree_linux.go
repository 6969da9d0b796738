package proctree

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Tree is a command with all the processes that it started. With a cgroup, the kernel tracks all of them, except
// processes that write themselves into the cgroup.procs file of another cgroup, if they may. Those processes, and
// without a cgroup all that left the session, are found by a search.
//
// The main process is not reaped before the tree is gone, so while its pid and the process group with that number are
// used here, no other process can get them.
type Tree struct {
	Main Main

	parent *Parent
	cgroup cgroup // empty without a cgroup
	left   bool   // some of its processes were found outside the cgroup
	search search
}

func (p *Parent) newTree(r Run) *Tree {
	return &Tree{
		parent: p,
		search: search{children: &p.Children, run: r, mark: []byte(RunMark + r.ID), found: map[int]string{}},
	}
}

func (p *Parent) startTree(c Command) (*Tree, error) {
	t := p.newTree(c.Run)
	if p.Cgroups.dir != "" {
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
	t.Main = Main{main, main.Pid}
	if p.Cgroups.dir != "" {
		p.log.Warn("run started without a cgroup", "run", c.Run.ID)
	}
	return t, nil
}

func (t *Tree) startInCgroup(c Command) error {
	dir := t.parent.Cgroups.PathOf(c.Run.ID)
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
	t.Main, t.cgroup = Main{main, main.Pid}, cgroup(dir)
	return nil
}

// Cgroup returns the path of the run's cgroup; empty if it has none.
func (t *Tree) Cgroup() string { return string(t.cgroup) }

// Terminate asks every process of the tree to end, including stopped ones.
func (t *Tree) Terminate() {
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGCONT} {
		t.signalAll(sig)
	}
}

// signalAll signals the group with one call, and the other processes one by one. It ignores errors, because a process
// that has ended needs no signal.
func (t *Tree) signalAll(sig syscall.Signal) {
	if t.Main.pid > 0 {
		_ = unix.Kill(-t.Main.pid, sig)
	}
	handles := map[int]int{}
	for _, pid := range t.listMembers() {
		if group, err := unix.Getpgid(pid); err == nil && group == t.Main.pid {
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
	children := &t.parent.Children
	mayHave := !children.AdoptsOrphans() || t.search.run.IsLocked() || children.hasStrays()
	t.left = mayHave && len(t.search.findProcesses(t.Main.pid)) > 0
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
	t.parent.Children.forgetMain(t.search.run.ID)
	if t.cgroup == "" {
		return nil
	}
	return t.cgroup.removeGroups()
}

// listMembers returns the living processes of the tree.
func (t *Tree) listMembers() (pids []int) {
	if t.cgroup == "" {
		return t.search.findProcesses(t.Main.pid)
	}
	if t.left {
		pids = t.search.findProcesses(t.Main.pid)
	}
	for _, pid := range t.cgroup.listMembers() {
		if !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}
