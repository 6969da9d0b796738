package account

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// CheckSwitch returns why this process cannot start a command as another user and then end it.
func CheckSwitch() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("reading the capabilities: %w", err)
	}
	var missing []string
	for _, needed := range []struct {
		name string
		bit  uint
	}{
		{"CAP_SETUID", unix.CAP_SETUID}, {"CAP_SETGID", unix.CAP_SETGID}, {"CAP_KILL", unix.CAP_KILL},
	} {
		if sets[0].Effective&(1<<needed.bit) == 0 {
			missing = append(missing, needed.name)
		}
	}
	switch {
	case os.Geteuid() != 0: // with ambient capabilities alone: the supervisor gives those up
		return errNotRoot
	case len(missing) > 0:
		return fmt.Errorf("this process lacks %s", strings.Join(missing, ", "))
	}
	return nil
}
