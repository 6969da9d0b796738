package process_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process"
	"sallyport/runner/process/processtest"
	"sallyport/runner/process/rundir"
)

// TestExitCode_OfCommand checks that a run ends with the exit code of its command.
func TestExitCode_OfCommand(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{
		Command: processtest.Script(t, `exit $1`, "{code}"),
		Params:  map[string]hook.ParamSpec{"code": {Type: "int", From: hook.From{"query", "code"}}},
	})
	for code, value := range map[int]string{0: "0", 1: "1", 3: "3", 255: "255"} {
		o := processtest.NewOrder()
		o.Values = hook.Values{"code": value}
		processtest.CheckExit(t, b.RunToEnd(t, o), code)
	}
}

// TestSignal_Name checks that the end of a run names the signal that ended its command.
func TestSignal_Name(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `kill -USR1 $$`)})
	e := b.RunToEnd(t, processtest.NewOrder())
	if e.ExitCode != nil || e.Signal != "SIGUSR1" || e.Reason != "" {
		t.Errorf("got %+v", e)
	}
}

// TestTimeout_EndsRun checks that a command that runs longer than its timeout is ended.
func TestTimeout_EndsRun(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `sleep 600`), Timeout: 50 * time.Millisecond})
	e := b.RunToEnd(t, processtest.NewOrder())
	if e.Reason != runner.TimedOut || e.ExitCode != nil || e.Signal != "SIGTERM" {
		t.Errorf("got %+v", e)
	}
}

// TestStop_IgnoredTERM checks that a command that ignores TERM is killed.
func TestStop_IgnoredTERM(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `trap "" TERM; echo ready; while :; do sleep 1; done`), Grace: 50 * time.Millisecond})
	run := b.Begin(t, processtest.NewOrder())
	b.AwaitText(t, run, "ready")
	if err := b.Stop(run, runner.Cancelled, -1); err != nil {
		t.Fatal(err)
	}
	e := b.AwaitEnd(t, run)
	if e.Reason != runner.Cancelled || e.Signal != "SIGKILL" {
		t.Errorf("got %+v", e)
	}
}

// TestStop_Grace checks that a stopped command has the grace of its hook to end.
func TestStop_Grace(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `trap "echo tidy; exit 7" TERM; echo ready; while :; do sleep 0.01; done`)})
	run := b.Begin(t, processtest.NewOrder())
	b.AwaitText(t, run, "ready")
	if err := b.Stop(run, runner.Cancelled, -1); err != nil {
		t.Fatal(err)
	}
	e := b.AwaitEnd(t, run)
	if e.Reason != runner.Cancelled || e.ExitCode == nil || *e.ExitCode != 7 {
		t.Errorf("got %+v", e)
	}
	if got := b.ReadOutput(t, run); strings.Count(got, "tidy") != 1 {
		t.Errorf("the command did not get one TERM: %q", got)
	}
}

// TestStop_Twice checks that a second stop may shorten the grace, and does not change the reason.
func TestStop_Twice(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `trap "" TERM; echo ready; while :; do sleep 1; done`)})
	run := b.Begin(t, processtest.NewOrder())
	b.AwaitText(t, run, "ready")
	for _, s := range []struct {
		why   runner.State
		grace time.Duration
	}{{runner.TimedOut, time.Hour}, {runner.Cancelled, 0}, {runner.Cancelled, time.Hour}} {
		if err := b.Stop(run, s.why, s.grace); err != nil {
			t.Fatal(err)
		}
	}
	if e := b.AwaitEnd(t, run); e.Reason != runner.TimedOut || e.Signal != "SIGKILL" {
		t.Errorf("got %+v", e)
	}
	if err := b.Stop(run, runner.Cancelled, 0); err != nil {
		t.Errorf("stopping what has ended: %v", err)
	}
	if e := b.AwaitEnd(t, run); e.Reason != runner.TimedOut {
		t.Errorf("the reason changed afterwards: %+v", e)
	}
}

