package e2e_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// faultOp is something that happens to the program and its machine. To add an operation, add a line here and a method.
type faultOp struct {
	name   string
	weight int
	do     func(s *stress, r *rand.Rand)
}

func faultOps() []faultOp {
	return []faultOp{
		{"kill server", 10, (*stress).killServer},
		{"kill supervisor", 10, (*stress).killSupervisor},
		{"kill both", 6, (*stress).killBoth},
		{"hand over", 14, (*stress).handOver},
		{"upgrade", 4, (*stress).upgrade},
		{"terminate server", 5, (*stress).terminateServer},
		{"terminate supervisor", 3, (*stress).terminateSupervisor},
		{"stop server", 4, (*stress).stopServer},
		{"stop supervisor", 5, (*stress).stopSupervisor},
		{"reload", 8, (*stress).reload},
		{"break configuration", 4, (*stress).breakConfiguration},
		{"take hook away", 4, (*stress).takeHookAway},
		{"take program away", 4, (*stress).takeProgramAway},
		{"write program", 4, (*stress).writeProgram},
		{"cut power", 8, (*stress).cutPower},
		{"step clock", 8, (*stress).stepWallClock},
	}
}

// pauseRandomly waits for a random time.
func pauseRandomly(r *rand.Rand, least, most time.Duration) {
	<-time.After(least + time.Duration(r.Int64N(int64(most-least))))
}

// serve starts a server and returns when it serves. If the server ends before, serve starts another one, as a service
// manager does.
func (s *stress) serve() {
	for end := time.After(patience); !s.broken.Load(); s.restarts++ {
		from := s.logSize()
		s.start(false)
		for ended := false; !ended; {
			select {
			case <-end:
				s.noteFault("stuck", "the server does not serve")
				s.broken.Store(true)
				return
			case <-s.ended:
				ended = true
				<-time.After(100 * time.Millisecond)
			case <-time.After(5 * time.Millisecond):
				if s.isServing(from) {
					return
				}
			}
		}
	}
}

// awaitServer returns when the last started server serves, or another one if that one has ended.
func (s *stress) awaitServer(from int64) {
	s.waitUntil("a server to serve", func() bool { return s.isServing(from) || len(s.servers()) == 0 })
	if len(s.servers()) == 0 {
		s.serve()
	}
}

func (s *stress) logSize() int64 {
	info, err := s.log.Stat()
	mustSucceed(s.t, err)
	return info.Size()
}

// awaitServersGone waits until no server is left.
func (s *stress) awaitServersGone() {
	s.waitUntil("the servers to end", func() bool { return len(s.servers()) == 0 })
}

func (s *stress) killServer(*rand.Rand) {
	s.killServers()
	s.serve()
}

func (s *stress) killSupervisor(*rand.Rand) { s.signalSupervisor(syscall.SIGKILL) }

// signalSupervisor signals the supervisor, if there is one, and records the time.
func (s *stress) signalSupervisor(sig syscall.Signal) {
	if pid := s.supervisor(); pid != 0 {
		_ = syscall.Kill(pid, sig) // it may just have ended
		s.noteShot(sig)
	}
}

// noteShot records that a signal was sent. It is called after that, because a run that was accepted while the signals
// were sent may have been hit, too.
func (s *stress) noteShot(sig syscall.Signal) {
	at := sinceBoot()
	if sig == syscall.SIGTERM { // its receiver accepts runs until it notices the signal
		at = at.plus(noticeTime)
	}
	s.shots = append(s.shots, shot{at, sig})
}

// noticeTime is the longest time that a process may take to notice a signal.
const noticeTime = 2 * time.Second

func (s *stress) killBoth(r *rand.Rand) {
	signalAll(s.servers(), syscall.SIGKILL)
	if r.IntN(2) == 0 {
		pauseRandomly(r, 0, 20*time.Millisecond)
	}
	s.signalSupervisor(syscall.SIGKILL)
	s.killServers()
	s.serve()
}

