package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tree is all that a command started. With a cgroup the kernel keeps the account,
// of all but the processes that write themselves into cgroup.procs of another, where
// they may. Those, and without a cgroup all that left the session, are found by
// what they inherited: the run's entry in the environment, the lock, their parents.
// A process that shed all three before anybody looked escapes, unless its run is
// the only one.
//
// The main process is not reaped before the tree is gone, so its pid and the
// group of that number are nobody else's as long as they are used here.
type tree struct {
	pid    int
	run    string
	mark   []byte // entry of the environment
	lock   string // path of the lock's file
	cgroup string // path; empty without one
	left   bool   // processes of it were found outside of the cgroup

	found map[int]string // pid and start of all that a search ever found
	local *Local
}

func newTree(l *Local, run string) *tree {
	return &tree{run: run, mark: []byte(runMark + run), lock: l.runs.LockPath(run), found: map[int]string{}, local: l}
}

// startTree starts argv in the run's own cgroup, if there can be one.
func startTree(l *Local, run string, argv []string, umask int, attr *os.ProcAttr) (*os.Process, *tree, error) {
	t := newTree(l, run)
	if l.cgroups != "" {
		p, err := t.startInCgroup(filepath.Join(l.cgroups, cgroupPrefix+run), argv, umask, attr)
		if err == nil {
			return p, t, nil
		}
	}
	// Whether the cgroup was the trouble or the command, a failed start has run
	// nothing: the plain way tells, or works.
	p, err := l.withCommandLimits(umask, func() (*os.Process, error) { return os.StartProcess(argv[0], argv, attr) })
	if err != nil {
		return nil, nil, err
	}
	t.pid = p.Pid
	if l.cgroups != "" {
		l.log.Warn("a run goes without its cgroup", "run", run)
	}
	return p, t, nil
}

func (t *tree) startInCgroup(dir string, argv []string, umask int, attr *os.ProcAttr) (*os.Process, error) {
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // the folder of a cgroup holds nothing secret
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	sys := *attr.Sys
	sys.UseCgroupFD, sys.CgroupFD = true, int(f.Fd())
	within := *attr
	within.Sys = &sys
	p, err := t.local.withCommandLimits(umask, func() (*os.Process, error) { return os.StartProcess(argv[0], argv, &within) })
	_ = f.Close() // only read
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	t.pid, t.cgroup = p.Pid, dir
	return p, nil
}

// awaitEnd returns when the main process has ended. It leaves it to be reaped
// and returns nil; or, on a kernel that cannot do that, it has reaped it.
func awaitEnd(p *os.Process) *os.ProcessState {
	if err := awaitZombie(p.Pid); err == nil {
		return nil
	}
	s, _ := p.Wait() // nil tells the same as the error
	return s
}

// hasEnded tells whether a child has ended, and leaves it to be reaped.
func hasEnded(p *os.Process) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, p.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}

// awaitZombie waits by the runtime's poller, so a run under way holds no thread.
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

// terminate asks every process of the tree to end, a stopped one too.
func (t *tree) terminate() {
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGCONT} {
		t.signal(sig)
	}
}