// TestArguments_Verbatim checks that no shell changes an argument.
func TestArguments_Verbatim(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{
		Command: processtest.Script(t, `for a; do printf '<%s>' "$a"; done`, "{v}", "--x={v}", "; id", "*"),
		Params:  map[string]hook.ParamSpec{"v": {Match: `(?s).*`, From: hook.From{"query", "v"}}},
	})
	for _, v := range []string{"$(reboot)", "a\nb", "`id`; id | id > /x & $HOME", "\"'\\", "", " ", "ü\u2028", strings.Repeat("x", 60<<10)} {
		o := processtest.NewOrder()
		o.Values = hook.Values{"v": v}
		run := b.Begin(t, o)
		processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
		if want := "<" + v + "><--x=" + v + "><; id><*>"; b.ReadOutput(t, run) != want {
			t.Errorf("%.40q arrived as %.80q", v, b.ReadOutput(t, run))
		}
	}
}

// TestStart_RefusedValues checks that an order with values that are not allowed starts nothing.
func TestStart_RefusedValues(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{
		Command: []string{"/bin/echo", "{v}"},
		Params:  map[string]hook.ParamSpec{"v": {Enum: []string{"a", "b"}, From: hook.From{"query", "v"}}},
	})
	for _, v := range []hook.Values{{"v": "c"}, {"v": ""}, {}} {
		o := processtest.NewOrder()
		o.Values = v
		if err := b.Start(o); err == nil {
			t.Errorf("%v was started", v)
		}
		if _, err := os.Stat(filepath.Join(b.Dir, o.Run)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v left a folder: %v", v, err)
		}
	}
}

// TestEnvironment_ListOnly checks that a command has the variables of the list and no others.
func TestEnvironment_ListOnly(t *testing.T) {
	t.Setenv("SALLYPORT_SECRET", "hunter2")
	b := processtest.NewBench(t, hook.Spec{
		Command: []string{"/usr/bin/printenv"},
		Env:     map[string]string{"PATH": "/opt/bin", "SHELL": "/bin/false", "REGION": "{region}", "QUIET": ""},
		Params:  map[string]hook.ParamSpec{"region": {Match: ".*", From: hook.From{"query", "region"}}},
	})
	o := processtest.NewOrder()
	o.Values = hook.Values{"region": "eu $HOME"}
	o.Trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	run := b.Begin(t, o)
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	got := strings.Split(strings.TrimSuffix(b.ReadOutput(t, run), "\n"), "\n")
	slices.Sort(got)
	self, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"HOME=" + self.HomeDir, "LANG=C.UTF-8", "LOGNAME=" + self.Username, "PATH=/opt/bin", "QUIET=", "REGION=eu $HOME",
		"SALLYPORT_CALLER=tester", "SALLYPORT_HOOK=job", "SALLYPORT_RUN=" + run, "SHELL=/bin/false", "TRACEPARENT=" + o.Trace,
		"USER=" + self.Username,
	}
	if !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
}

// TestWorkingFolder_RunOrHook checks that a command runs in the dir of its hook, or else in the folder of the run.
func TestWorkingFolder_RunOrHook(t *testing.T) {
	script := processtest.Script(t, `pwd -P`)
	b := processtest.NewBench(t, hook.Spec{Command: script})
	run := b.Begin(t, processtest.NewOrder())
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	if want := filepath.Join(b.Dir, run, "work") + "\n"; b.ReadOutput(t, run) != want {
		t.Errorf("worked in %s, want %s", b.ReadOutput(t, run), want)
	}
	dir := t.TempDir()
	b = processtest.NewBench(t, hook.Spec{Command: script, Dir: dir})
	run = b.Begin(t, processtest.NewOrder())
	processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
	if b.ReadOutput(t, run) != dir+"\n" {
		t.Errorf("worked in %s, want %s", b.ReadOutput(t, run), dir)
	}
}

