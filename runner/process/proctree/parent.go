// Package proctree starts commands and finds all the processes that they started: by a cgroup for each command
// where the system allows that, else by a search among all processes.
//
// A [Parent] is this process as the parent of commands. A [Tree] is one command with all that it started. The main
// process is not reaped before its tree is gone, so its pid stands for no other process meanwhile. What a command
// leaves behind becomes a child of this process, if it is a subreaper or the first process of a container, and is
// reaped here.
//
// On systems other than Linux a tree is the process group of the command.
package proctree

import (
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/internal/boot"
)

// RunMark begins the entry of the environment by which the processes of a run are found.
const RunMark = "SALLYPORT_RUN="

// cgroupPrefix begins the name of a run's cgroup.
const cgroupPrefix = "sallyport-"

// Parent is this process as the parent of commands. Its methods may be called at once from many goroutines, once
// BecomeSubreaper and LimitProcesses have returned.
type Parent struct {
	log       *slog.Logger
	boot      string // boot.ID
	cgroups   cgroup // where a run's cgroup is made; empty where that is not possible
	subreaper bool   // what commands leave behind becomes this process's child
	limits    commandLimits

	spawning sync.RWMutex // read: between the birth of a main process and its entry in mains
	mains    sync.Map     // *Tree: pid of its main process, which is awaited
	reaping  atomic.Bool  // a reap is due
}

// commandLimits are what a child takes from its parent when it is born, and what commands have otherwise.
type commandLimits struct {
	oomScore  int    // oom_score_adj of commands
	processes uint64 // soft RLIMIT_NPROC of commands; 0 leaves it as it is

	forking sync.Mutex // held while this process has the umask and the limits of a command
}

// startProcess starts a process with the umask and the limits of a command.
func (l *commandLimits) startProcess(c Command, attr *os.ProcAttr) (*os.Process, error) {
	return l.whileSet(c.Umask, func() (*os.Process, error) { return os.StartProcess(c.Argv[0], c.Argv, attr) })
}

// NewParent returns a Parent whose commands get a cgroup each, where that is possible.
func NewParent(log *slog.Logger) *Parent {
	p := &Parent{log: log, boot: boot.ID(), limits: commandLimits{oomScore: commandOOMScore()}}
	var err error
	if p.cgroups, err = findCgroups(); err != nil {
		log.Info("no cgroups available: leftover processes are found by scanning /proc (systemd: Delegate=yes)", "error", err)
	}
	return p
}

// DisableCgroups has processes found by a search alone, as where cgroup v2 cannot be written. It is for tests.
func (p *Parent) DisableCgroups() { p.cgroups = "" }

// LimitProcesses bounds the processes of commands, each by its limit and, where that is possible, all of them by a
// cgroup. Release undoes the latter.
func (p *Parent) LimitProcesses() {
	p.limits.processes = ProcessLimit()
	var err error
	if p.cgroups, err = p.cgroups.limitCommands(p.limits.processes); err != nil {
		p.log.Warn("the processes of commands are bounded by RLIMIT_NPROC alone, which does not hold root", "error", err)
	}
}

// A Run names a command's run, and its lock, which its processes inherit.
type Run struct {
	ID       string
	LockPath string
	IsLocked func() bool // whether any process has the lock
}

// A Command is what Start starts.
type Command struct {
	Run   Run
	Argv  []string
	Umask int
	Attr  *os.ProcAttr
}

// Start starts a command, in the run's own cgroup if there can be one.
func (p *Parent) Start(c Command) (*Tree, error) {
	p.spawning.RLock()
	defer p.spawning.RUnlock()
	t, err := p.startTree(c)
	if err != nil {
		return nil, err
	}
	p.mains.Store(t, t.pid)
	return t, nil
}

// BetweenStarts calls f while no command is being started: then no child of this process has its descriptors any
// more, but those that it was given.
func (p *Parent) BetweenStarts(f func()) {
	p.spawning.Lock()
	defer p.spawning.Unlock()
	f()
}

// Reaps reports whether what commands leave behind becomes a child of this process.
func (p *Parent) Reaps() bool { return p.subreaper || os.Getpid() == 1 }

// ReapSoon takes the zombies that commands left to this process, also those that
// end a little later than their run.
func (p *Parent) ReapSoon() {
	if !p.Reaps() || p.reaping.Swap(true) {
		return
	}
	time.AfterFunc(time.Second, func() {
		p.reaping.Store(false)
		p.Reap()
	})
}

// IsOrphan reports whether the main process is not a child of this process, but of a supervisor that has ended.
func (t *Tree) IsOrphan() bool { return t.main == nil }

// PID is that of the main process; 0 if that is not known.
func (t *Tree) PID() int { return t.pid }

// ReapMain takes the exit code of the main process, once it has ended. It returns nil if another part of the
// program took it.
func (t *Tree) ReapMain() *os.ProcessState {
	s, _ := t.main.Wait() // nil says the same as the error
	return s
}
