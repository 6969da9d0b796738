// Package proctree starts commands and finds all the processes that they started: by a cgroup for each command if the
// system allows that, else by a search among all processes.
//
// A [Parent] is this process as the parent of commands, with its [Children] and the [Cgroups] that it makes. A [Tree]
// is one command with all the processes that it started. The [Main] process is not reaped before its tree is gone, so
// no other process can get its pid until then. Processes that a command leaves behind become children of this process,
// if it is a subreaper or the first process of a container, and are reaped here.
//
// On systems other than Linux a tree is the process group of the command.
package proctree

import (
	"log/slog"
	"os"

	"sallyport/internal/boot"
)

// RunMark is the start of the environment entry by which the processes of a run are found.
const RunMark = "SALLYPORT_RUN="

// cgroupPrefix is the start of the name of a run's cgroup.
const cgroupPrefix = "sallyport-"

// Parent is this process as the parent of commands. Its methods may be called from many goroutines at the same time,
// once Children.BecomeSubreaper and LimitProcesses have returned.
type Parent struct {
	Children Children
	Cgroups  Cgroups

	log    *slog.Logger
	boot   string // boot.ID
	limits commandLimits
}

// Cgroups is the folder in which this process makes a cgroup for each run.
type Cgroups struct {
	dir cgroup // empty if this process cannot make cgroups
	log *slog.Logger
}

// commandLimits are the limits that a child inherits from its parent at fork, and the OOM score of commands.
type commandLimits struct {
	oomScore  int    // oom_score_adj of commands
	processes uint64 // soft RLIMIT_NPROC of commands; 0 leaves it as it is
}

// startProcess starts a process with the umask and the limits of a command. The caller holds the lock of the children.
func (l *commandLimits) startProcess(c Command, attr *os.ProcAttr) (*os.Process, error) {
	return l.whileSet(c.Umask, func() (*os.Process, error) { return os.StartProcess(c.Argv[0], c.Argv, attr) })
}

// NewParent returns a Parent that makes a cgroup for each command, if that is possible.
func NewParent(log *slog.Logger) *Parent {
	p := &Parent{
		log: log, boot: boot.ID(), limits: commandLimits{oomScore: commandOOMScore()},
		Children: Children{mains: map[string]int{}}, Cgroups: Cgroups{log: log},
	}
	var err error
	if p.Cgroups.dir, err = findCgroups(); err != nil {
		log.Info("no cgroups available: leftover processes are found by scanning /proc (systemd: Delegate=yes)",
			"error", err)
	}
	return p
}

// DisableCgroups makes the Parent find processes only by a search, as on a system without a writable cgroup v2. It is
// for tests.
func (p *Parent) DisableCgroups() { p.Cgroups.dir = "" }

// LimitProcesses limits the processes of each command by RLIMIT_NPROC and, if that is possible, those of all commands
// by a cgroup. Release undoes the latter.
func (p *Parent) LimitProcesses() {
	p.limits.processes = ProcessLimit()
	var err error
	if p.Cgroups.dir, err = p.Cgroups.dir.limitCommands(p.limits.processes); err != nil {
		p.log.Warn("the processes of commands are limited by RLIMIT_NPROC alone, which does not limit root",
			"error", err)
	}
}

// Run names the run of a command and its lock, which the processes of the command inherit.
type Run struct {
	ID       string
	LockPath string
	IsLocked func() bool // whether any process has the lock
}

// Command describes a command for Start.
type Command struct {
	Run   Run
	Argv  []string
	Umask int
	Attr  *os.ProcAttr
}

// Start starts a command, in a cgroup for the run if that is possible.
func (p *Parent) Start(c Command) (t *Tree, err error) {
	p.Children.BetweenStarts(func() {
		if t, err = p.startTree(c); err == nil {
			p.Children.mains[c.Run.ID] = t.Main.pid
		}
	})
	return t, err
}
