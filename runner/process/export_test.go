package process

import (
	"time"
)

// WithoutCgroups makes l look for what commands leave behind among all
// processes, as it does where cgroup v2 cannot be written.
func (l *Local) WithoutCgroups() { l.parent.DisableCgroups() }

// HasCgroups tells whether runs get a cgroup each.
func (l *Local) HasCgroups() bool { return l.parent.CgroupOf("run") != "" }

// Followers tells how many follow a run.
func (l *Local) Followers(run string) int {
	l.active.mu.Lock()
	defer l.active.mu.Unlock()
	return len(l.active.byID[run].followers)
}

// CleanUpAgainAfter is how long a working folder that could not be removed is left.
func (l *Local) CleanUpAgainAfter(d time.Duration) { l.ends.again = d }

// LoginEnvironment is loginEnv.
var LoginEnvironment = loginEnvironment //nolint:gochecknoglobals // a function
