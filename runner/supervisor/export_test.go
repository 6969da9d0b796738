package supervisor

import (
	"time"

	"sallyport/runner/process/proctree"
)

// Prepare makes a supervisor call f with its Parent before it adopts anything.
func (s *Settings) Prepare(f func(*proctree.Parent)) {
	s.prepare = func(v *supervisor) { f(v.parent) }
}

// ForUser makes a supervisor serve another user.
func (s *Settings) ForUser(uid int) {
	s.prepare = func(v *supervisor) { v.uid = uid }
}

// Break cuts the connection, as a network would between two machines.
func (c *Client) Break() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.link.conn.Close()
}

// Pending returns the number of requests without an answer.
func (c *Client) Pending() int {
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	n := 0
	l.waiting.Range(func(any, any) bool { n++; return true })
	return n
}

// Broken reports whether the client knows that the connection broke.
func (c *Client) Broken() bool {
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	select {
	case <-l.broken:
		return true
	default:
		return false
	}
}

// UpdateAgainAfter sets the interval between upgrade requests to a supervisor of another version.
func (o *Options) UpdateAgainAfter(d time.Duration) { o.updateAgain = d }

// WatchEach sets how often the supervisor is asked whether it answers, and how long it may be silent.
func (o *Options) WatchEach(each, silence time.Duration) { o.watchEach, o.silenceTime = each, silence }

// CheckImage exports checkImage to tests.
var CheckImage = checkImage //nolint:gochecknoglobals // a function
