package proctree

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sallyport/runner/process/rundir"

	"golang.org/x/sys/unix"
)

// commandsGroup is the cgroup that holds the cgroups of all runs, if this process may set a limit on it.
const commandsGroup = "sallyport-commands"

// limitCommands returns the cgroup in which the cgroups of runs are to be made: one next to the cgroup of this process,
// with a limit of processes that leaves room for the server and the supervisor. The kernel enforces a limit only on a
// cgroup if the parent of that cgroup has no process itself. So this needs systemd's DelegateSubgroup=: then the cgroup
// of the service is delegated to this process, which is in a cgroup below it. The limit applies to root too, and does
// not slow the start of a command.
func (c cgroup) limitCommands(limit uint64) (cgroup, error) {
	service := filepath.Dir(string(c))
	if c == "" || !isDelegated(service) {
		return c, nil
	}
	processes, err := readKernelFile(service, "cgroup.procs")
	if err != nil || len(processes) > 0 {
		return c, err
	}
	controllers, err := readKernelFile(service, "cgroup.controllers")
	if err != nil || !bytes.Contains(controllers, []byte("pids")) {
		return c, err
	}
	if err := os.WriteFile(filepath.Join(service, "cgroup.subtree_control"), []byte("+pids"), 0); err != nil {
		return c, fmt.Errorf("bounding the processes of all commands: %w", err)
	}
	group := filepath.Join(service, commandsGroup)
	err = os.Mkdir(group, 0o755) //nolint:gosec // the folder of a cgroup holds nothing secret
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return c, fmt.Errorf("bounding the processes of all commands: %w", err)
	}
	if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte(strconv.FormatUint(limit, 10)), 0); err != nil {
		return c, fmt.Errorf("bounding the processes of all commands: %w", err)
	}
	return cgroup(group), nil
}

// Release undoes LimitProcesses, unless a process that escaped is still there.
func (p *Parent) Release() {
	if filepath.Base(string(p.Cgroups.dir)) == commandsGroup {
		_ = os.Remove(string(p.Cgroups.dir))
	}
}

// isDelegated reports whether systemd has delegated a cgroup and all cgroups below it to its service
// (systemd.resource-control(5)).
func isDelegated(dir string) bool {
	var value [2]byte
	n, err := unix.Getxattr(dir, "user.delegate", value[:])
	return err == nil && string(value[:n]) == "1"
}

// findCgroups returns the folder of this process's own cgroup, if the system has cgroup v2 and lets this process make
// cgroups below it and kill them as a whole.
func findCgroups() (cgroup, error) {
	home, err := ownCgroup()
	if err != nil {
		return "", err
	}
	if err := unix.Access(filepath.Join(home, "cgroup.procs"), unix.W_OK); err != nil {
		return "", fmt.Errorf("writing to %s: %w", home, err)
	}
	trial, err := os.MkdirTemp(home, "sallyport-trial-")
	if err != nil {
		return "", err
	}
	_, err = os.Stat(filepath.Join(trial, "cgroup.kill"))
	if err := errors.Join(err, os.Remove(trial)); err != nil {
		return "", err
	}
	return cgroup(home), nil
}

// ownCgroup returns the folder of this process's own cgroup v2.
func ownCgroup() (string, error) {
	mounts, err := readKernelFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := readKernelFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	return cgroupHome(string(mounts), string(own))
}

// cgroupHome returns the folder in which the kernel shows the cgroup of this process.
func cgroupHome(mounts, own string) (string, error) {
	var path string
	for line := range strings.Lines(own) {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			path = strings.TrimSpace(p)
		}
	}
	for line := range strings.Lines(mounts) {
		mount, source, ok := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if !ok || !strings.HasPrefix(source, "cgroup2 ") || len(fields) < 5 {
			continue
		}
		below, err := filepath.Rel(fields[3], path)
		if err != nil || !filepath.IsAbs(path) || strings.Contains(path, "..") || !filepath.IsLocal(below) ||
			strings.Contains(fields[4], `\`) {
			return "", fmt.Errorf("the cgroup %q is not below the mount %s", path, fields[4])
		}
		return filepath.Join(fields[4], below), nil
	}
	return "", errors.New("no cgroup v2")
}

// cgroup is the path of the folder of a cgroup.
type cgroup string

// PathOf returns the path of the cgroup for a run; empty if runs have none.
func (g *Cgroups) PathOf(run string) string {
	if g.dir == "" {
		return ""
	}
	return filepath.Join(string(g.dir), cgroupPrefix+run)
}

func (c cgroup) killAll() error {
	return os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0)
}

func (c cgroup) isPopulated() (bool, error) {
	events, err := readKernelFile(string(c), "cgroup.events")
	return !bytes.Contains(events, []byte("populated 0")), err
}

// listMembers returns the processes in the cgroup and in those below it.
func (c cgroup) listMembers() (pids []int) {
	for _, dir := range c.listSubgroups() {
		list, err := readKernelFile(dir, "cgroup.procs")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(list)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// listSubgroups returns the cgroup and all cgroups below it, parents first.
func (c cgroup) listSubgroups() (dirs []string) {
	_ = filepath.WalkDir(string(c), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // a cgroup that is removed during the walk is not an error
	})
	return dirs
}

// removeGroups removes the cgroup and those that the command made in it.
func (c cgroup) removeGroups() error {
	dirs := c.listSubgroups()
	slices.Reverse(dirs)
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Sweep removes the cgroups of runs that are over. A process that has ended may have left them.
func (g *Cgroups) Sweep(isOver func(run string) bool) {
	if g.dir == "" {
		return
	}
	dirs, _ := filepath.Glob(filepath.Join(string(g.dir), cgroupPrefix+"*")) // the only error is a bad pattern
	for _, dir := range dirs {
		run := strings.TrimPrefix(filepath.Base(dir), cgroupPrefix)
		if rundir.CheckID(run) != nil || !isOver(run) {
			continue
		}
		if err := cgroup(dir).removeGroups(); err != nil {
			g.log.Warn("removing the cgroup of a run that has ended", "run", run, "error", err)
		}
	}
}
