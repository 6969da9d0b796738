package proctree

import (
	"os"

	"golang.org/x/sys/unix"

	"sallyport/runner/process/rundir"
)

// Birth is when a process was born: with its pid, that process and no later one.
func (p *Parent) Birth(pid int) string {
	c, ok := readStat(pid)
	if !ok {
		return ""
	}
	return c.start + "@" + p.boot
}

// IsAlive reports whether a process, whose child it ever is, has not ended.
func (p *Parent) IsAlive(pid int, birth string) bool {
	c, ok := readStat(pid)
	return ok && c.start+"@"+p.boot == birth && !c.zombie
}

// Adopt finds what another process started, or this one before it replaced
// itself. The main process is an orphan unless it is a child of ours.
func (p *Parent) Adopt(r Run, s *rundir.Status) *Tree {
	t := p.newTree(r)
	defer p.mains.Store(t, s.PID)
	if _, err := os.Stat(s.Cgroup); s.Cgroup != "" && err == nil {
		t.cgroup = cgroup(s.Cgroup)
	}
	main, ok := readStat(s.PID)
	if !ok || s.Birth == "" || main.start+"@"+p.boot != s.Birth {
		return t // and its number may be that of another group by now
	}
	t.pid = s.PID
	if main.parent != os.Getpid() {
		return t
	}
	child, err := os.FindProcess(s.PID)
	if err != nil {
		return t
	}
	for pid, start := range s.Found {
		t.found[pid] = start
	}
	t.main = child
	return t
}

// ForgetMain remembers the group of a main process that another process reaps:
// afterwards its number may be given to others.
func (t *Tree) ForgetMain() {
	if t.pid > 0 {
		t.listMembers()
		t.pid = 0
	}
}

// Found is what was found so far of a tree.
func (t *Tree) Found() map[int]string { return t.found }

// CanReplace tells whether this process can replace itself while runs are under
// way: an exit code must wait for the next image in a zombie, not in memory.
func CanReplace() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// BecomeSubreaper makes what commands leave behind this process's children.
func (p *Parent) BecomeSubreaper() error {
	err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	p.subreaper = err == nil
	return err
}
