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
	// silenceTime is how long a supervisor may be silent. A disk may hang for some seconds; a process that was
	// stopped never answers.
	silenceTime = time.Minute
)

// awaitAnswer sends a request to the connected supervisor, and sends it SIGCONT at intervals as long as it does not
// answer. Commands run as the same user, so one of them may have sent the supervisor SIGSTOP, for example to outlive
// its timeout. awaitAnswer does not find or start a supervisor.
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

// continueSupervisor sends the supervisor SIGCONT, in case it was stopped.
func (c *connection) continueSupervisor(silent time.Duration) {
	pid, err := supervisorPID(c.o.State)
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGCONT)
	}
	if err != nil {
		c.o.Log.Error("the supervisor does not answer, and cannot be continued", "silent_s", int(silent.Seconds()),
			"error", err)
		return
	}
	c.o.Log.Error("the supervisor does not answer; sent it SIGCONT, in case it was stopped",
		"silent_s", int(silent.Seconds()), "pid", pid)
}

// writePID writes the id of this process into the lock file of the supervisor.
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

// supervisorPID returns the id of the process that holds the supervisor's lock of a state folder.
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
