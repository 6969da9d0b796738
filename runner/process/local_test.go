package process_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
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

	"github.com/google/uuid"

	"sallyport/internal/diag"
	"sallyport/runner"
	"sallyport/runner/process"
)

// patience is how long a test waits for what must happen; none asserts it.
const patience = time.Minute

// subject is what starts commands, and the folder where it keeps their runs.
type subject struct {
	commands
	dir string
}

type commands interface {
	runner.Processes
	Output(run string) (*process.Output, error)
}

// bench has a Local of the test's own process.
type bench struct {
	subject
	*process.Local
	hook *runner.Hook
}

// newBench compiles the hook "job" and makes a Local that knows it.
func newBench(t testing.TB, spec runner.HookSpec) *bench {
	t.Helper()
	return newTalkingBench(t, spec, t.Output())
}

// newTalkingBench is newBench with a log of its own.
func newTalkingBench(t testing.TB, spec runner.HookSpec, log io.Writer) *bench {
	t.Helper()
	spec.Callers = []runner.Grant{{Caller: "tester"}}
	if spec.Grace == 0 {
		spec.Grace = patience
	}
	if spec.Timeout == 0 {
		spec.Timeout = patience
	}
	var p diag.List
	hooks := runner.Compile(map[string]*runner.HookSpec{"job": &spec}, []string{"tester"}, &p)
	if p.Bad() {
		t.Fatalf("the hook of the test does not compile: %v", p.All())
	}
	b := &bench{subject: subject{dir: filepath.Join(t.TempDir(), "runs")}, hook: hooks["job"]}
	find := func(name string) (*runner.Hook, bool) { return b.hook, name == "job" }
	var err error
	if b.Local, err = process.NewLocal(b.dir, find, slog.New(slog.NewTextHandler(log, nil))); err != nil {
		t.Fatal(err)
	}
	b.commands = b.Local
	return b
}

// shell is a command that runs a script; its arguments follow.
func shell(t testing.TB, script string, args ...string) []string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(name, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	return append([]string{"/bin/sh", name}, args...)
}

func order() runner.Order {
	return runner.Order{Run: uuid.Must(uuid.NewV7()).String(), Hook: "job", Caller: "tester", Created: time.Now()}
}

// start starts a run and makes sure that none is left when the test ends.
func (b *subject) start(t testing.TB, o runner.Order) string {
	t.Helper()
	if err := b.Start(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(o.Run, runner.Cancelled, 0); err != nil {
			t.Error(err)
		}
		b.end(t, o.Run)
	})
	return o.Run
}

func (b *subject) end(t testing.TB, run string) runner.End {
	t.Helper()
	ends, err := b.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case e, ok := <-ends:
		if !ok {
			t.Fatal("the channel was closed without an end")
		}
		if _, more := <-ends; more {
			t.Fatal("a second end came")
		}
		return e
	case <-time.After(patience):
		t.Fatal("the run does not end")
	}
	return runner.End{}
}

func (b *subject) run(t testing.TB, o runner.Order) runner.End {
	t.Helper()
	return b.end(t, b.start(t, o))
}

