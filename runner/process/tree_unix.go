//go:build unix && !linux

package process

import (
	"context"
	"errors"
	"os"
	"syscall"

	"sallyport/runner/process/rundir"
)

// tree is the main process and its group. A process that left the group, by
// setsid or setpgid, is not found on this system, and neither waited for nor
// killed; it still holds the run's lock. What another process started, which is
// gone, is only waited for: that its group is still its own cannot be told.
type tree struct {
	pid    int    // 0 for what another process started
	cgroup string // always empty
}

func startTree(l *Local, _ string, argv []string, umask int, attr *os.ProcAttr) (*os.Process, *tree, error) {
	p, err := l.withCommandLimits(umask, func() (*os.Process, error) { return os.StartProcess(argv[0], argv, attr) })
	if err != nil {
		return nil, nil, err
	}
	return p, &tree{pid: p.Pid}, nil
}

// awaitEnd waits for the main process. From then on its pid is the group's
// only as long as the group has members, which the callers ask first.
func awaitEnd(p *os.Process) *os.ProcessState {
	s, _ := p.Wait() // nil tells the same as the error
	return s
}

// hasEnded does not know: whether a child has ended is told by awaitEnd alone.
func hasEnded(*os.Process) bool { return false }

func (t *tree) terminate() {
	if t.pid == 0 {
		return
	}
	_ = syscall.Kill(-t.pid, syscall.SIGTERM) // who is gone needs none
	_ = syscall.Kill(-t.pid, syscall.SIGCONT)
}

func (t *tree) kill() {
	if t.pid > 0 {
		_ = syscall.Kill(-t.pid, syscall.SIGKILL)
	}
}

// gone takes "not permitted" for alive: darwin says so of zombies too, which
// their parent will reap.
func (t *tree) gone() bool { return t.pid == 0 || errors.Is(syscall.Kill(-t.pid, 0), syscall.ESRCH) }

// census knows of a group that is not gone only that somebody is in it.
func (t *tree) census() (n int, names []string) { return 1, nil }

func (t *tree) close() error { return nil }

func (l *Local) reap() {}

// ReapOrphans does nothing: no container of this system has this process for its first.
func ReapOrphans(context.Context) {}

func findCgroups() (string, error) { return "", errors.New("this system has none") }

func (l *Local) birth(int) string { return "" }

// lives goes by the lock.
func (l *Local) lives(s *rundir.Status) bool { return l.runs.IsLocked(s.Run) }

func adoptTree(*Local, *rundir.Status) (*tree, *os.Process) { return &tree{}, nil }

func (t *tree) headless() {}

func (t *tree) relatives() map[int]string { return nil }

func canReplace() bool { return false }

func dupOnto(fd, to int) error {
	if err := syscall.Dup2(fd, to); err != nil {
		return err
	}
	syscall.CloseOnExec(to)
	return nil
}

func becomeSubreaper() error { return nil }

func (l *Local) sweepCgroups() {}

func (l *Local) groupCommands(uint64) error { return nil }

func (l *Local) ungroupCommands() {}
