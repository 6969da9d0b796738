package supervisor_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
)

// TestAdopt_RemovesLeftovers checks that a supervisor removes what a killed one left.
func TestAdopt_RemovesLeftovers(t *testing.T) {
	command, release := processtest.GatedScript(t, "echo > file")
	p := newPost(t, job(command))
	run := p.begin(t, p.order("job", nil))
	gone := p.KeepLock(t, run)
	release()
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 0)
	p.killSupervisor(t)
	gone()
	if work, mark := p.Remains(t, run); !work || !mark {
		t.Errorf("there is a folder: %v, a mark: %v", work, mark)
	}
	p.connect(t)
	p.AwaitRemoval(t, run)

	gate := filepath.Join(t.TempDir(), "gate") // and of a run that it left in progress
	p.hooks = p.write(t, job(processtest.Script(t, `echo > file; until [ -e "$1" ]; do sleep 0.01; done`, gate)))
	run = p.begin(t, p.order("job", nil))
	p.killSupervisor(t)
	p.connect(t)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	processtest.CheckInterrupted(t, p.Subject.AwaitEnd(t, run))
	p.AwaitRemoval(t, run)
}

// TestAdopt_LostMark checks that a run with a folder is not started again, even if a
// crash of the machine lost the mark that it was in progress.
func TestAdopt_LostMark(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	o := p.order("job", nil)
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, o)), 0)
	p.AwaitRemoval(t, o.Run)
	s := p.ReadStatus(t, o.Run)
	s.End = runner.End{}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.Dir, o.Run, "status"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if known, err := p.Known(o.Run); !known || err != nil {
		t.Errorf("known: %v, %v", known, err)
	}
	processtest.CheckInterrupted(t, p.Subject.AwaitEnd(t, o.Run))
}

// TestAdopt_CorruptStatus checks that a corrupt status is not an error. With an error the server
// could never start again, because at its start it asks about each run in its store.
func TestAdopt_CorruptStatus(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	for _, garbled := range []string{"", `{"run":"01`, "\x00\x00\x00\x00"} {
		o := p.order("job", nil)
		processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, o)), 0)
		p.AwaitRemoval(t, o.Run)
		if err := os.WriteFile(filepath.Join(p.Dir, o.Run, "status"), []byte(garbled), 0o600); err != nil {
			t.Fatal(err)
		}
		if known, err := p.Known(o.Run); !known || err != nil {
			t.Errorf("%q: known: %v, %v", garbled, known, err)
		}
		processtest.CheckInterrupted(t, p.Subject.AwaitEnd(t, o.Run))
		if err := p.Stop(o.Run, runner.Cancelled, 0); err != nil {
			t.Errorf("%q: stopped: %v", garbled, err)
		}
	}
}

// TestCgroup_ProcessLeft checks that a process that moved itself to another cgroup, as root may,
// ends with its run.
func TestCgroup_ProcessLeft(t *testing.T) {
	t.Parallel()
	p := newPost(t, job([]string{"/bin/true"}))
	run := p.begin(t, p.order("job", nil))
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 0)
	home := filepath.Dir(p.ReadStatus(t, run).Cgroup)
	if home == "." {
		testenv.Skip(t, "what leaves its cgroup, because runs get none here")
	}
	script := `
keep='echo $$ > "$0/cgroup.procs" && trap "" TERM && echo $$; while :; do sleep 1; done'
sh -c "$keep" "$1" &
(setsid sh -c "$keep" "$1" 3>&- &)                                    # without the lock
(env -i /usr/bin/setsid /bin/sh -c "$keep" "$1" &)                    # without the environment
(env -i /usr/bin/setsid /bin/sh -c "$keep" "$1" 3>&- &)               # without either, and the only run
while [ ! -e go ]; do sleep 0.01; done`
	spec := job(processtest.Script(t, script, home))
	j := spec["job"]
	j.Grace = 100 * time.Millisecond
	spec["job"] = j
	p.hooks = p.write(t, spec)
	if _, err := p.Reload(""); err != nil {
		t.Fatal(err)
	}
	run = p.begin(t, p.order("job", nil))
	all := processtest.AwaitPIDs(t, &p.Subject, run, 4)
	for _, pid := range all {
		if groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || strings.Contains(string(groups), run) {
			t.Fatalf("process %d is in the cgroup of its run, so the test shows nothing: %s, %v", pid, groups, err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.Dir, run, "work", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e := p.Subject.AwaitEnd(t, run)
	processtest.CheckExit(t, e, 0)
	processtest.CheckGone(t, all)
	if e.LeftBehind < len(all) {
		t.Errorf("%d processes are counted as left behind, and there were %d", e.LeftBehind, len(all))
	}
}

// TestStart_FoldersRemoved starts a run after the folders that belong to no run, or all folders, were removed, as a
// clean-up of the disk may do.
func TestStart_FoldersRemoved(t *testing.T) {
	command, release := processtest.GatedScript(t, "exit 4")
	p := newPost(t, map[string]hook.Spec{"job": {Command: []string{"/bin/true"}}, "held": {Command: command}})
	held := p.begin(t, p.order("held", nil))
	p.AwaitText(t, held, "ready")
	for _, name := range []string{"active", "ready"} {
		processtest.Eventually(t, "the folder is gone", func() bool { return os.RemoveAll(filepath.Join(p.Dir, name)) == nil })
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 0)
	p.killSupervisor(t) // the next supervisor finds the runs in progress by their marks
	if list, err := p.List(); err != nil || !slices.Equal(list, []string{held}) {
		t.Errorf("in progress are %v, %v", list, err)
	}
	release()
	processtest.CheckInterrupted(t, p.Subject.AwaitEnd(t, held))

	processtest.Eventually(t, "the folder is gone", func() bool { return os.RemoveAll(p.Dir) == nil })
	o := p.order("job", nil)
	if err := p.Start(o); !errors.Is(err, runner.ErrNotNow) {
		t.Errorf("got %v", err)
	}
	processtest.Eventually(t, "it starts", func() bool { return p.Start(o) == nil })
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, o.Run), 0)
}
