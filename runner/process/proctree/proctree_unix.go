//go:build unix && !linux

package proctree

import (
	"context"
	"errors"
	"os"
	"syscall"

	"sallyport/runner/process/rundir"
)

// Tree is the main process and its group. A process that left the group, by
// setsid or setpgid, is not found on this system, and neither waited for nor
// killed; it still holds the run's lock. What another process started, which has
// ended, is only waited for: that its group is still its own cannot be found out.
type Tree struct {
	parent *Parent
	main   *os.Process // nil for an orphan
	pid    int         // 0 for what another process started
}

func (p *Parent) startTree(c Command) (*Tree, error) {
	main, err := p.limits.startProcess(c, c.Attr)
	if err != nil {
		return nil, err
	}
	return &Tree{parent: p, main: main, pid: main.Pid}, nil
}

// Cgroup is empty: this system has none.
func (t *Tree) Cgroup() string { return "" }

// AwaitMain waits for the main process. From then on its pid is the group's
// only as long as the group has members, which the callers ask first.
func (t *Tree) AwaitMain() *os.ProcessState { return t.ReapMain() }

// MainHasEnded is false: whether a child has ended is known to AwaitMain alone.
func (t *Tree) MainHasEnded() bool { return false }

// Terminate asks every process of the group to end, a stopped one too.
func (t *Tree) Terminate() {
	if t.pid == 0 {
		return
	}
	_ = syscall.Kill(-t.pid, syscall.SIGTERM) // what has ended needs none
	_ = syscall.Kill(-t.pid, syscall.SIGCONT)
}

// Kill kills the group.
func (t *Tree) Kill() {
	if t.pid > 0 {
		_ = syscall.Kill(-t.pid, syscall.SIGKILL)
	}
}

// IsGone takes "not permitted" for alive: darwin reports that of zombies too, which
// their parent will reap.
func (t *Tree) IsGone() bool { return t.pid == 0 || errors.Is(syscall.Kill(-t.pid, 0), syscall.ESRCH) }

// Census knows of a group that is not gone only that it has a member.
func (t *Tree) Census() (n int, names []string) { return 1, nil }

// Close ends the account of the tree.
func (t *Tree) Close() error {
	t.parent.mains.Delete(t)
	return nil
}

// Reap does nothing: this system leaves no processes to this one.
func (p *Parent) Reap() {}

// ReapOrphans does nothing: no container of this system has this process for its first.
func ReapOrphans(context.Context) {}

// cgroup is always empty: this system has none.
type cgroup string

func findCgroups() (cgroup, error) { return "", errors.New("this system has none") }

// Birth is not known on this system.
func (p *Parent) Birth(int) string { return "" }

// IsAlive is not known on this system, where no birth is.
func (p *Parent) IsAlive(int, string) bool { return false }

// Adopt finds nothing: what another process started is only waited for.
func (p *Parent) Adopt(Run, *rundir.Status) *Tree { return &Tree{parent: p} }

// ForgetMain does nothing on this system.
func (t *Tree) ForgetMain() {}

// Found is empty on this system.
func (t *Tree) Found() map[int]string { return nil }

// CanReplace is false: the exit codes of runs in progress would be lost.
func CanReplace() bool { return false }

// BecomeSubreaper does nothing on this system.
func (p *Parent) BecomeSubreaper() error { return nil }

// CgroupOf is empty: this system has none.
func (p *Parent) CgroupOf(string) string { return "" }

// SweepCgroups does nothing on this system.
func (p *Parent) SweepCgroups(func(string) bool) {}

func (c cgroup) limitCommands(uint64) (cgroup, error) { return c, nil }

// Release does nothing on this system.
func (p *Parent) Release() {}

// CheckStranger finds nothing to refuse on this system.
func CheckStranger(int, int, func(string) bool) error { return nil }