func (b *subject) output(t testing.TB, run string) string {
	t.Helper()
	o, err := b.Output(run)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	var all bytes.Buffer
	p := make([]byte, 4<<10)
	for off := int64(0); ; {
		at, n, err := o.Next(p, off)
		if errors.Is(err, io.EOF) {
			return all.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if at != off {
			t.Fatalf("bytes %d to %d are missing", off, at)
		}
		all.Write(p[:n])
		off = at + int64(n)
	}
}

// status reads what the folder says, as another process would.
func (b *subject) status(t testing.TB, run string) (s process.Status) {
	t.Helper()
	f, err := os.OpenInRoot(b.dir, filepath.Join(run, "status"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatalf("half a status: %q", text)
	}
	return s
}

// blockStatus keeps the status of a run from being replaced.
func (b *subject) blockStatus(t testing.TB, run string) (unblock func()) {
	t.Helper()
	blocker := filepath.Join(b.dir, run, "status.new")
	eventually(t, "the way is blocked", func() bool { return os.MkdirAll(filepath.Join(blocker, "full"), 0o700) == nil })
	return func() {
		if err := os.RemoveAll(blocker); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits for what another process does.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func (b *subject) says(t testing.TB, run, text string) {
	t.Helper()
	eventually(t, "the command says "+text, func() bool { return strings.Contains(b.output(t, run), text) })
}

func exited(t testing.TB, e runner.End, code int) {
	t.Helper()
	if e.ExitCode == nil || *e.ExitCode != code || e.Signal != "" || e.Reason != "" || e.Error != "" || e.Ended.IsZero() {
		t.Errorf("got %+v, want exit code %d and nothing else", e, code)
	}
}

func TestExitCodeIsTheCommandsOwn(t *testing.T) {
	b := newBench(t, runner.HookSpec{
		Command: shell(t, `exit $1`, "{code}"),
		Params:  map[string]runner.ParamSpec{"code": {Type: "int", From: runner.From{"query", "code"}}},
	})
	for code, value := range map[int]string{0: "0", 1: "1", 3: "3", 255: "255"} {
		o := order()
		o.Values = runner.Values{"code": value}
		exited(t, b.run(t, o), code)
	}
}

func TestSignalIsToldByName(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: shell(t, `kill -USR1 $$`)})
	e := b.run(t, order())
	if e.ExitCode != nil || e.Signal != "SIGUSR1" || e.Reason != "" {
		t.Errorf("got %+v", e)
	}
}

func TestTimeoutEndsTheRun(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: shell(t, `sleep 600`), Timeout: 50 * time.Millisecond})
	e := b.run(t, order())
	if e.Reason != runner.TimedOut || e.ExitCode != nil || e.Signal != "SIGTERM" {
		t.Errorf("got %+v", e)
	}
}

func TestStopKillsWhatIgnoresTerm(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: shell(t, `trap "" TERM; echo ready; while :; do sleep 1; done`), Grace: 50 * time.Millisecond})
	run := b.start(t, order())
	b.says(t, run, "ready")
	if err := b.Stop(run, runner.Cancelled, -1); err != nil {
		t.Fatal(err)
	}
	e := b.end(t, run)
	if e.Reason != runner.Cancelled || e.Signal != "SIGKILL" {
		t.Errorf("got %+v", e)
	}
}

func TestStopGivesTheCommandItsGrace(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: shell(t, `trap "echo tidy; exit 7" TERM; echo ready; while :; do sleep 0.01; done`)})
	run := b.start(t, order())
	b.says(t, run, "ready")
	if err := b.Stop(run, runner.Cancelled, -1); err != nil {
		t.Fatal(err)
	}
	e := b.end(t, run)
	if e.Reason != runner.Cancelled || e.ExitCode == nil || *e.ExitCode != 7 {
		t.Errorf("got %+v", e)
	}
	if got := b.output(t, run); strings.Count(got, "tidy") != 1 {
		t.Errorf("the command was told to end not once: %q", got)
	}
}

func TestSecondStopShortensTheGraceAndKeepsTheReason(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: shell(t, `trap "" TERM; echo ready; while :; do sleep 1; done`)})
	run := b.start(t, order())
	b.says(t, run, "ready")
	for _, s := range []struct {
		why   runner.State
		grace time.Duration
	}{{runner.TimedOut, time.Hour}, {runner.Cancelled, 0}, {runner.Cancelled, time.Hour}} {
		if err := b.Stop(run, s.why, s.grace); err != nil {
			t.Fatal(err)
		}
	}
	if e := b.end(t, run); e.Reason != runner.TimedOut || e.Signal != "SIGKILL" {
		t.Errorf("got %+v", e)
	}
	if err := b.Stop(run, runner.Cancelled, 0); err != nil {
		t.Errorf("stopping what has ended: %v", err)
	}
	if e := b.end(t, run); e.Reason != runner.TimedOut {
		t.Errorf("the reason changed afterwards: %+v", e)
	}
}

