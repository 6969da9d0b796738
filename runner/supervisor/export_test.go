package supervisor

import (
	"time"

	"sallyport/runner/process/proctree"
)

// Prepare has f called on the Parent of a supervisor before it adopts anything.
func (s *Settings) Prepare(f func(*proctree.Parent)) {
	s.prepare = func(v *supervisor) { f(v.parent) }
}

// ForUser makes a supervisor serve another user than its own.
func (s *Settings) ForUser(uid int) {
	s.prepare = func(v *supervisor) { v.uid = uid }
}

// Break cuts the connection, as a network would between two machines.
func (c *Client) Break() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.link.conn.Close()
}

// Pending tells how many requests are not answered.
func (c *Client) Pending() int {
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting)
}

// Broken tells whether it is known that the connection broke.
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

// UpdateAgainAfter has a supervisor of another version asked so often to
// replace itself.
func (o *Options) UpdateAgainAfter(d time.Duration) { o.updateAgain = d }

// WatchEach is how often the supervisor is asked whether it answers, and how long it
// may be silent.
func (o *Options) WatchEach(each, silence time.Duration) { o.watchEach, o.silenceTime = each, silence }

// CheckImage is checkImage.
var CheckImage = checkImage //nolint:gochecknoglobals // a function
