package e2e_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const logHooks = `hooks:
  fails: {callers: [load], command: [/bin/false]}
  works: {callers: [load], command: [/bin/true]}
`

// endRun delivers to a hook, and returns when its run has ended.
func (in *installation) endRun(hook, body string) {
	in.t.Helper()
	if a := in.deliver(hook, body); a.code != http.StatusOK {
		in.t.Fatalf("%s: %d %s", hook, a.code, a.body)
	}
	in.waitUntil("all runs to end", func() bool {
		return in.sendRequest(in.t.Context(), http.MethodGet, "/runs?state=queued&state=running", "").runs() == 0
	})
}

// TestLog_Journal: under the journal of systemd, each line of the server and of the supervisor has a priority, so that
// journalctl -p warning shows a failed run. Commands do not get the variable of the journal.
func TestLog_Journal(t *testing.T) {
	t.Parallel()
	in := install(t, "sallyport", logHooks+"  env: {callers: [load], command: [DIR/env.sh]}\n")
	in.write("env.sh", "#!/bin/sh\nenv\n", 0o700)
	in.prepare = func(cmd *exec.Cmd) {
		info, err := in.log.Stat()
		mustSucceed(t, err)
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			t.Fatal("no stat")
		}
		cmd.Env = append(os.Environ(), fmt.Sprintf("JOURNAL_STREAM=%d:%d", stat.Dev, stat.Ino))
	}
	in.start(true)
	in.endRun("works", "1")
	in.endRun("fails", "2")
	run := regexp.MustCompile(`"id":"([^"]+)"`).FindSubmatch(in.deliver("env", "3").body)
	output := func() string {
		return string(in.sendRequest(t.Context(), http.MethodGet, "/runs/"+string(run[1])+"/output", "").body)
	}
	in.waitUntil("the output", func() bool { return strings.Contains(output(), "SALLYPORT_RUN=") })
	if strings.Contains(output(), "JOURNAL_STREAM") {
		t.Errorf("a command got %s", output())
	}
	in.endServer()
	log := string(in.read("log"))
	for line := range strings.Lines(log) {
		if !regexp.MustCompile(`^<[3-7]>\{"time"`).MatchString(line) {
			t.Errorf("no priority: %s", line)
		}
	}
	for _, want := range []string{
		`(?m)^<6>.*"msg":"hook served","hook":"fails","path":"/hooks/fails","callers":"load"`,
		`(?m)^<6>.*"msg":"run ended".*"hook":"works".*"state":"succeeded"`,
		`(?m)^<4>.*"level":"WARN","msg":"run ended".*"hook":"fails".*"state":"failed"`,
		`(?m)^<6>.*"msg":"supervisor ready"`,
	} {
		if !regexp.MustCompile(want).MatchString(log) {
			t.Errorf("no line matches %s in\n%s", want, log)
		}
	}
}

// TestLog_Settings: probes and scrapes that succeed are logged at the debug level only, and a reload changes level and
// format of both processes.
func TestLog_Settings(t *testing.T) {
	t.Parallel()
	in := install(t, "sallyport", logHooks+"metrics: {callers: [load]}\n")
	in.start(true)
	probe := func(as int, paths ...string) {
		t.Helper()
		for _, path := range paths {
			if a := in.sendRequest(t.Context(), http.MethodGet, path, ""); a.code != as {
				t.Errorf("%s: %d %s", path, a.code, a.body)
			}
		}
	}
	probe(http.StatusOK, "/healthz", "/readyz", "/metrics", "/runs")
	in.waitUntil("the line of a request", func() bool { return strings.Contains(string(in.read("log")), `"path":"/runs"`) })
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if strings.Contains(string(in.read("log")), `"path":"`+path) {
			t.Errorf("%s is logged", path)
		}
	}
	reload := func(log string) {
		t.Helper()
		in.write("sallyport.yaml", strings.ReplaceAll(installed+logHooks+"metrics: {callers: [load]}\nlog: "+log+"\n", "DIR", in.dir), 0o600)
		mustSucceed(t, in.server.Process.Signal(syscall.SIGHUP))
	}
	reload("{level: debug, format: text}")
	in.waitUntil("a line of text", func() bool { return strings.Contains(string(in.read("log")), "msg=reloaded") })
	probe(http.StatusOK, "/metrics")
	in.waitUntil("the line of a scrape", func() bool {
		return regexp.MustCompile(`level=DEBUG msg=request .*path=/metrics status=200`).Match(in.read("log"))
	})
	reload("{level: error}")
	in.waitUntil("the reload", func() bool {
		before := len(in.read("log"))
		probe(http.StatusOK, "/readyz")
		return len(in.read("log")) == before
	})
	in.endRun("fails", "1")
	in.endServer()
	if strings.Contains(string(in.read("log")), "run ended") {
		t.Error("a line is written below its level")
	}
}

// TestLog_Terminal: on a terminal, a line is short, without any setting.
func TestLog_Terminal(t *testing.T) {
	t.Parallel()
	in := install(t, "sallyport", logHooks)
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	mustSucceed(t, err)
	mustSucceed(t, unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	mustSucceed(t, err)
	screen, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	mustSucceed(t, err)
	in.prepare = func(cmd *exec.Cmd) { cmd.Stdout, cmd.Stderr = screen, screen }
	in.start(false)
	mustSucceed(t, screen.Close())
	lines := make(chan string, 1000)
	go readTerminal(control, lines)
	in.awaitLine(lines, `^\d\d:\d\d:\d\d INFO  hook served  fails  path=/hooks/fails callers=load$`)
	url := in.awaitLine(lines, `^\d\d:\d\d:\d\d INFO  serving  address=(https://\S+)$`)[1]
	in.url.Store(&url)
	in.endRun("fails", "1")
	in.awaitLine(lines, `^\d\d:\d\d:\d\d INFO  POST /hooks/fails 200 \d+m?s  fails by load  run [0-9a-f]{8}-[0-9a-f]{4}  key=1  \[[A-Z2-7]{8}\]$`)
	in.awaitLine(lines, `^\d\d:\d\d:\d\d WARN  run ended after \d+m?s  fails by load  run [0-9a-f]{8}-[0-9a-f]{4}  state=failed .*exit_code=1$`)
	in.endServer()
}

// readTerminal sends the lines that a terminal shows. It ends when no process has the terminal open.
func readTerminal(control io.Reader, lines chan<- string) {
	defer close(lines)
	for scanner := bufio.NewScanner(control); scanner.Scan(); {
		lines <- strings.TrimSuffix(scanner.Text(), "\r")
	}
}

// awaitLine returns the parts of the next line that matches.
func (in *installation) awaitLine(lines <-chan string, want string) []string {
	in.t.Helper()
	var seen []string
	for end := time.After(patience); ; {
		select {
		case line, more := <-lines:
			if found := regexp.MustCompile(want).FindStringSubmatch(line); found != nil {
				return found
			}
			if seen = append(seen, line); more {
				continue
			}
		case <-end:
		}
		in.t.Fatalf("no line matches %s in\n%s", want, strings.Join(seen, "\n"))
	}
}