func TestArgumentsArriveVerbatimBecauseThereIsNoShell(t *testing.T) {
	b := newBench(t, runner.HookSpec{
		Command: shell(t, `for a; do printf '<%s>' "$a"; done`, "{v}", "--x={v}", "; id", "*"),
		Params:  map[string]runner.ParamSpec{"v": {Match: `(?s).*`, From: runner.From{"query", "v"}}},
	})
	for _, v := range []string{"$(reboot)", "a\nb", "`id`; id | id > /x & $HOME", "\"'\\", "", " ", "ü\u2028", strings.Repeat("x", 60<<10)} {
		o := order()
		o.Values = runner.Values{"v": v}
		run := b.start(t, o)
		exited(t, b.end(t, run), 0)
		if want := "<" + v + "><--x=" + v + "><; id><*>"; b.output(t, run) != want {
			t.Errorf("%.40q arrived as %.80q", v, b.output(t, run))
		}
	}
}

func TestValuesThatAreNotAllowedStartNothing(t *testing.T) {
	b := newBench(t, runner.HookSpec{
		Command: []string{"/bin/echo", "{v}"},
		Params:  map[string]runner.ParamSpec{"v": {Enum: []string{"a", "b"}, From: runner.From{"query", "v"}}},
	})
	for _, v := range []runner.Values{{"v": "c"}, {"v": ""}, {}} {
		o := order()
		o.Values = v
		if err := b.Start(o); err == nil {
			t.Errorf("%v was started", v)
		}
		if _, err := os.Stat(filepath.Join(b.dir, o.Run)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v left a folder: %v", v, err)
		}
	}
}

func TestEnvironmentIsTheListAndNothingElse(t *testing.T) {
	t.Setenv("SALLYPORT_SECRET", "hunter2")
	b := newBench(t, runner.HookSpec{
		Command: []string{"/usr/bin/printenv"},
		Env:     map[string]string{"PATH": "/opt/bin", "SHELL": "/bin/false", "REGION": "{region}", "QUIET": ""},
		Params:  map[string]runner.ParamSpec{"region": {Match: ".*", From: runner.From{"query", "region"}}},
	})
	o := order()
	o.Values = runner.Values{"region": "eu $HOME"}
	o.Trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	run := b.start(t, o)
	exited(t, b.end(t, run), 0)
	got := strings.Split(strings.TrimSuffix(b.output(t, run), "\n"), "\n")
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

func TestWorkingFolderIsTheRunsOwnOrTheHooks(t *testing.T) {
	script := shell(t, `pwd -P`)
	b := newBench(t, runner.HookSpec{Command: script})
	run := b.start(t, order())
	exited(t, b.end(t, run), 0)
	if want := filepath.Join(b.dir, run, "work") + "\n"; b.output(t, run) != want {
		t.Errorf("worked in %s, want %s", b.output(t, run), want)
	}
	dir := t.TempDir()
	b = newBench(t, runner.HookSpec{Command: script, Dir: dir})
	run = b.start(t, order())
	exited(t, b.end(t, run), 0)
	if b.output(t, run) != dir+"\n" {
		t.Errorf("worked in %s, want %s", b.output(t, run), dir)
	}
}

func TestStdinIsEmptyUnlessTheHookAsksForTheBody(t *testing.T) {
	for _, source := range []string{"", "body"} {
		b := newBench(t, runner.HookSpec{Command: []string{"/bin/cat"}, Stdin: source})
		o := order()
		o.Stdin = bytes.Repeat([]byte("line\x00\n"), 50_000)
		run := b.start(t, o)
		exited(t, b.end(t, run), 0)
		want := ""
		if source == "body" {
			want = string(o.Stdin)
		}
		if got := b.output(t, run); got != want {
			t.Errorf("stdin %q: got %d bytes, want %d", source, len(got), len(want))
		}
		if _, err := os.Stat(filepath.Join(b.dir, run, "stdin")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the body still lies in the folder: %v", err)
		}
	}
}

func TestMoreOnStderrThanAPipeHoldsDoesNotBlock(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: shell(t, `head -c 1000000 /dev/zero >&2; echo out`)})
	run := b.start(t, order())
	e := b.end(t, run)
	exited(t, e, 0)
	if e.Output != (runner.Output{Bytes: 1000004}) {
		t.Errorf("output %+v", e.Output)
	}
	if got := b.output(t, run); !strings.HasSuffix(got, "\x00out\n") {
		t.Errorf("the two streams are not in one order: …%q", got[len(got)-10:])
	}
}

