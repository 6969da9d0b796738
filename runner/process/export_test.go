package process

// WithoutCgroups makes l look for what commands leave behind among all
// processes, as it does where cgroup v2 cannot be written.
func (l *Local) WithoutCgroups() { l.cgroups = "" }

// HasCgroups tells whether runs get a cgroup each.
func (l *Local) HasCgroups() bool { return l.cgroups != "" }

// WithoutPunch makes l keep outputs as it does where the filesystem cannot
// free the middle of a file.
func (l *Local) WithoutPunch() { l.punch = false }
