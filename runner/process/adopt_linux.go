package process

import (
	"os"
	"path/filepath"
	"strings"

	"sallyport/runner/process/rundir"

	"golang.org/x/sys/unix"
)

// birth is when a process was born: with its pid, that process and no later one.
func (l *Local) birth(pid int) string {
	p, ok := stat(pid)
	if !ok {
		return ""
	}
	return p.start + "@" + l.boot
}

// lives tells whether the main process of a run, of whomever it is the child,
// has not ended. One that nobody came to record lives as long as the lock is
// held.
func (l *Local) lives(s *rundir.Status) bool {
	if s.Birth == "" {
		return l.runs.IsLocked(s.Run)
	}
	p, ok := stat(s.PID)
	return ok && p.start+"@"+l.boot == s.Birth && !p.zombie
}

// adoptTree finds what another process started, or this one before it replaced
// itself. The process is nil unless the main one is a child of ours.
func adoptTree(l *Local, s *rundir.Status) (*tree, *os.Process) {
	t := newTree(l, s.Run)
	if _, err := os.Stat(s.Cgroup); s.Cgroup != "" && err == nil {
		t.cgroup = s.Cgroup
	}
	main, ok := stat(s.PID)
	if !ok || s.Birth == "" || main.start+"@"+l.boot != s.Birth {
		return t, nil // and its number may be that of another group by now
	}
	t.pid = s.PID
	if main.parent != os.Getpid() {
		return t, nil
	}
	p, err := os.FindProcess(s.PID)
	if err != nil {
		return t, nil
	}
	for pid, start := range s.Found {
		t.found[pid] = start
	}
	return t, p
}

// headless remembers the group of a main process that somebody else reaps:
// afterwards its number may be given to others.
func (t *tree) headless() {
	if t.pid > 0 {
		t.members()
		t.pid = 0
	}
}

// relatives are what was found so far of a tree.
func (t *tree) relatives() map[int]string { return t.found }

// canReplace tells whether this process can replace itself while runs are under
// way: an exit code must wait for the next image in a zombie, not in memory.
func canReplace() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// dupOnto makes the descriptor to stand for what fd stands for.
func dupOnto(fd, to int) error { return unix.Dup3(fd, to, unix.O_CLOEXEC) }

// becomeSubreaper makes what commands leave behind this process's children.
func becomeSubreaper() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// sweepCgroups removes the cgroups of our runs that a process which is gone
// could not remove any more.
func (l *Local) sweepCgroups() {
	if l.cgroups == "" {
		return
	}
	dirs, _ := filepath.Glob(filepath.Join(l.cgroups, cgroupPrefix+"*")) // the pattern is right
	for _, dir := range dirs {
		run := strings.TrimPrefix(filepath.Base(dir), cgroupPrefix)
		if rundir.CheckID(run) != nil {
			continue
		}
		l.mu.Lock()
		_, active := l.active[run]
		l.mu.Unlock()
		if active || !l.runs.Exists(run) {
			continue
		}
		if s, err := l.runs.ReadStatus(run); err == nil && l.runs.IsCopied(s) {
			continue
		}
		if err := (&tree{cgroup: dir}).close(); err != nil {
			l.log.Warn("removing the cgroup of a run that is over", "run", run, "error", err)
		}
	}
}
