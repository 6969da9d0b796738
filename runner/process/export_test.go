package process

import (
	"time"
)

// WithoutCgroups makes l search all processes for those that commands leave behind, as on a system whose cgroup v2
// cannot be written.
func (l *Local) WithoutCgroups() { l.parent.DisableCgroups() }

// HasCgroups reports whether each run gets a cgroup.
func (l *Local) HasCgroups() bool { return l.parent.Cgroups.PathOf("run") != "" }

// CleanUpAgainAfter sets the time until the first new attempt to remove a working folder.
func (l *Local) CleanUpAgainAfter(d time.Duration) { l.ends.again = d }

// LoginEnvironment exports loginEnvironment to tests.
var LoginEnvironment = loginEnvironment //nolint:gochecknoglobals // a function