// signal reaches the group in one stroke, and the rest one by one. What is gone
// meanwhile needs no signal, so errors say nothing.
func (t *tree) signal(sig syscall.Signal) {
	if t.pid > 0 {
		_ = unix.Kill(-t.pid, sig)
	}
	handles := map[int]int{}
	for _, pid := range t.members() {
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
	members := t.members()
	for pid, fd := range handles {
		if slices.Contains(members, pid) {
			_ = unix.PidfdSendSignal(fd, sig, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

// kill kills the tree. Without a cgroup it may have to be done again, for
// processes that were born meanwhile.
func (t *tree) kill() {
	if t.cgroup != "" {
		err := os.WriteFile(filepath.Join(t.cgroup, "cgroup.kill"), []byte("1"), 0)
		if err == nil && !t.left {
			return
		}
	}
	t.signal(unix.SIGKILL)
}

// gone tells whether no process of the tree is alive.
func (t *tree) gone() bool {
	if t.cgroup != "" {
		events, err := read(t.cgroup, "cgroup.events")
		if err == nil {
			return bytes.Contains(events, []byte("populated 0")) && !t.escaped()
		}
	}
	return len(t.members()) == 0
}

// escaped looks for processes that left the cgroup, and remembers whether there
// are any. All processes are searched only where there can be some: one that left
// has the lock, or is a child of this process now, because its parent has ended.
func (t *tree) escaped() bool {
	t.left = (!t.local.reaps() || t.local.runs.IsLocked(t.run) || t.local.hasStrays()) && len(t.search()) > 0
	return t.left
}

// census counts the processes of the tree, and names some of their programs.
func (t *tree) census() (n int, names []string) {
	const most = 5
	pids := t.members()
	for _, pid := range pids[:min(len(pids), most)] {
		if name, err := read("/proc", strconv.Itoa(pid), "comm"); err == nil {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return len(pids), names
}

// close removes the cgroup and those that the command made in it.
func (t *tree) close() error {
	if t.cgroup == "" {
		return nil
	}
	dirs := t.subgroups()
	slices.Reverse(dirs)
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// subgroups are the cgroup and all below it, parents first.
func (t *tree) subgroups() (dirs []string) {
	_ = filepath.WalkDir(t.cgroup, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // one that vanishes on the way is no error
	})
	return dirs
}

// members are the living processes of the tree.
func (t *tree) members() (pids []int) {
	if t.cgroup == "" {
		return t.search()
	}
	if t.left {
		pids = t.search()
	}
	for _, dir := range t.subgroups() {
		list, err := read(dir, "cgroup.procs")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(list)) {
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err == nil && pid > 0 && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// search finds the tree among all processes. No command is born meanwhile:
// until it executes its program it shares our descriptors, and might be taken
// for one that inherited the lock.
func (t *tree) search() (pids []int) {
	t.local.spawning.Lock()
	defer t.local.spawning.Unlock()
	stray := t.strays()
	all := processes()
	children := map[int][]int{}
	var queue []int
	for pid, p := range all {
		children[p.parent] = append(children[p.parent], pid)
		ours := t.pid > 0 && (p.group == t.pid || p.session == t.pid)
		if ours || stray(pid, p) || t.found[pid] == p.start || t.marked(pid) {
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

// strays tells of a process whether it is one that shed all that it inherited
// and was left to this process as the subreaper. Whose it was can be said only
// while one run is under way; with the last one all of them end.
func (t *tree) strays() func(pid int, p process) bool {
	mains, own := t.local.mains(), os.Getpid()
	if !t.local.subreaper || len(mains) != 1 || !mains[t.pid] {
		return func(int, process) bool { return false }
	}
	return func(pid int, p process) bool { return p.parent == own && !mains[pid] }
}

// marked tells whether a process has the run's entry in its environment, or
// its lock where the command was given it. One that may not be read is not ours.
func (t *tree) marked(pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	if lock, err := os.Readlink(proc + "/fd/3"); err == nil && lock == t.lock {
		return true
	}
	env, err := read(proc, "environ")
	return err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(entry []byte) bool {
		return bytes.Equal(entry, t.mark)
	})
}

type process struct {
	parent, group, session int
	zombie                 bool
	start                  string // ticks since boot: with the pid, the process and no later one
}

// processes reads the table of processes. One that ends meanwhile is left out.
func processes() map[int]process {
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
		if p, ok := stat(pid); ok {
			all[pid] = p
		}
	}
	return all
}

// stat reads the entry of one process.
func stat(pid int) (p process, ok bool) {
	text, err := read("/proc", strconv.Itoa(pid), "stat")
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

// read reads a file that the kernel makes up.
func read(path ...string) ([]byte, error) {
	return os.ReadFile(filepath.Join(path...))
}

// adopted are the children that this process did not start: those that commands
// left to it as their subreaper, or as the first process of a container. The caller
// holds spawning, so that every child which was started is known.
func (l *Local) adopted() []int {
	mains := l.mains()
	return slices.DeleteFunc(children(), func(pid int) bool { return mains[pid] })
}

// hasStrays reports whether any adopted child is alive.
func (l *Local) hasStrays() bool {
	l.spawning.Lock()
	defer l.spawning.Unlock()
	return slices.ContainsFunc(l.adopted(), func(pid int) bool { p, ok := stat(pid); return ok && !p.zombie })
}

// reap takes the exit codes of adopted children. Nothing else would, and zombies
// count against the limit of processes.
func (l *Local) reap() {
	l.spawning.Lock()
	defer l.spawning.Unlock()
	for _, pid := range l.adopted() {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // 0 for one that is alive
	}
}

// findCgroups returns the folder of this process's own cgroup, when cgroup v2
// is there and lets us make cgroups below it and kill them as a whole.
func findCgroups() (string, error) {
	home, err := ownCgroup()
	if err != nil {
		return "", err
	}
	if err := unix.Access(filepath.Join(home, "cgroup.procs"), unix.W_OK); err != nil {
		return "", fmt.Errorf("writing to %s: %w", home, err)
	}
	trial, err := os.MkdirTemp(home, "sallyport-trial-")
	if err != nil {
		return "", err
	}
	_, err = os.Stat(filepath.Join(trial, "cgroup.kill"))
	if err := errors.Join(err, os.Remove(trial)); err != nil {
		return "", err
	}
	return home, nil
}

// ownCgroup returns the folder of this process's own cgroup, of version 2.
func ownCgroup() (string, error) {
	mounts, err := read("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := read("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	return cgroupHome(string(mounts), string(own))
}

// cgroupHome finds the folder in which the kernel shows our cgroup.
func cgroupHome(mounts, own string) (string, error) {
	var path string
	for line := range strings.Lines(own) {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			path = strings.TrimSpace(p)
		}
	}
	for line := range strings.Lines(mounts) {
		mount, source, ok := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if !ok || !strings.HasPrefix(source, "cgroup2 ") || len(fields) < 5 {
			continue
		}
		below, err := filepath.Rel(fields[3], path)
		if err != nil || !filepath.IsAbs(path) || strings.Contains(path, "..") || !filepath.IsLocal(below) || strings.Contains(fields[4], `\`) {
			return "", fmt.Errorf("the cgroup %q is not below the mount %s", path, fields[4])
		}
		return filepath.Join(fields[4], below), nil
	}
	return "", errors.New("no cgroup v2")
}
