package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	watchEach = 15 * time.Second
	// silenceTime is how long a supervisor may be silent. A disk may hang for some
	// seconds; a process that was stopped never answers.
	silenceTime = time.Minute
)

// awaitAnswer asks the connected supervisor something, and continues it for as long as
// it does not answer. Its commands run as the same user, so one of them may have sent it
// SIGSTOP, to outlive its timeout for example. To find or start one is not its task.
func (c *connection) awaitAnswer() {
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	from := time.Now()
	answered := make(chan error, 1)
	go func() {
		_, err := l.callAndWait(c.ctx, request{Do: doList})
		answered <- err
	}()
	silent := time.NewTicker(c.o.silenceTime)
	defer silent.Stop()
	for woken := false; ; woken = true {
		select {
		case <-c.ctx.Done():
			return
		case err := <-answered:
			if woken && err == nil {
				c.o.Log.Warn("the supervisor answers again", "silent_s", int(time.Since(from).Seconds()))
			}
			return
		case <-silent.C:
			c.continueSupervisor(time.Since(from))
		}
	}
}

// continueSupervisor has the supervisor go on, if it was stopped.
func (c *connection) continueSupervisor(silent time.Duration) {
	pid, err := supervisorPID(c.o.State)
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGCONT)
	}
	if err != nil {
		c.o.Log.Error("the supervisor does not answer, and cannot be continued", "silent_s", int(silent.Seconds()), "error", err)
		return
	}
	c.o.Log.Error("the supervisor does not answer; sent it SIGCONT, in case it was stopped", "silent_s", int(silent.Seconds()), "pid", pid)
}

// writePID has the file of the supervisor's lock name this process.
func writePID(lock *os.File) error {
	text := strconv.Itoa(os.Getpid()) + "\n"
	if err := lock.Truncate(0); err != nil {
		return fmt.Errorf("writing the supervisor's process id: %w", err)
	}
	if _, err := lock.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("writing the supervisor's process id: %w", err)
	}
	return nil
}

// supervisorPID is the process that has a state folder's lock of the supervisor.
func supervisorPID(state string) (int, error) {
	text, err := os.ReadFile(filepath.Join(state, mutexFile))
	if err != nil {
		return 0, fmt.Errorf("finding the supervisor: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("finding the supervisor: %s has no process id", mutexFile)
	}
	return pid, nil
}