// handOver makes the server start its successor, kills one of the two servers, the supervisor or nothing during that
// time, and returns when a server serves.
func (s *stress) handOver(r *rand.Rand) {
	wait, what := time.Duration(r.IntN(400))*time.Millisecond, r.IntN(5)
	pids := s.servers()
	if len(pids) == 0 {
		s.serve()
		return
	}
	from, old := s.logSize(), pids[0]
	_ = syscall.Kill(old, syscall.SIGUSR2) // a server that does not serve yet ends by it
	<-time.After(wait)
	pids = s.servers()
	switch last := len(pids) - 1; {
	case what == 0 && slices.Contains(pids, old):
		_ = syscall.Kill(old, syscall.SIGKILL)
	case what == 1 && last >= 0 && pids[last] != old:
		_ = syscall.Kill(pids[last], syscall.SIGKILL)
	case what == 2:
		s.signalSupervisor(syscall.SIGKILL)
	}
	// The remaining server serves, or gives up.
	s.waitUntil("one server", func() bool { pids = s.servers(); return len(pids) < 2 })
	switch {
	case len(pids) == 0:
		s.serve()
	case pids[0] == old: // it takes everything back and serves again
		s.isServing(0)
	default:
		s.awaitServer(from) // the next one ends, too, if the old one was killed before it was ready
	}
}

// upgrade replaces the program by its other version, and makes the server hand over to it.
func (s *stress) upgrade(r *rand.Rand) {
	swap := s.program + ".swap"
	mustSucceed(s.t, os.Link(s.program, swap))
	mustSucceed(s.t, os.Rename(s.other, s.program))
	mustSucceed(s.t, os.Rename(swap, s.other))
	s.handOver(r)
}

func (s *stress) terminateServer(*rand.Rand) {
	signalAll(s.servers(), syscall.SIGTERM)
	s.noteShot(syscall.SIGTERM)
	s.awaitServersGone()
	s.serve()
}

func (s *stress) terminateSupervisor(*rand.Rand) { s.signalSupervisor(syscall.SIGTERM) }

func (s *stress) stopServer(r *rand.Rand) {
	pids := s.servers()
	signalAll(pids, syscall.SIGSTOP)
	pauseRandomly(r, 50*time.Millisecond, 2*time.Second)
	signalAll(pids, syscall.SIGCONT)
}

// stopSupervisor stops the supervisor for a while, sometimes for longer than the server waits for it, and sometimes
// another fault happens at the same time.
func (s *stress) stopSupervisor(r *rand.Rand) {
	least, most := 50*time.Millisecond, time.Second
	if r.IntN(2) == 0 { // until the server answers deliveries without it
		least, most = 5500*time.Millisecond, 8*time.Second
	}
	pid := s.supervisor()
	if pid == 0 {
		return
	}
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	s.noteShot(syscall.SIGSTOP)
	goOn := func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	defer goOn()
	pauseRandomly(r, least, most)
	switch r.IntN(4) {
	case 0:
		s.killServers()
		from := s.logSize()
		s.start(false) // it waits for the supervisor
		goOn()
		s.awaitServer(from)
	case 1:
		signalAll(s.servers(), syscall.SIGTERM)
		s.noteShot(syscall.SIGTERM)
		pauseRandomly(r, 0, 2*time.Second)
		goOn()
		s.awaitServersGone()
		s.serve()
	case 2:
		s.signalSupervisor(syscall.SIGKILL)
	default:
	}
}

// configure replaces the configuration by rename, and makes the server read it.
func (s *stress) configure(text string) {
	s.write("sallyport.yaml.new", text, 0o600)
	mustSucceed(s.t, os.Rename(filepath.Join(s.dir, "sallyport.yaml.new"), filepath.Join(s.dir, "sallyport.yaml")))
	signalAll(s.servers(), syscall.SIGHUP)
}

func (s *stress) reload(r *rand.Rand) {
	if s.grace = "1s"; r.IntN(2) == 0 {
		s.grace = "1500ms"
	}
	s.configure(s.configuration(""))
}