// TestStdin_BodyOrEmpty checks that stdin is empty unless the hook sets stdin: body.
func TestStdin_BodyOrEmpty(t *testing.T) {
	for _, source := range []string{"", "body"} {
		b := processtest.NewBench(t, hook.Spec{Command: []string{"/bin/cat"}, Stdin: source})
		o := processtest.NewOrder()
		o.Stdin = bytes.Repeat([]byte("line\x00\n"), 50_000)
		run := b.Begin(t, o)
		processtest.CheckExit(t, b.AwaitEnd(t, run), 0)
		want := ""
		if source == "body" {
			want = string(o.Stdin)
		}
		if got := b.ReadOutput(t, run); got != want {
			t.Errorf("stdin %q: got %d bytes, want %d", source, len(got), len(want))
		}
		if _, err := os.Stat(filepath.Join(b.Dir, run, "stdin")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the body still lies in the folder: %v", err)
		}
	}
}

// TestStderr_MoreThanPipe checks that a command is not blocked when it writes more to stderr than a pipe holds.
func TestStderr_MoreThanPipe(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `head -c 1000000 /dev/zero >&2; echo out`)})
	run := b.Begin(t, processtest.NewOrder())
	e := b.AwaitEnd(t, run)
	processtest.CheckExit(t, e, 0)
	if e.Output != (runner.Output{Bytes: 1000004}) {
		t.Errorf("output %+v", e.Output)
	}
	if got := b.ReadOutput(t, run); !strings.HasSuffix(got, "\x00out\n") {
		t.Errorf("the two streams are not in one order: …%q", got[len(got)-10:])
	}
}

// TestStart_Reason checks that the error of a start says why the command could not be started.
func TestStart_Reason(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b := processtest.NewBench(t, hook.Spec{Command: []string{program}})
	o := processtest.NewOrder()
	fails := func(want string) {
		t.Helper()
		if err := b.Start(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if known, err := b.Known(o.Run); known || err != nil {
			t.Errorf("known: %v, %v", known, err)
		}
		if err := b.Stop(o.Run, runner.Cancelled, 0); !errors.Is(err, runner.ErrUnknown) {
			t.Errorf("stopping what never started: %v", err)
		}
		if list, _ := b.List(); len(list) > 0 {
			t.Errorf("%v are in progress", list)
		}
	}
	if err := os.Chmod(program, 0o600); err != nil {
		t.Fatal(err)
	}
	fails("permission denied")
	if err := os.WriteFile(program, []byte{0x7f}, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(program, 0o700); err != nil {
		t.Fatal(err)
	}
	fails("exec format error")
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	fails("no such file or directory")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, b.RunToEnd(t, o), 3) // the same run may be started again
	if err := b.Start(o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the same run again: %v", err)
	}
}

// TestStart_MarkLeftBehind starts a run whose earlier start failed. The supervisor was killed between the two
// removals of that start.
func TestStart_MarkLeftBehind(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: []string{"/bin/true"}})
	o := processtest.NewOrder()
	mark := filepath.Join(b.Dir, "active", o.Run)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(mark)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(o); !errors.Is(err, fs.ErrExist) { // a process of the run is alive
		t.Errorf("got %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, b.RunToEnd(t, o), 0)
}

// TestStart_ArgumentsTooLong checks the error of a command whose arguments are too long for the system.
func TestStart_ArgumentsTooLong(t *testing.T) {
	command := []string{"/bin/true"}
	for range 60 {
		command = append(command, "{v}", "{v}")
	}
	b := processtest.NewBench(t, hook.Spec{
		Command: command,
		Params:  map[string]hook.ParamSpec{"v": {Match: ".*", From: hook.From{"query", "v"}}},
	})
	o := processtest.NewOrder()
	o.Values = hook.Values{"v": strings.Repeat("x", 60<<10)}
	if err := b.Start(o); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("got %v", err)
	}
}

