package proctree

import (
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Children are the children of this process: the main processes of commands, and processes that commands left behind.
type Children struct {
	subreaper bool        // processes that commands leave behind become children of this process
	reaping   atomic.Bool // a reap is due

	// mu is held while a command is started, until its main process is in mains, because this process has the umask
	// and the limits of the command meanwhile. It is also held while processes are searched or reaped.
	mu    sync.Mutex
	mains map[string]int // by run: the pid of its main process, which a goroutine waits for
}

func (c *Children) recordMain(run string, pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mains[run] = pid
}

func (c *Children) forgetMain(run string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mains, run)
}

// BetweenStarts calls f while no command is being started. Then no child of this process still has inherited
// descriptors, except those that it was given.
func (c *Children) BetweenStarts(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// AdoptsOrphans reports whether processes that commands leave behind become children of this process.
func (c *Children) AdoptsOrphans() bool { return c.subreaper || os.Getpid() == 1 }

// ReapSoon reaps the zombies that commands left to this process, including those that end a little later than their
// run.
func (c *Children) ReapSoon() {
	if !c.AdoptsOrphans() || c.reaping.Swap(true) {
		return
	}
	time.AfterFunc(time.Second, func() {
		c.reaping.Store(false)
		c.Reap()
	})
}
