// Package proctree starts commands and finds all the processes that they started: by a cgroup for each command if the
// system allows that, else by a search among all processes.
//
// A [Parent] is this process as the parent of commands. A [Tree] is one command with all the processes that it
// started. The main process is not reaped before its tree is gone, so no other process can get its pid until then.
// Processes that a command leaves behind become children of this process, if it is a subreaper or the first process
// of a container, and are reaped here.
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

// RunMark is the start of the environment entry by which the processes of a run are found.
const RunMark = "SALLYPORT_RUN="

// cgroupPrefix is the start of the name of a run's cgroup.
const cgroupPrefix = "sallyport-"

// Parent is this process as the parent of commands. Its methods may be called from many goroutines at the same time,
// once BecomeSubreaper and LimitProcesses have returned.
type Parent struct {
	log       *slog.Logger
	boot      string // boot.ID
	cgroups   cgroup // where the cgroups of runs are made; empty if that is not possible
	subreaper bool   // processes that commands leave behind become children of this process
	limits    commandLimits

	spawning sync.RWMutex // read: between the birth of a main process and its entry in mains
	mains    sync.Map     // *Tree: the pid of its main process, which a goroutine waits for
	reaping  atomic.Bool  // a reap is due
}

// commandLimits are the limits that a child inherits from its parent at fork, and the OOM score of commands.
type commandLimits struct {
	oomScore  int    // oom_score_adj of commands
	processes uint64 // soft RLIMIT_NPROC of commands; 0 leaves it as it is

	forking sync.Mutex // held while this process has the umask and the limits of a command
}

// startProcess starts a process with the umask and the limits of a command.
func (l *commandLimits) startProcess(c Command, attr *os.ProcAttr) (*os.Process, error) {
	return l.whileSet(c.Umask, func() (*os.Process, error) { return os.StartProcess(c.Argv[0], c.Argv, attr) })
}

// NewParent returns a Parent that makes a cgroup for each command, if that is possible.
func NewParent(log *slog.Logger) *Parent {
	p := &Parent{log: log, boot: boot.ID(), limits: commandLimits{oomScore: commandOOMScore()}}
	var err error
	if p.cgroups, err = findCgroups(); err != nil {
		log.Info("no cgroups available: leftover processes are found by scanning /proc (systemd: Delegate=yes)", "error", err)
	}
	return p
}

// DisableCgroups makes the Parent find processes only by a search, as on a system without a writable cgroup v2. It is
// for tests.
func (p *Parent) DisableCgroups() { p.cgroups = "" }

// LimitProcesses limits the processes of each command by RLIMIT_NPROC and, if that is possible, those of all commands
// by a cgroup. Release undoes the latter.
func (p *Parent) LimitProcesses() {
	p.limits.processes = ProcessLimit()
	var err error
	if p.cgroups, err = p.cgroups.limitCommands(p.limits.processes); err != nil {
		p.log.Warn("the processes of commands are limited by RLIMIT_NPROC alone, which does not limit root", "error", err)
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

// BetweenStarts calls f while no command is being started. Then no child of this process still has inherited
// descriptors, except those that it was given.
func (p *Parent) BetweenStarts(f func()) {
	p.spawning.Lock()
	defer p.spawning.Unlock()
	f()
}

// Reaps reports whether processes that commands leave behind become children of this process.
func (p *Parent) Reaps() bool { return p.subreaper || os.Getpid() == 1 }

// ReapSoon reaps the zombies that commands left to this process, including those that end a little later than their
// run.
func (p *Parent) ReapSoon() {
	if !p.Reaps() || p.reaping.Swap(true) {
		return
	}
	time.AfterFunc(time.Second, func() {
		p.reaping.Store(false)
		p.Reap()
	})
}

// IsOrphan reports whether the main process is a child of a supervisor that has ended, and not of this process.
func (t *Tree) IsOrphan() bool { return t.main == nil }

// PID returns the pid of the main process; 0 if that is not known.
func (t *Tree) PID() int { return t.pid }

// ReapMain reaps the main process, once it has ended. It returns nil if another part of the program reaped it.
func (t *Tree) ReapMain() *os.ProcessState {
	s, _ := t.main.Wait() // nil stands for the error
	return s
}