// TestRunID_PlainUUID checks that only a plain UUID is the id of a run.
func TestRunID_PlainUUID(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: []string{"/bin/true"}})
	id := processtest.NewOrder().Run
	for _, run := range []string{"", ".", "..", "../x", "/etc", "a/b", "x", strings.ToUpper(id), "{" + id + "}", "urn:uuid:" + id, id + "/", id + "\x00"} {
		o := processtest.NewOrder()
		o.Run = run
		_, followed := b.Follow(run)
		_, read := b.Output(run)
		for what, err := range map[string]error{
			"Start": b.Start(o), "Stop": b.Stop(run, runner.Cancelled, 0), "Follow": followed, "Output": read, "Remove": rundir.Remove(b.Dir, run),
		} {
			if err == nil {
				t.Errorf("%s took %q", what, run)
			}
		}
	}
}

// TestRun_Unknown checks the error of each call for a run that is not known.
func TestRun_Unknown(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: []string{"/bin/true"}})
	run := processtest.NewOrder().Run
	_, followed := b.Follow(run)
	_, read := b.Output(run)
	for what, err := range map[string]error{"Stop": b.Stop(run, runner.Cancelled, 0), "Follow": followed, "Output": read} {
		if !errors.Is(err, runner.ErrUnknown) {
			t.Errorf("%s: %v", what, err)
		}
	}
	o := processtest.NewOrder()
	o.Hook = "other"
	if err := b.Start(o); err == nil {
		t.Error("a hook that is not there was started")
	}
}

// TestRevoke_OrStart checks that either the revocation of a run or its start succeeds, in either order.
func TestRevoke_OrStart(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: []string{"/bin/sleep", "60"}})
	o := processtest.NewOrder()
	for i := range 2 {
		if revoked, err := b.Revoke(o.Run, runner.Cancelled); err != nil || revoked != (i == 0) {
			t.Fatal(revoked, err)
		}
		if err := b.Start(o); !errors.Is(err, fs.ErrExist) {
			t.Errorf("revoked, and started: %v", err)
		}
	}
	if e := b.AwaitEnd(t, o.Run); e.Reason != runner.Cancelled || e.Ended.IsZero() || e.ExitCode != nil {
		t.Errorf("got %+v", e)
	}
	if _, err := b.Output(o.Run); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("its output: %v", err)
	}
	started := b.Begin(t, processtest.NewOrder())
	if revoked, err := b.Revoke(started, runner.Cancelled); revoked || err != nil {
		t.Errorf("a run in progress is revoked: %v, %v", revoked, err)
	}
	if _, err := b.Revoke("../x", runner.Cancelled); err == nil {
		t.Error("a path is revoked")
	}
}

// TestStart_SameID checks that a run is not started a second time.
func TestStart_SameID(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: []string{"/bin/true"}})
	o := processtest.NewOrder()
	b.RunToEnd(t, o)
	if err := b.Start(o); !errors.Is(err, os.ErrExist) {
		t.Errorf("got %v", err)
	}
}

