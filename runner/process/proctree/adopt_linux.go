package proctree

import (
	"maps"
	"os"

	"golang.org/x/sys/unix"

	"sallyport/runner/process/rundir"
)

// Birth returns when a process was born. A pid together with its birth identifies one process, even if a later
// process gets the same pid.
func (p *Parent) Birth(pid int) string {
	c, ok := readStat(pid)
	if !ok {
		return ""
	}
	return c.start + "@" + p.boot
}

// IsAlive reports whether a process has not ended. It need not be a child of this process.
func (p *Parent) IsAlive(pid int, birth string) bool {
	c, ok := readStat(pid)
	return ok && c.start+"@"+p.boot == birth && !c.zombie
}

// Adopt returns the tree of a command that another process started, or this one before it replaced itself. The main
// process is an orphan unless it is a child of this process.
func (p *Parent) Adopt(r Run, s *rundir.Status) *Tree {
	t := p.newTree(r)
	defer p.Children.recordMain(r.ID, s.PID)
	if _, err := os.Stat(s.Cgroup); s.Cgroup != "" && err == nil {
		t.cgroup = cgroup(s.Cgroup)
	}
	main, ok := readStat(s.PID)
	if !ok || s.Birth == "" || main.start+"@"+p.boot != s.Birth {
		return t // the pid may be that of another group by now
	}
	t.Main.pid = s.PID
	if main.parent != os.Getpid() {
		return t
	}
	child, err := os.FindProcess(s.PID)
	if err != nil {
		return t
	}
	maps.Copy(t.search.found, s.Found)
	t.Main.process = child
	return t
}

// ForgetMain records the members of the group of a main process that another process reaps, and forgets its pid:
// after that, the pid may be given to another process.
func (t *Tree) ForgetMain() {
	if t.Main.pid > 0 {
		t.listMembers()
		t.Main.pid = 0
	}
}

// Found returns the processes of the tree that were found so far.
func (t *Tree) Found() map[int]string { return t.search.found }

// CanReplace reports whether this process can replace itself while runs are in progress. Then the exit code of each
// run has to be kept in a zombie for the next image, and not in the memory of this one.
func CanReplace() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
