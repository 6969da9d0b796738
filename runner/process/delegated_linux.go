package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// commandsGroup is the cgroup that holds those of all runs, where this process may
// bound it.
const commandsGroup = "sallyport-commands"

// groupCommands has the cgroups of runs made in one beside this process's own, whose
// bound of processes leaves room for the server and the supervisor. The kernel bounds
// only a cgroup whose parent holds no process itself, so this needs systemd's
// DelegateSubgroup=: the service's cgroup is ours then, and we are in one below it.
// It holds root, too, and costs a start nothing.
func (l *Local) groupCommands(limit uint64) error {
	service := filepath.Dir(l.cgroups)
	if l.cgroups == "" || !isDelegated(service) {
		return nil
	}
	processes, err := read(service, "cgroup.procs")
	if err != nil || len(processes) > 0 {
		return err
	}
	controllers, err := read(service, "cgroup.controllers")
	if err != nil || !bytes.Contains(controllers, []byte("pids")) {
		return err
	}
	if err := os.WriteFile(filepath.Join(service, "cgroup.subtree_control"), []byte("+pids"), 0); err != nil {
		return fmt.Errorf("bounding the processes of all commands: %w", err)
	}
	group := filepath.Join(service, commandsGroup)
	if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // the folder of a cgroup holds nothing secret
		return fmt.Errorf("bounding the processes of all commands: %w", err)
	}
	if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte(strconv.FormatUint(limit, 10)), 0); err != nil {
		return fmt.Errorf("bounding the processes of all commands: %w", err)
	}
	l.cgroups = group
	return nil
}

// ungroupCommands undoes groupCommands, unless something that got away is still there.
func (l *Local) ungroupCommands() {
	if filepath.Base(l.cgroups) == commandsGroup {
		_ = os.Remove(l.cgroups)
	}
}

// isDelegated reports whether systemd has left a cgroup and all below it to its
// service (systemd.resource-control(5)).
func isDelegated(dir string) bool {
	var value [2]byte
	n, err := unix.Getxattr(dir, "user.delegate", value[:])
	return err == nil && string(value[:n]) == "1"
}