// TestFolder_OtherUsers checks that other users may not read the folder of runs.
func TestFolder_OtherUsers(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `echo secret`)})
	run := b.Begin(t, processtest.NewOrder())
	b.AwaitEnd(t, run)
	for name, want := range map[string]os.FileMode{"": 0o700, run: 0o700, run + "/output": 0o600, run + "/status": 0o600, run + "/lock": 0o600} {
		info, err := os.Stat(filepath.Join(b.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %04o, want %04o", name, got, want)
		}
	}
	if err := os.Chmod(b.Dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := process.NewLocal(b.Dir, nil, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a folder that others may enter was taken")
	}
}

// TestStatus_AlwaysTrue checks that the status of a run is right before, during and after its command.
func TestStatus_AlwaysTrue(t *testing.T) {
	release := filepath.Join(t.TempDir(), "release")
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `echo ready; until [ -e "$1" ]; do sleep 0.01; done; exit 5`, release)})
	run := b.Begin(t, processtest.NewOrder())
	b.AwaitText(t, run, "ready")
	processtest.Eventually(t, "the status knows the process", func() bool { return b.ReadStatus(t, run).PID != 0 })
	s := b.ReadStatus(t, run)
	if s.Run != run || s.Hook != "job" || s.Caller != "tester" || s.PID == 0 || s.Created.IsZero() || s.Started.IsZero() || !s.Ended.IsZero() {
		t.Errorf("while it runs: %+v", s)
	}
	if list, err := b.List(); err != nil || !slices.Equal(list, []string{run}) {
		t.Errorf("in progress: %v, %v", list, err)
	}
	if err := rundir.Remove(b.Dir, run); err != nil || b.ReadStatus(t, run).Run != run {
		t.Errorf("a run in progress was removed: %v", err)
	}
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	processtest.Eventually(t, "the status has the end", func() bool { return !b.ReadStatus(t, run).Ended.IsZero() })
	if s = b.ReadStatus(t, run); *s.ExitCode != 5 || s.Output.Bytes != 6 {
		t.Errorf("at the end: %+v", s)
	}
	processtest.CheckExit(t, b.AwaitEnd(t, run), 5)
	if left, _ := filepath.Glob(filepath.Join(b.Dir, run, "*")); len(left) != 3 {
		t.Errorf("the folder holds %v, want lock, output and status", left)
	}
}

// TestFollow_EveryFollower checks that each follower of a run gets its end.
func TestFollow_EveryFollower(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `sleep 0.1; exit 2`)})
	run := b.Begin(t, processtest.NewOrder())
	var all []<-chan runner.End
	for range 5 {
		ends, err := b.Follow(run)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ends)
	}
	for _, ends := range all {
		processtest.CheckExit(t, <-ends, 2)
	}
	if err := rundir.Remove(b.Dir, run); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Follow(run); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("a removed run: %v", err)
	}
	o := processtest.NewOrder()
	o.Run = run
	b.Begin(t, o) // for the clean-up, which asks for its end
}

// TestEnd_ManyRuns checks that concurrent runs do not get the ends of others.
func TestEnd_ManyRuns(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{
		Command: processtest.Script(t, `echo $1; exit $1`, "{code}"),
		Params:  map[string]hook.ParamSpec{"code": {Type: "int", From: hook.From{"query", "code"}}},
	})
	codes := map[string]int{}
	for i := range 60 {
		o := processtest.NewOrder()
		o.Values = hook.Values{"code": strconv.Itoa(i)}
		codes[b.Begin(t, o)] = i
	}
	for run, code := range codes {
		processtest.CheckExit(t, b.AwaitEnd(t, run), code)
		if got := b.ReadOutput(t, run); got != strconv.Itoa(code)+"\n" {
			t.Errorf("got %q of the run that ends with %d", got, code)
		}
	}
}

// TestEnd_FolderLocked ends a run whose command made its folder read-only. Root may write into it anyway, so the test
// runs once more as another user.
func TestEnd_FolderLocked(t *testing.T) {
	if os.Geteuid() != 0 {
		b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, "chmod 0 ..; exit 3")})
		run := b.Begin(t, processtest.NewOrder())
		processtest.CheckExit(t, b.AwaitEnd(t, run), 3)
		processtest.Eventually(t, "the end is on disk", func() bool {
			_, err := os.Lstat(filepath.Join(b.Dir, "active", run))
			return errors.Is(err, fs.ErrNotExist)
		})
		if s := b.ReadStatus(t, run); s.Ended.IsZero() {
			t.Errorf("got %+v", s)
		}
		return
	}
	const uid = 65534
	dir := t.TempDir()
	program, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "program"), program, 0o755), os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755),
			os.Mkdir(filepath.Join(dir, "tmp"), 0o700), os.Chown(filepath.Join(dir, "tmp"), uid, uid))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "program"), "-test.run=^TestEnd_FolderLocked$", "-test.v", "-test.count=1")
	cmd.Dir, cmd.Env = filepath.Join(dir, "tmp"), append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestEnd_FolderLocked ")) {
		t.Errorf("%v\n%s", err, out)
	}
}