func TestCommandThatCannotStartSaysWhy(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, runner.HookSpec{Command: []string{program}})
	o := order()
	fails := func(want string) {
		t.Helper()
		if err := b.Start(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if known, err := b.Known(o.Run); known || err != nil {
			t.Errorf("known: %v, %v", known, err)
		}
		if err := b.Stop(o.Run, runner.Cancelled, 0); !errors.Is(err, process.ErrUnknown) {
			t.Errorf("stopping what never started: %v", err)
		}
		if list, _ := b.List(); len(list) > 0 {
			t.Errorf("%v are under way", list)
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
	exited(t, b.run(t, o), 3) // the same run
	if err := b.Start(o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the same run again: %v", err)
	}
}

// A supervisor may have been killed between the two removals of a start that failed.
func TestStart_MarkLeftBehind(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: []string{"/bin/true"}})
	o := order()
	mark := filepath.Join(b.dir, "active", o.Run)
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
	if err := b.Start(o); !errors.Is(err, fs.ErrExist) { // something of the run is alive
		t.Errorf("got %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	exited(t, b.run(t, o), 0)
}

// Somebody who cleans up removes what belongs to no run, or all.
func TestStart_FoldersRemoved(t *testing.T) {
	command, release := gated(t, "exit 4")
	p := newPost(t, map[string]runner.HookSpec{"job": {Command: []string{"/bin/true"}}, "held": {Command: command}})
	held := p.begin(t, p.order("held", nil))
	p.says(t, held, "ready")
	for _, name := range []string{"active", "ready"} {
		eventually(t, "the folder is gone", func() bool { return os.RemoveAll(filepath.Join(p.dir, name)) == nil })
	}
	exited(t, p.subject.end(t, p.begin(t, p.order("job", nil))), 0)
	p.killSupervisor(t) // the next one finds what runs by its mark
	if list, err := p.List(); err != nil || !slices.Equal(list, []string{held}) {
		t.Errorf("under way are %v, %v", list, err)
	}
	release()
	interrupted(t, p.subject.end(t, held))

	eventually(t, "the folder is gone", func() bool { return os.RemoveAll(p.dir) == nil })
	o := p.order("job", nil)
	if err := p.Start(o); !errors.Is(err, runner.ErrNotNow) {
		t.Errorf("got %v", err)
	}
	eventually(t, "it starts", func() bool { return p.Start(o) == nil })
	exited(t, p.subject.end(t, o.Run), 0)
}

func TestRunThatIsTooLongForTheSystemSaysSo(t *testing.T) {
	command := []string{"/bin/true"}
	for range 60 {
		command = append(command, "{v}", "{v}")
	}
	b := newBench(t, runner.HookSpec{
		Command: command,
		Params:  map[string]runner.ParamSpec{"v": {Match: ".*", From: runner.From{"query", "v"}}},
	})
	o := order()
	o.Values = runner.Values{"v": strings.Repeat("x", 60<<10)}
	if err := b.Start(o); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("got %v", err)
	}
}

func TestRunIDMustBeAPlainUUID(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: []string{"/bin/true"}})
	id := order().Run
	for _, run := range []string{"", ".", "..", "../x", "/etc", "a/b", "x", strings.ToUpper(id), "{" + id + "}", "urn:uuid:" + id, id + "/", id + "\x00"} {
		o := order()
		o.Run = run
		_, followed := b.Follow(run)
		_, read := b.Output(run)
		for what, err := range map[string]error{
			"Start": b.Start(o), "Stop": b.Stop(run, runner.Cancelled, 0), "Follow": followed, "Output": read, "Remove": process.Remove(b.dir, run),
		} {
			if err == nil {
				t.Errorf("%s took %q", what, run)
			}
		}
	}
}

func TestUnknownRunIsAnError(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: []string{"/bin/true"}})
	run := order().Run
	_, followed := b.Follow(run)
	_, read := b.Output(run)
	for what, err := range map[string]error{"Stop": b.Stop(run, runner.Cancelled, 0), "Follow": followed, "Output": read} {
		if !errors.Is(err, process.ErrUnknown) {
			t.Errorf("%s: %v", what, err)
		}
	}
	o := order()
	o.Hook = "other"
	if err := b.Start(o); err == nil {
		t.Error("a hook that is not there was started")
	}
}

