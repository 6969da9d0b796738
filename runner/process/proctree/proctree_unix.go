//go:build unix && !linux

package proctree

import (
	"context"
	"errors"
	"os"
	"syscall"

	"sallyport/runner/process/rundir"
)

// Tree is the main process and its group. A process that left the group, by setsid or setpgid, is not found on this
// system, so this process neither waits for it nor kills it; it still holds the lock of the run. The group of a main
// process that another, ended process started gets no signal, because this system cannot show that the group is still
// the same. Its end is awaited by the lock only.
type Tree struct {
	Main Main // without a pid if another process started it

	parent *Parent
	run    Run
}

func (p *Parent) startTree(c Command) (*Tree, error) {
	main, err := p.limits.startProcess(c, c.Attr)
	if err != nil {
		return nil, err
	}
	return &Tree{Main: Main{main, main.Pid}, parent: p, run: c.Run}, nil
}

// Cgroup returns "": this system has none.
func (t *Tree) Cgroup() string { return "" }

// Await waits for the process and reaps it. After that its pid stands for the group only as long as the
// group has members, which the callers check first.
func (m *Main) Await() *os.ProcessState { return m.Reap() }

// HasEnded returns false: only Await learns whether a child has ended.
func (m *Main) HasEnded() bool { return false }

// Terminate asks every process of the group to end, including stopped ones.
func (t *Tree) Terminate() {
	if t.Main.pid == 0 {
		return
	}
	_ = syscall.Kill(-t.Main.pid, syscall.SIGTERM) // a process that has ended needs no signal
	_ = syscall.Kill(-t.Main.pid, syscall.SIGCONT)
}

// Kill kills the group.
func (t *Tree) Kill() {
	if t.Main.pid > 0 {
		_ = syscall.Kill(-t.Main.pid, syscall.SIGKILL)
	}
}

// IsGone reports whether the group has no members. "Not permitted" counts as alive: darwin also returns it for
// zombies, which their parent will reap.
func (t *Tree) IsGone() bool {
	return t.Main.pid == 0 || errors.Is(syscall.Kill(-t.Main.pid, 0), syscall.ESRCH)
}

// Census returns 1: this system shows only that the group has members.
func (t *Tree) Census() (n int, names []string) { return 1, nil }

// Close removes the tree from those of its Parent.
func (t *Tree) Close() error {
	t.parent.Children.forgetMain(t.run.ID)
	return nil
}

// Reap does nothing: on this system no processes are left to this one.
func (c *Children) Reap() {}

// ReapOrphans does nothing: on this system this process is not the first of a container.
func ReapOrphans(context.Context) {}

// cgroup is always empty: this system has none.
type cgroup string

func findCgroups() (cgroup, error) { return "", errors.New("this system has none") }

// Birth returns "": this system does not report it.
func (p *Parent) Birth(int) string { return "" }

// IsAlive returns false: this system reports no births.
func (p *Parent) IsAlive(int, string) bool { return false }

// Adopt returns a tree without processes: this process can only wait for what another process started.
func (p *Parent) Adopt(r Run, _ *rundir.Status) *Tree { return &Tree{parent: p, run: r} }

// ForgetMain does nothing on this system.
func (t *Tree) ForgetMain() {}

// Found returns nil on this system.
func (t *Tree) Found() map[int]string { return nil }

// CanReplace returns false: the exit codes of runs in progress would be lost.
func CanReplace() bool { return false }

// BecomeSubreaper does nothing on this system.
func (c *Children) BecomeSubreaper() error { return nil }

// PathOf returns "": this system has no cgroups.
func (g *Cgroups) PathOf(string) string { return "" }

// Sweep does nothing on this system.
func (g *Cgroups) Sweep(func(string) bool) {}

func (c cgroup) limitCommands(uint64) (cgroup, error) { return c, nil }

// Release does nothing on this system.
func (p *Parent) Release() {}

// CheckStranger refuses nothing on this system.
func CheckStranger(int, int, func(string) bool) error { return nil }
