package supervisor_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/config"
	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process"
	"sallyport/runner/process/output"
	"sallyport/runner/process/processtest"
	"sallyport/runner/process/proctree"
	"sallyport/runner/process/rundir"
	"sallyport/runner/supervisor"
)

// TestMain lets this program run as the supervisor, or as a server that can be killed, and run the tests.
func TestMain(m *testing.M) {
	testenv.EndProcessesAtOnce()
	as := map[string]func([]string) error{"supervise": supervise, "serve": serve}
	if len(os.Args) < 2 || as[os.Args[1]] == nil {
		m.Run()
		return
	}
	if err := as[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// supervise runs the supervisor, with the arguments of the program's own command: --state DIR --config FILE. The
// words in a file "seams" in DIR switch parts off.
func supervise(args []string) error {
	state, file := args[1], args[3]
	out, err := os.OpenFile(filepath.Join(state, "supervisor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	words, _ := os.ReadFile(filepath.Join(state, "seams"))
	s := supervisor.Settings{
		State: state, Version: os.Args[0], Log: slog.New(slog.NewTextHandler(out, nil)), Env: process.LoginEnv(os.LookupEnv),
		Load: func() (map[string]*hook.Hook, error) {
			hooks, _, found := config.LoadHooks(file)
			if hooks == nil {
				return nil, fmt.Errorf("%v", found)
			}
			return hooks, nil
		},
		DangerouslyUnlocked: strings.Contains(string(words), "unlocked"),
	}
	if strings.Contains(string(words), "hasty") {
		s.Idle = 40 * time.Millisecond
	}
	s.Prepare(func(p *proctree.Parent) {
		if strings.Contains(string(words), "no-cgroups") {
			p.DisableCgroups()
		}
	})
	if strings.Contains(string(words), "other-user") {
		s.ForUser(os.Geteuid() + 1)
	}
	if err := supervisor.Run(s); err != nil {
		_, _ = fmt.Fprintln(out, err)
		return err
	}
	return nil
}

// serve reads orders from its input, one per line, and sends them until it is killed.
func serve(args []string) error {
	c, err := supervisor.Connect(context.Background(), supervisor.Options{
		State: args[0], Config: args[1], Exe: os.Args[0], Version: os.Args[0], Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var o runner.Order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		if err := c.Start(o); err != nil {
			return err
		}
		fmt.Println("started")
	}
	return lines.Err()
}

// post is a state folder, a file of hooks, and a client of the supervisor.
type post struct {
	processtest.Subject
	*supervisor.Client
	options supervisor.Options
	hooks   map[string]*hook.Hook
}

func newPost(t testing.TB, specs map[string]hook.Spec, seams ...string) *post {
	t.Helper()
	dir := t.TempDir()
	p := &post{options: supervisor.Options{
		State: filepath.Join(dir, "state"), Config: filepath.Join(dir, "sallyport.yaml"), Exe: os.Args[0], Version: os.Args[0],
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
	p.Dir = filepath.Join(p.options.State, "runs")
	if err := os.Mkdir(p.options.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.options.State, "seams"), []byte(strings.Join(seams, " ")), 0o600); err != nil {
		t.Fatal(err)
	}
	p.hooks = p.write(t, specs)
	p.connect(t)
	t.Cleanup(func() { p.end(t) })
	return p
}

// write writes the file of hooks and returns its hooks.
func (p *post) write(t testing.TB, specs map[string]hook.Spec) map[string]*hook.Hook {
	t.Helper()
	text := "callers: {tester: {token: {keys: [{id: a, file: nowhere}]}}}\nhooks:\n"
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		s := specs[name]
		command, _ := json.Marshal(s.Command)
		text += fmt.Sprintf("  %s:\n    callers: [tester]\n    command: %s\n    timeout: %s\n    grace: %s\n", name, command, orElse(s.Timeout), orElse(s.Grace))
		if s.Flight.Key != "" {
			text += fmt.Sprintf("    flight: %q\n", s.Flight)
		}
		if s.Umask != nil {
			text += fmt.Sprintf("    umask: %q\n", s.Umask)
		}
		if s.Stdin != "" {
			text += "    stdin: body\n"
		}
		if s.Output != (hook.OutputSpec{}) {
			text += fmt.Sprintf("    output: {head: %d, tail: %d}\n", s.Output.Head, s.Output.Tail)
		}
		if len(s.Params) > 0 {
			text += "    params:\n"
			for name, param := range s.Params {
				text += fmt.Sprintf("      %s: {from: query.%s, match: %q}\n", name, name, param.Match)
			}
		}
	}
	if err := os.WriteFile(p.options.Config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	hooks, _, found := config.LoadHooks(p.options.Config)
	if hooks == nil {
		t.Fatalf("the hooks of the test: %v\n%s", found, text)
	}
	return hooks
}

func orElse(d time.Duration) time.Duration {
	if d == 0 {
		return processtest.Patience
	}
	return d
}

// connect replaces the client by a new one, as after a restart of the server.
func (p *post) connect(t testing.TB) {
	t.Helper()
	if p.Client != nil {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c, err := supervisor.Connect(t.Context(), p.options)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(p.options.State, "supervisor.log"))
		t.Fatalf("%v\n%s", err, log)
	}
	p.Client, p.Commands = c, c
}

// end stops all runs and ends the supervisor.
func (p *post) end(t testing.TB) {
	t.Helper()
	defer func() {
		log, _ := os.ReadFile(filepath.Join(p.options.State, "supervisor.log"))
		t.Logf("the supervisor said:\n%s", log)
	}()
	c, err := supervisor.Connect(context.WithoutCancel(t.Context()), p.options)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	runs, err := c.List()
	if err != nil {
		t.Error(err)
	}
	for _, run := range runs {
		if err := c.Stop(run, runner.Cancelled, 0); err != nil {
			t.Error(err)
		}
	}
	pid := c.PID()
	processtest.Eventually(t, "the supervisor ends", func() bool { return c.Quit() == nil || !exists(pid) })
	processtest.Eventually(t, "the supervisor is gone", func() bool { return !exists(pid) })
}

func exists(pid int) bool { return syscall.Kill(pid, 0) == nil }

// order returns an order for a hook of the post.
func (p *post) order(hook string, values hook.Values) runner.Order {
	o := processtest.NewOrder()
	o.Hook, o.Digest, o.Values = hook, p.hooks[hook].Digest(), values
	return o
}

func (p *post) begin(t testing.TB, o runner.Order) string {
	t.Helper()
	if err := p.Start(o); err != nil {
		t.Fatal(err)
	}
	return o.Run
}

// killSupervisor kills the supervisor, which leaves all runs without their parent.
func (p *post) killSupervisor(t testing.TB) {
	t.Helper()
	pid := p.PID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	processtest.Eventually(t, "the supervisor is dead", func() bool { return !exists(pid) })
}

func job(command []string) map[string]hook.Spec {
	return map[string]hook.Spec{"job": {Command: command}}
}

// TestServer_CommandsOutlive checks that commands outlive the server, and that the next server learns all of their
// ends.
func TestServer_CommandsOutlive(t *testing.T) {
	command, release := processtest.GatedScript(t, `echo more; exit 7`)
	p := newPost(t, job(command))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	orders, out := pipe(t), pipe(t)
	server, err := os.StartProcess(os.Args[0], []string{os.Args[0], "serve", p.options.State, p.options.Config}, &os.ProcAttr{
		Files: []*os.File{orders[0], out[1], os.Stderr},
	})
	if err != nil {
		t.Fatal(err)
	}
	o := p.order("job", nil)
	if err := json.NewEncoder(orders[1]).Encode(o); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out[0]).ReadString('\n'); line != "started\n" {
		t.Fatalf("the server says %q, %v", line, err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Wait(); err != nil {
		t.Fatal(err)
	}
	p.Client = nil
	p.connect(t)
	if list, err := p.List(); err != nil || !slices.Equal(list, []string{o.Run}) {
		t.Fatalf("the next server finds %v, %v", list, err)
	}
	p.AwaitText(t, o.Run, "ready")
	release()
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, o.Run), 7)
	if got := p.ReadOutput(t, o.Run); !strings.HasSuffix(got, "\nmore\n") {
		t.Errorf("output %q", got)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, o.Run), 7) // and again
}

func pipe(t testing.TB) (ends [2]*os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return [2]*os.File{r, w}
}

// TestFlight_KilledSupervisor checks that a run of a killed supervisor keeps its flight busy until its processes have
// ended.
func TestFlight_KilledSupervisor(t *testing.T) {
	for _, seam := range []string{"", "no-cgroups"} {
		t.Run("seam="+seam, func(t *testing.T) {
			command, release := processtest.GatedScript(t, `echo more`)
			p := newPost(t, job(command), seam)
			run := p.begin(t, p.order("job", nil))
			ends, err := p.Follow(run)
			if err != nil {
				t.Fatal(err)
			}
			p.AwaitText(t, run, "ready")
			p.killSupervisor(t)
			if err := p.Start(p.order("job", nil)); !errors.Is(err, runner.ErrFlight) {
				t.Errorf("a second run of the flight: %v", err)
			}
			if list, err := p.List(); err != nil || !slices.Equal(list, []string{run}) {
				t.Errorf("in progress: %v, %v", list, err)
			}
			select {
			case e := <-ends:
				t.Fatalf("it ended while its command was running: %+v", e)
			default:
			}
			release()
			processtest.CheckInterrupted(t, <-ends)
			if got := p.ReadOutput(t, run); !strings.HasSuffix(got, "\nmore\n") {
				t.Errorf("output %q", got)
			}
			next := p.begin(t, p.order("job", nil))
			processtest.CheckExit(t, p.Subject.AwaitEnd(t, next), 0)
			processtest.CheckInterrupted(t, p.Subject.AwaitEnd(t, run))
		})
	}
}

// TestFlight_Changed checks that a run keeps those runs from starting that have its flight under the template in force,
// whatever the template was when it started. The next supervisor reads from its folder which ones these are. If the
// folder has been removed, or lacks a value that the template needs, no run of the hook starts.
func TestFlight_Changed(t *testing.T) {
	two := map[string]hook.ParamSpec{"x": {Match: ".*"}, "y": {Match: ".*"}}
	for what, c := range map[string]struct {
		before, after string
		wide          bool // another value has to wait, too
		lose          bool // the folder of the run
	}{
		"other text":             {before: "{x}", after: "region-{x}"},
		"narrower":               {before: "", after: "{x}"},
		"wider":                  {before: "{x}", after: "", wide: true},
		"other value":            {before: "{y}", after: "{x}"},
		"new value":              {before: "{x}", after: "{z}", wide: true},
		"folder lost":            {before: "{x}", after: "region-{x}", wide: true, lose: true},
		"unchanged":              {before: "{x}", after: "{x}"},
		"unchanged, wide":        {before: "", after: "", wide: true},
		"two to one":             {before: "{x}-{y}", after: "{x}"},
		"folder lost, no change": {before: "{x}", after: "{x}", wide: true, lose: true},
	} {
		t.Run(what, func(t *testing.T) {
			command, release := processtest.GatedScript(t, `:`)
			spec := hook.Spec{Command: append(command, "--x={x}", "--y={y}"), Flight: hook.FlightSpec{Key: c.before}, Params: two}
			p := newPost(t, map[string]hook.Spec{"job": spec})
			first := p.begin(t, p.order("job", hook.Values{"x": "eu", "y": "blue"}))
			p.AwaitText(t, first, "ready")
			spec.Flight.Key = c.after
			if c.after == "{z}" {
				spec.Params = map[string]hook.ParamSpec{"x": two["x"], "y": two["y"], "z": two["x"]}
			}
			old := hook.Digest(p.hooks)
			p.hooks = p.write(t, map[string]hook.Spec{"job": spec})
			if _, err := p.Reload(old); err != nil {
				t.Fatal(err)
			}
			same := p.order("job", hook.Values{"x": "eu", "y": "red", "z": "a"})
			other := p.order("job", hook.Values{"x": "us", "y": "blue", "z": "b"})
			if err := p.Start(same); !errors.Is(err, runner.ErrFlight) {
				t.Errorf("the same flight: %v", err)
			}
			if c.lose {
				if err := os.RemoveAll(filepath.Join(p.Dir, first)); err != nil {
					t.Fatal(err)
				}
			}
			p.killSupervisor(t)
			if err := p.Start(same); !errors.Is(err, runner.ErrFlight) {
				t.Errorf("the same flight, under the next supervisor: %v", err)
			}
			if err := p.Start(other); c.wide != errors.Is(err, runner.ErrFlight) || !c.wide && err != nil {
				t.Errorf("another flight: %v", err)
			}
			release()
			processtest.Eventually(t, "the flight is free", func() bool {
				err := p.Start(same)
				if err != nil && !errors.Is(err, runner.ErrFlight) {
					t.Fatal(err)
				}
				return err == nil
			})
			processtest.CheckExit(t, p.Subject.AwaitEnd(t, same.Run), 0)
		})
	}
}

// TestFlight_OverlapsWithoutLocks shows that only the lock keeps the flight, which the test above relies
// on.
func TestFlight_OverlapsWithoutLocks(t *testing.T) {
	command, release := processtest.GatedScript(t, `: > "$1.$SALLYPORT_RUN"`)
	p := newPost(t, job(command), "unlocked")
	run := p.begin(t, p.order("job", nil))
	p.AwaitText(t, run, "ready")
	p.killSupervisor(t)
	other := p.begin(t, p.order("job", nil))
	p.AwaitText(t, other, "ready")
	over := func() bool { _, err := os.Stat(command[2] + "." + run); return err == nil }
	if over() {
		t.Error("the first was over, so this shows nothing")
	}
	release()
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, other), 0)
	processtest.Eventually(t, "the first is over", over) // the status of the run does not record this end
}

// TestConnect_WrongSecret checks that a client without the secret is refused.
func TestConnect_WrongSecret(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	right, err := os.ReadFile(filepath.Join(p.options.State, "supervisor.secret"))
	if err != nil {
		t.Fatal(err)
	}
	wrong := slices.Clone(right)
	wrong[31] ^= 1
	for name, secret := range map[string][]byte{"wrong": wrong, "short": right[:31], "none": nil, "long": append(slices.Clone(right), 0)} {
		if got := greet(t, p, map[string]any{"secret": secret, "client": "x"}); got != "" {
			t.Errorf("%s: the supervisor answers %q", name, got)
		}
	}
	if got := greet(t, p, strings.Repeat("x", 100_000)); got != "" {
		t.Errorf("endless: the supervisor answers %q", got)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 0) // continues to serve
	if got := greet(t, p, map[string]any{"secret": right, "client": "x"}); !strings.Contains(got, "pid") {
		t.Errorf("the right one is refused: %q", got)
	}
}

func greet(t testing.TB, p *post, hello any) string {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", filepath.Join(p.options.State, "supervisor.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = json.NewEncoder(conn).Encode(hello) // the supervisor may close the connection before the end
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return line
}

// TestConnect_OtherUsers checks that a client of another user is refused.
func TestConnect_OtherUsers(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	if err := p.Quit(); err != nil {
		t.Fatal(err)
	}
	seams := filepath.Join(p.options.State, "seams")
	if err := os.WriteFile(seams, []byte("other-user"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	if _, err := supervisor.Connect(ctx, p.options); err == nil {
		t.Error("another user was served")
	}
	log, _ := os.ReadFile(filepath.Join(p.options.State, "supervisor.log"))
	if !strings.Contains(string(log), "runs as user") {
		t.Errorf("it was refused for another reason:\n%s", log)
	}
	if err := os.WriteFile(seams, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	i := strings.LastIndex(string(log), "pid=")
	pid, _, _ := strings.Cut(string(log[i+len("pid="):]), " ")
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// TestStateFolder_OtherUsers checks that a state folder of another user is refused.
func TestStateFolder_OtherUsers(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	for name, want := range map[string]os.FileMode{"supervisor.sock": 0o600, "supervisor.secret": 0o600, "supervisor.lock": 0o600, "runs": 0o700} {
		info, err := os.Stat(filepath.Join(p.options.State, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
	o := p.options
	o.State = t.TempDir()
	if err := os.Chmod(o.State, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := supervisor.Connect(t.Context(), o); err == nil {
		t.Error("a folder that others may enter was taken")
	}
}

// TestConnect_ManyServers checks that servers that start at once start one supervisor.
func TestConnect_ManyServers(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	for range 3 {
		if err := p.Quit(); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		clients := make([]*supervisor.Client, 8)
		for i := range clients {
			all.Go(func() {
				var err error
				clients[i], err = supervisor.Connect(t.Context(), p.options)
				if err != nil && !errors.Is(err, supervisor.ErrSuperseded) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		served, pid := 0, 0
		for _, c := range clients {
			if c == nil {
				continue
			}
			if pid == 0 {
				pid = c.PID()
			}
			if c.PID() != pid {
				t.Errorf("supervisors %d and %d", c.PID(), pid)
			}
			switch _, err := c.List(); {
			case err == nil:
				served++
			case !errors.Is(err, supervisor.ErrSuperseded):
				t.Error(err)
			}
			_ = c.Close()
		}
		if served != 1 {
			t.Errorf("%d servers are served", served)
		}
		p.Client = nil
		p.connect(t)
	}
}

// TestOrder_HookOfFile checks that an order starts only a hook that the file has, as the server knows it.
func TestOrder_HookOfFile(t *testing.T) {
	before, release := processtest.GatedScript(t, "exit 1")
	defer release()
	p := newPost(t, job(before))
	refused := func(o runner.Order, want string) {
		t.Helper()
		if err := p.Start(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, err := p.Follow(o.Run); !errors.Is(err, runner.ErrUnknown) {
			t.Errorf("it is known: %v", err)
		}
	}
	o := p.order("job", nil)
	o.Digest = ""
	refused(o, "has changed in the file")
	o = p.order("job", nil)
	o.Hook = "other"
	refused(o, `no hook "other"`)
	o = p.order("job", nil)
	o.Caller = "stranger"
	refused(o, `does not allow the caller "stranger"`)

	old := p.order("job", nil)
	p.hooks = p.write(t, job(processtest.Script(t, "exit 2")))
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 2) // reads the file again
	refused(old, "has changed in the file")
	if err := os.WriteFile(p.options.Config, []byte("hooks: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 2) // the loaded hooks are still valid
	refused(old, "reading the hooks")
}

// TestHooks_InForce checks that the supervisor starts the hooks that the
// server uses. The server may fail to load hooks that the supervisor has read already, once or several times,
// whatever the file contains then.
func TestHooks_InForce(t *testing.T) {
	p := newPost(t, job(processtest.Script(t, "exit 1")))
	inForce, started := p.hooks, p.order("job", nil)
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 1) // by now the supervisor has read the file
	reload := func(hooks map[string]*hook.Hook) {
		t.Helper()
		if digest, err := p.Reload(hook.Digest(inForce)); err != nil || digest != hook.Digest(hooks) {
			t.Fatalf("read %s, %v; want %s", digest, err, hook.Digest(hooks))
		}
	}
	for code := 2; code < 5; code++ {
		p.hooks = p.write(t, job(processtest.Script(t, fmt.Sprintf("exit %d", code))))
		reload(p.hooks)
		reload(p.hooks) // and fail again
		o := started
		o.Run = processtest.NewOrder().Run
		processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, o)), 1)
		processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), code) // the server may use it now
	}
	inForce = p.hooks
	p.hooks = p.write(t, job(processtest.Script(t, "exit 5")))
	reload(p.hooks)
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, p.order("job", nil))), 5)
	started.Run = processtest.NewOrder().Run
	if err := p.Start(started); err == nil || !strings.Contains(err.Error(), "has changed in the file") {
		t.Errorf("what is in force no more is started: %v", err)
	}
}

// TestStdin_Whole checks that the whole body reaches the stdin of a command.
func TestStdin_Whole(t *testing.T) {
	p := newPost(t, map[string]hook.Spec{"job": {Command: []string{"/bin/cat"}, Stdin: "body"}})
	o := p.order("job", nil)
	o.Stdin = []byte(strings.Repeat("line\x00\n\xff", 200_000))
	run := p.begin(t, o)
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 0)
	if p.ReadOutput(t, run) != string(o.Stdin) {
		t.Error("stdin arrived otherwise")
	}
}

// TestStart_Errors checks that the server gets the errors of a start as the supervisor returned them.
func TestStart_Errors(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("\x7fELF"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := newPost(t, job([]string{program}))
	if err := p.Start(p.order("job", nil)); err == nil || !strings.Contains(err.Error(), "exec format error") {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	o := p.order("job", nil)
	if err := p.Start(o); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexit 6\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, p.begin(t, o)), 6)
	if err := p.Start(o); !errors.Is(err, os.ErrExist) {
		t.Errorf("the same id again: %v", err)
	}
	bad := p.order("job", nil)
	bad.Run = "../x"
	if err := p.Start(bad); !errors.Is(err, runner.ErrRefused) {
		t.Errorf("got %v", err)
	}
	if err := p.Stop(processtest.NewOrder().Run, runner.Cancelled, 0); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("stopping what is not there: %v", err)
	}
	if err := rundir.Remove(p.Dir, o.Run); err != nil {
		t.Error(err)
	}
	if _, err := p.Follow(o.Run); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("a removed run: %v", err)
	}
}

// witness is a file in which commands record "begin RUN" and "end RUN".
type witness string

func (w witness) command(t testing.TB) map[string]hook.Spec {
	t.Helper()
	return map[string]hook.Spec{"job": {
		Command: processtest.Script(t, `echo "begin $2 $SALLYPORT_RUN" >> "$1"; sleep 0.02; echo "end $2 $SALLYPORT_RUN" >> "$1"`, string(w), "{key}"),
		Flight:  hook.FlightSpec{Key: "{key}"}, Params: map[string]hook.ParamSpec{"key": {Match: "[0-9]+"}},
	}}
}

// read returns how often each run began, and how often two runs of a flight overlapped.
func (w witness) read(t testing.TB) (began map[string]int, overlaps int) {
	t.Helper()
	text, err := os.ReadFile(string(w))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	began = map[string]int{}
	inAir := map[string]int{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if f[0] == "end" {
			inAir[f[1]]--
			continue
		}
		began[f[2]]++
		if inAir[f[1]]++; inAir[f[1]] > 1 {
			overlaps++
		}
	}
	return began, overlaps
}

// TestChaos_NothingTwice checks that no run starts twice and no flight overlaps while servers and supervisors are
// killed.
func TestChaos_NothingTwice(t *testing.T) {
	for what, disturb := range map[string]func(*post){
		"connection": func(p *post) { p.Break() },
		"supervisor": func(p *post) { _ = syscall.Kill(p.PID(), syscall.SIGKILL) },
	} {
		t.Run(what, func(t *testing.T) {
			w := witness(filepath.Join(t.TempDir(), "witness"))
			p := newPost(t, w.command(t))
			over := make(chan struct{})
			var trouble sync.WaitGroup
			trouble.Go(func() {
				tick := time.NewTicker(40 * time.Millisecond)
				defer tick.Stop()
				for n := 0; n < 40; n++ {
					select {
					case <-tick.C:
						disturb(p)
					case <-over:
						return
					}
				}
			})
			var mu sync.Mutex
			states := map[string]runner.State{}
			var flights sync.WaitGroup
			for key := range 4 {
				flights.Go(func() {
					for range 25 {
						o := p.order("job", hook.Values{"key": strconv.Itoa(key)})
						if err := p.Start(o); err != nil {
							t.Error(err)
							return
						}
						e := p.Subject.AwaitEnd(t, o.Run)
						mu.Lock()
						states[o.Run] = e.State()
						mu.Unlock()
					}
				})
			}
			flights.Wait()
			close(over)
			trouble.Wait()
			began, overlaps := w.read(t)
			if overlaps > 0 {
				t.Errorf("%d overlaps", overlaps)
			}
			for run, n := range began {
				if n != 1 || states[run] == "" {
					t.Errorf("run %s began %d times and ended %q", run, n, states[run])
				}
			}
			lost := 0
			for run, s := range states {
				switch {
				case s == runner.Succeeded && began[run] != 1:
					t.Errorf("run %s is said to have succeeded and never began", run)
				case s != runner.Succeeded && (s != runner.Interrupted || what == "connection"):
					t.Errorf("run %s ended %s", run, s)
				case s == runner.Interrupted:
					lost++
				}
			}
			t.Logf("%d runs, %d interrupted", len(states), lost)
		})
	}
}

// TestTERM_EndsRunsFirst checks that a supervisor that gets TERM ends its runs before it ends.
func TestTERM_EndsRunsFirst(t *testing.T) {
	p := newPost(t, job(processtest.Script(t, `trap "echo tidy; exit 4" TERM; echo ready; while :; do sleep 0.01; done`)))
	run := p.begin(t, p.order("job", nil))
	ends, err := p.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	p.AwaitText(t, run, "ready")
	pid := p.PID()
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE} {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.List(); err != nil || p.PID() != pid {
		t.Errorf("it did not survive: %v", err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := <-ends; e.Reason != runner.Cancelled || e.ExitCode == nil || *e.ExitCode != 4 {
		t.Errorf("got %+v", e)
	}
	processtest.Eventually(t, "it is gone", func() bool { return !exists(pid) })
}

// TestQuit_RunInProgress checks that a supervisor does not end while a run is in progress.
func TestQuit_RunInProgress(t *testing.T) {
	command, release := processtest.GatedScript(t, "exit 0")
	p := newPost(t, job(command))
	run := p.begin(t, p.order("job", nil))
	if err := p.Quit(); err == nil {
		t.Error("it quits")
	}
	release()
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 0)
}

// TestSupervisor_IdleEnds checks that a supervisor without runs and servers ends.
func TestSupervisor_IdleEnds(t *testing.T) {
	command, release := processtest.GatedScript(t, "exit 6")
	p := newPost(t, job(command), "hasty")
	run := p.begin(t, p.order("job", nil))
	pid := p.PID()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p.Client = nil
	processtest.Eventually(t, "some time has passed", func() bool { // many times the idle time
		s := p.ReadStatus(t, run)
		return time.Since(s.Started) > 300*time.Millisecond
	})
	if !exists(pid) {
		t.Error("it ended while a run was in progress")
	}
	release()
	processtest.Eventually(t, "it is gone", func() bool { return !exists(pid) })
	p.connect(t)
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 6) // from the folder
}

// TestSupervisor_FolderGone checks that a supervisor without its state folder ends after its last run.
func TestSupervisor_FolderGone(t *testing.T) {
	command, release := processtest.GatedScript(t, "exit 6")
	p := newPost(t, job(command), "hasty")
	run := p.begin(t, p.order("job", nil))
	p.AwaitText(t, run, "ready")
	pid := p.PID()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p.Client = nil
	processtest.Eventually(t, "the folder is gone", func() bool { return os.RemoveAll(p.options.State) == nil })
	release()
	processtest.Eventually(t, "it is gone", func() bool { return !exists(pid) })
}

// TestEnd_WrittenLater checks that an end that cannot be written is reported, and written later.
func TestEnd_WrittenLater(t *testing.T) {
	command, release := processtest.GatedScript(t, "exit 8")
	p := newPost(t, job(command))
	run := p.begin(t, p.order("job", nil))
	p.AwaitText(t, run, "ready")
	unblock := p.BlockStatus(t, run)
	release()
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 8)
	if s := p.ReadStatus(t, run); !s.Ended.IsZero() {
		t.Fatalf("it was written, so the test shows nothing: %+v", s)
	}
	pid := p.PID()
	if err := p.Quit(); err != nil { // it leaves the end to the next one
		t.Error(err)
	}
	processtest.Eventually(t, "it is gone", func() bool { return !exists(pid) })
	processtest.CheckExit(t, p.Subject.AwaitEnd(t, run), 8)
	unblock()
	processtest.Eventually(t, "the end is on disk", func() bool { return !p.ReadStatus(t, run).Ended.IsZero() })
}

// TestOutput_ReadFromFiles checks that an output can be read without the supervisor.
func TestOutput_ReadFromFiles(t *testing.T) {
	const lines = 3_000_000
	p := newPost(t, map[string]hook.Spec{"job": {Command: processtest.CountLines(lines), Output: hook.OutputSpec{Head: 1 << 20, Tail: 1 << 20}}})
	run := p.begin(t, p.order("job", nil))
	kept := p.ReadAlong(t, run, 10_000) // live
	e := p.Subject.AwaitEnd(t, run)
	processtest.CheckExit(t, e, 0)
	if e.Output.Bytes != lines*processtest.LineBytes || e.Output.Dropped == 0 || kept == 0 {
		t.Errorf("%+v, of which %d were read", e.Output, kept)
	}
	o, err := output.Open(p.Dir, run)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	if size, dropped := o.State(); size != e.Output.Bytes || dropped.Bytes() != e.Output.Dropped {
		t.Errorf("the files have %d and %+v", size, dropped)
	}
	if _, err := output.Open(p.Dir, processtest.NewOrder().Run); !errors.Is(err, runner.ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := output.Open(p.Dir, "../x"); err == nil {
		t.Error("a path was taken for a run")
	}
}

// TestSupervisor_CannotStart checks that the server reports why its supervisor could not start.
func TestSupervisor_CannotStart(t *testing.T) {
	p := newPost(t, job([]string{"/bin/true"}))
	o := p.options
	o.State = filepath.Join(t.TempDir(), "state")
	o.Exe = "/bin/false"
	if _, err := supervisor.Connect(t.Context(), o); err == nil || !strings.Contains(err.Error(), "ended at once") {
		t.Errorf("got %v", err)
	}
	o.Exe = "/no/such/program"
	if _, err := supervisor.Connect(t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestSupervise_ByHand checks that the command supervise refuses to be started by hand. It does not close the
// descriptors that a server would have opened for it, because they belong to something else.
func TestSupervise_ByHand(t *testing.T) {
	dir := t.TempDir()
	isOpen := func(fd int) bool {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		return err == nil
	}
	const socket, lock = 3, 4
	before := []bool{isOpen(socket), isOpen(lock)}
	defer func() {
		for range 3 { // a descriptor that is not used any more is closed after a collection
			collected := make(chan struct{})
			runtime.AddCleanup(new([64]byte), func(c chan struct{}) { close(c) }, collected)
			runtime.GC()
			<-collected
		}
		if after := []bool{isOpen(socket), isOpen(lock)}; before[0] && !after[0] || before[1] && !after[1] {
			t.Errorf("open before: %v, and after: %v", before, after)
		}
	}()
	if err := supervisor.Run(supervisor.Settings{State: dir, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("it started without a server")
	}
	var _ io.Closer = (*supervisor.Client)(nil)
}

// TestReplace_SwappableProgram checks that the supervisor refuses a program in a folder that
// other users may write: they could replace the program.
func TestReplace_SwappableProgram(t *testing.T) {
	dir := t.TempDir()
	open, link := filepath.Join(dir, "open"), filepath.Join(dir, "link")
	exe := filepath.Join(open, "program")
	for _, err := range []error{
		os.Mkdir(open, 0o755), os.WriteFile(exe, nil, 0o755), os.Symlink(exe, link), supervisor.CheckImage(exe), supervisor.CheckImage(link), os.Chmod(open, 0o775),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{exe, link} {
		if err := supervisor.CheckImage(name); err == nil || !strings.Contains(err.Error(), "the folder "+open+" may be written") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for mode, word := range map[os.FileMode]string{0o775: "may be written", 0o644: "permission denied"} {
		if err := os.Chmod(exe, mode); err != nil {
			t.Fatal(err)
		}
		if err := supervisor.CheckImage(exe); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
}
