package supervisor

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// HideMemory prevents other processes of this user, such as commands, from reading the memory, the environment and
// the descriptors of this process, and from attaching to it as a debugger does. It does not protect a child once the
// child executes its program.
func HideMemory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hiding the memory from other processes: %w", err)
	}
	return nil
}

// withoutCapabilities starts a process that inherits no capability. The server may have an ambient capability, to
// listen on port 443; the supervisor needs none, and commands would inherit it. Root has all capabilities in any
// case.
func withoutCapabilities(start func() (*os.Process, error)) (p *os.Process, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread without the capabilities ends with this goroutine
		if err = clearInheritable(); err == nil {
			p, err = start()
		}
	}()
	<-done
	return p, err
}

// clearInheritable empties the inheritable set of this thread, and with it the ambient set, which is a subset
// (capabilities(7)). If it is empty already, no change is asked for: a unit may forbid that (systemd:
// SystemCallFilter=~@privileged).
func clearInheritable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("reading the capabilities: %w", err)
	}
	if sets[0].Inheritable|sets[1].Inheritable == 0 {
		return nil
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("giving up inheritable capabilities: %w", err)
	}
	return nil
}