// breakConfiguration makes the configuration invalid for a while.
func (s *stress) breakConfiguration(r *rand.Rand) {
	s.configure(s.configuration("") + "\nno such key: 1\n")
	defer func() { s.configure(s.configuration("")) }()
	pauseRandomly(r, 50*time.Millisecond, 2*time.Second)
	if r.IntN(3) == 0 {
		s.signalSupervisor(syscall.SIGKILL)
		pauseRandomly(r, 50*time.Millisecond, time.Second)
	}
}

// takeHookAway removes a hook from the configuration for a while.
func (s *stress) takeHookAway(r *rand.Rand) {
	hooks := stressHooks()
	s.configure(s.configuration(hooks[r.IntN(len(hooks))].name))
	defer func() { s.configure(s.configuration("")) }()
	pauseRandomly(r, 50*time.Millisecond, 2*time.Second)
	if r.IntN(3) == 0 {
		s.killServer(r)
		pauseRandomly(r, 50*time.Millisecond, time.Second)
	}
}

// takeProgramAway removes the command's program, as while it is replaced.
func (s *stress) takeProgramAway(r *rand.Rand) {
	program := filepath.Join(s.dir, "job")
	mustSucceed(s.t, os.Rename(program, program+".away"))
	defer func() { mustSucceed(s.t, os.Rename(program+".away", program)) }()
	pauseRandomly(r, 50*time.Millisecond, 2*time.Second)
}

// writeProgram opens the command's program for writing, so that it cannot be executed.
func (s *stress) writeProgram(r *rand.Rand) {
	f, err := os.OpenFile(filepath.Join(s.dir, "job"), os.O_WRONLY|os.O_APPEND, 0)
	if errors.Is(err, syscall.ETXTBSY) { // a command runs
		return
	}
	mustSucceed(s.t, err)
	defer func() { mustSucceed(s.t, f.Close()) }()
	pauseRandomly(r, 50*time.Millisecond, time.Second)
}

// cutPower ends all processes at once, drops what was not synced, and starts the machine again. Where no disk can be
// mounted, it only ends the processes.
func (s *stress) cutPower(r *rand.Rand) {
	pauseRandomly(r, 0, 200*time.Millisecond)
	signalAll(s.listProcesses(), syscall.SIGSTOP)
	s.noteShot(syscall.SIGPWR)
	if s.power != nil {
		s.power.cutPower()
	}
	s.killAll()
	s.noteShot(syscall.SIGPWR) // of processes that began meanwhile
	if s.power != nil {
		var err error
		s.waitUntil("the disk to be mounted again", func() bool {
			err = s.power.restore()
			return !errors.Is(err, syscall.EBUSY)
		})
		mustSucceed(s.t, err)
	}
	s.serve()
}

// stepWallClock sets the clock, mostly back to the right time or by a small step.
func (s *stress) stepWallClock(r *rand.Rand) {
	const day = 24 * time.Hour
	steps := []time.Duration{0, 0, 2 * time.Second, -2 * time.Second, 90 * time.Second, -90 * time.Second, time.Hour, -time.Hour, day, -day, 40 * day, -40 * day}
	stepClock(s.t, s.program, steps[r.IntN(len(steps))])
}

// configuration returns the text of the configuration, without one of the hooks.
func (s *stress) configuration(without string) string {
	var b strings.Builder
	b.WriteString(stressInstalled)
	for _, h := range stressHooks() {
		if h.name == without {
			continue
		}
		hook := strings.NewReplacer("NAME", h.name, "BUSY", h.busy, "GRACE", s.grace).Replace(stressHookText)
		if h.again {
			hook += "    on_interrupted: rerun\n"
		}
		if h.more != "" {
			hook += "    " + h.more + "\n"
		}
		b.WriteString(hook)
	}
	return strings.ReplaceAll(b.String(), "DIR", s.dir)
}
