package proctree

import (
	"bytes"
	"os"
	"slices"
	"strconv"
)

// search finds the processes of a run among all processes by what they inherited: the entry of the run in the
// environment, the lock, their parents. A process that dropped all three before the first search escapes, unless its
// run is the only one.
type search struct {
	children *Children
	run      Run
	mark     []byte         // entry of the environment
	found    map[int]string // pid and start of each process that was found so far
}

// findProcesses returns the living processes. main is the pid of the main process, or 0. It keeps commands from being
// started during the search: until a child executes its program, it shares the descriptors of this process, and the
// search might find the lock in it.
func (s *search) findProcesses(main int) (pids []int) {
	s.children.mu.Lock()
	defer s.children.mu.Unlock()
	stray := s.strayFilter(main)
	all := readProcesses()
	children := map[int][]int{}
	var queue []int
	for pid, p := range all {
		children[p.parent] = append(children[p.parent], pid)
		ours := main > 0 && (p.group == main || p.session == main)
		if ours || stray(pid, p) || s.found[pid] == p.start || s.isMarked(pid) {
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
			s.found[pid] = p.start
			pids = append(pids, pid)
		}
	}
	return pids
}

// strayFilter returns a function that reports whether a process dropped all that it inherited and was left to this
// process as the subreaper. Its run is known only while a single run is in progress; all strays end with the last
// run.
func (s *search) strayFilter(main int) func(pid int, p process) bool {
	own, isMain := os.Getpid(), s.children.mainPIDs()
	pid, ok := s.children.mains[s.run.ID]
	if !s.children.subreaper || len(s.children.mains) != 1 || !ok || pid != main {
		return func(int, process) bool { return false }
	}
	return func(pid int, p process) bool { return p.parent == own && !isMain[pid] }
}

// isMarked reports whether a process has the entry of the run in its environment, or the lock of the run at the
// descriptor where the command got it. A process that this one may not read counts as unmarked.
func (s *search) isMarked(pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	if lock, err := os.Readlink(proc + "/fd/3"); err == nil && lock == s.run.LockPath {
		return true
	}
	env, err := readKernelFile(proc, "environ")
	return err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(entry []byte) bool {
		return bytes.Equal(entry, s.mark)
	})
}
