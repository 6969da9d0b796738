package proctree

import (
	"slices"

	"golang.org/x/sys/unix"
)

// BecomeSubreaper makes the processes that commands leave behind children of this process.
func (c *Children) BecomeSubreaper() error {
	err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	c.subreaper = err == nil
	return err
}

// mainPIDs returns the pids of the main processes. The caller holds mu.
func (c *Children) mainPIDs() map[int]bool {
	pids := map[int]bool{}
	for _, pid := range c.mains {
		pids[pid] = true
	}
	return pids
}

// listAdopted returns the children that this process did not start: those that commands left to it as their
// subreaper, or as the first process of a container. The caller holds mu, so that every child that this process
// started is known.
func (c *Children) listAdopted() []int {
	mains := c.mainPIDs()
	return slices.DeleteFunc(listChildren(), func(pid int) bool { return mains[pid] })
}

// hasStrays reports whether any adopted child is alive.
func (c *Children) hasStrays() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.listAdopted(), func(pid int) bool {
		p, ok := readStat(pid)
		return ok && !p.zombie
	})
}

// Reap reaps the adopted children. No other code does that, and zombies count against the process limit.
func (c *Children) Reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pid := range c.listAdopted() {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // returns 0 for a process that is alive
	}
}
