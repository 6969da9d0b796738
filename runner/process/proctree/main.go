package proctree

import "os"

// Main is the main process of a command.
type Main struct {
	process *os.Process // nil for an orphan
	pid     int         // 0 if it is not known
}

// IsOrphan reports whether the process is a child of a supervisor that has ended, and not of this process.
func (m *Main) IsOrphan() bool { return m.process == nil }

// PID returns the pid of the process; 0 if that is not known.
func (m *Main) PID() int { return m.pid }

// Reap reaps the process, which is a child, once it has ended. It returns nil if another part of the program reaped it.
func (m *Main) Reap() *os.ProcessState {
	s, _ := m.process.Wait() // nil stands for the error
	return s
}
