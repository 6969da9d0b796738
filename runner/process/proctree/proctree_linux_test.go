package proctree_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"sallyport/runner/process/processtest"
	"sallyport/runner/process/proctree"
)

// TestLimits_Lowest checks that ProcessLimit uses the lowest limit, which may be one of the machine.
func TestLimits_Lowest(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/kernel/threads-max")
	if err != nil {
		t.Fatal(err)
	}
	most, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if got := proctree.ProcessLimit(); got > min(most, processtest.LimitOf(t, os.Getpid()))-256 {
		t.Errorf("commands may have %d processes, of %d", got, most)
	}
}

// TestThreads_MadeAhead checks that MakeThreads creates threads which stay for later use.
func TestThreads_MadeAhead(t *testing.T) {
	threads := func() int {
		list, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	proctree.MakeThreads(40)
	if n := threads(); n < 40 {
		t.Fatalf("%d threads after 40 were made", n)
	}
	before := threads()
	proctree.MakeThreads(30)
	if n := threads(); n > before+5 { // the runtime makes one now and then
		t.Errorf("%d threads instead of %d: what was made is not used again", n, before)
	}
}

// TestCgroup_MountPoints checks that the cgroup of a process is found wherever the hierarchy is mounted.
func TestCgroup_MountPoints(t *testing.T) {
	const unified = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
	const hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n38 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	const bind = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup ro\n"
	for _, c := range []struct{ mounts, own, want string }{
		{unified, "0::/system.slice/sallyport.service\n", "/sys/fs/cgroup/system.slice/sallyport.service"},
		{unified, "0::/\n", "/sys/fs/cgroup"},
		{hybrid, "4:memory:/x\n0::/a\n", "/sys/fs/cgroup/unified/a"},
		{bind, "0::/docker/abc/d\n", "/sys/fs/cgroup/d"},
		{bind, "0::/other\n", ""},
		{unified, "0::/../outside\n", ""},
		{unified, "4:memory:/x\n", ""},
		{"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n", "0::/\n", ""},
	} {
		if got, err := proctree.CgroupHome(c.mounts, c.own); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: got %q, %v; want %q", fmt.Sprint(c.mounts, c.own), got, err, c.want)
		}
	}
}