func TestNoIDRunsTwice(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: []string{"/bin/true"}})
	o := order()
	b.run(t, o)
	if err := b.Start(o); !errors.Is(err, os.ErrExist) {
		t.Errorf("got %v", err)
	}
}

func TestFolderIsForNobodyElse(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: shell(t, `echo secret`)})
	run := b.start(t, order())
	b.end(t, run)
	for name, want := range map[string]os.FileMode{"": 0o700, run: 0o700, run + "/output": 0o600, run + "/status": 0o600, run + "/lock": 0o600} {
		info, err := os.Stat(filepath.Join(b.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %04o, want %04o", name, got, want)
		}
	}
	if err := os.Chmod(b.dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := process.NewLocal(b.dir, nil, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a folder that others may enter was taken")
	}
}

func TestStatusIsTrueAtEveryMoment(t *testing.T) {
	release := filepath.Join(t.TempDir(), "release")
	b := newBench(t, runner.HookSpec{Command: shell(t, `echo ready; until [ -e "$1" ]; do sleep 0.01; done; exit 5`, release)})
	run := b.start(t, order())
	b.says(t, run, "ready")
	eventually(t, "the status knows the process", func() bool { return b.status(t, run).PID != 0 })
	s := b.status(t, run)
	if s.Run != run || s.Hook != "job" || s.Caller != "tester" || s.PID == 0 || s.Created.IsZero() || s.Started.IsZero() || !s.Ended.IsZero() {
		t.Errorf("while it runs: %+v", s)
	}
	if list, err := b.List(); err != nil || !slices.Equal(list, []string{run}) {
		t.Errorf("under way: %v, %v", list, err)
	}
	if err := process.Remove(b.dir, run); err != nil || b.status(t, run).Run != run {
		t.Errorf("a run under way was removed: %v", err)
	}
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the status tells the end", func() bool { return !b.status(t, run).Ended.IsZero() })
	if s = b.status(t, run); *s.ExitCode != 5 || s.Output.Bytes != 6 {
		t.Errorf("at the end: %+v", s)
	}
	exited(t, b.end(t, run), 5)
	if left, _ := filepath.Glob(filepath.Join(b.dir, run, "*")); len(left) != 3 {
		t.Errorf("the folder holds %v, want lock, output and status", left)
	}
}

func TestEveryFollowerGetsTheEnd(t *testing.T) {
	b := newBench(t, runner.HookSpec{Command: shell(t, `sleep 0.1; exit 2`)})
	run := b.start(t, order())
	var all []<-chan runner.End
	for range 5 {
		ends, err := b.Follow(run)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ends)
	}
	for _, ends := range all {
		exited(t, <-ends, 2)
	}
	if err := process.Remove(b.dir, run); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Follow(run); !errors.Is(err, process.ErrUnknown) {
		t.Errorf("a removed run: %v", err)
	}
	o := order()
	o.Run = run
	b.start(t, o) // for the clean-up, which asks for its end
}

func TestManyRunsAtOnceKeepTheirOwnEnds(t *testing.T) {
	b := newBench(t, runner.HookSpec{
		Command: shell(t, `echo $1; exit $1`, "{code}"),
		Params:  map[string]runner.ParamSpec{"code": {Type: "int", From: runner.From{"query", "code"}}},
	})
	codes := map[string]int{}
	for i := range 60 {
		o := order()
		o.Values = runner.Values{"code": strconv.Itoa(i)}
		codes[b.start(t, o)] = i
	}
	for run, code := range codes {
		exited(t, b.end(t, run), code)
		if got := b.output(t, run); got != strconv.Itoa(code)+"\n" {
			t.Errorf("got %q of the run that ends with %d", got, code)
		}
	}
}

// A command may lock the folder of its run. Root is not held up by that, so the test runs once more as another user.
func TestEnd_FolderLocked(t *testing.T) {
	if os.Geteuid() != 0 {
		b := newBench(t, runner.HookSpec{Command: shell(t, "chmod 0 ..; exit 3")})
		run := b.start(t, order())
		exited(t, b.end(t, run), 3)
		eventually(t, "the end is on disk", func() bool {
			_, err := os.Lstat(filepath.Join(b.dir, "active", run))
			return errors.Is(err, fs.ErrNotExist)
		})
		if s := b.status(t, run); s.Ended.IsZero() {
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
