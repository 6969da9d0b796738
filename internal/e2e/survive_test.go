package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sallyport/internal/app"
	"sallyport/internal/logging"
	"sallyport/internal/testenv"
	"sallyport/runner/supervisor"
)

// unlocked is the program with a supervisor that ignores locks, which shows why they are needed.
func unlocked() {
	if os.Args[1] != "supervise" {
		sallyport()
		return
	}
	log, out := logging.New(os.Stderr, os.LookupEnv)
	defer out.Close()
	s := app.Supervision(os.Args[3], os.Args[5], "", log, out)
	s.DangerouslyUnlocked = true
	if err := supervisor.Run(s); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
	}
}

// supervisorReady matches the log line in which a supervisor reports its pid.
func supervisorReady() *regexp.Regexp {
	return regexp.MustCompile(`"msg":"supervisor ready","pid":([0-9]+)`)
}

// endStrays sends SIGTERM to the supervisors and servers that outlive a script. It finds them by the script's folder.
func endStrays(dir string) {
	processes, _ := filepath.Glob("/proc/[0-9]*") // none on systems without /proc
	for _, p := range processes {
		line, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		pid, err := strconv.Atoi(filepath.Base(p))
		if err == nil && bytes.Contains(line, []byte("/sallyport\x00s")) && bytes.Contains(line, []byte(dir+"/")) {
			_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
}

// shoot signals the last supervisor in a log, or kills it: shoot LOG [TERM]
func shoot(ts *testscript.TestScript, _ bool, args []string) {
	found := supervisorReady().FindAllStringSubmatch(ts.ReadFile(args[0]), -1)
	if found == nil {
		ts.Fatalf("%s does not report a supervisor", args[0])
	}
	pid, err := strconv.Atoi(found[len(found)-1][1])
	ts.Check(err)
	sig := signalNamed(append(args, "KILL")[1])
	ts.Check(syscall.Kill(pid, sig))
	if sig == syscall.SIGSTOP {
		eventually(ts, "the supervisor has stopped", func() bool { return testenv.HasStopped(pid) })
	}
}

// smuggler passes the lock of a run out of its process tree, as a command does that passes its descriptors to a daemon.
// "smuggler keep SOCKET FILE" is the daemon, and runs until FILE exists; "smuggler send SOCKET" is the command.
func smuggler() {
	ctx := context.Background()
	if os.Args[1] == "send" {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", os.Args[2])
		if err == nil {
			_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte{0}, syscall.UnixRights(lockFD), nil)
		}
		if err == nil {
			_, err = conn.Read([]byte{0}) // the daemon has received it
		}
		if !errors.Is(err, io.EOF) {
			_, _ = fmt.Fprintln(os.Stderr, err)
		}
		return
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", os.Args[2])
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _, _, _, _ = conn.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), make([]byte, 64)) // the message has arrived
			_ = conn.Close()
		}
	}()
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		if _, err := os.Stat(os.Args[3]); err == nil {
			return
		}
	}
}

const lockFD = 3 // of each command

// steady sends requests one after the other, each on a new connection, until it is stopped. It fails unless all answers
// have the status:
//
//	steady start STATUS METHOD PATH HEADER...
//	steady stop
func steady(ts *testscript.TestScript, _ bool, args []string) {
	flows, _ := ts.Value("steady").(*[]func() (int, error))
	if args[0] == "stop" {
		for _, stop := range *flows {
			n, err := stop()
			ts.Check(err)
			if n == 0 {
				ts.Fatalf("no request was sent")
			}
			ts.Logf("%d requests, all answered", n)
		}
		*flows = nil
		return
	}
	f := &requestFlags{add: args[4:], tls: new(string), cert: new(string), keep: new(string), resume: new(string), http1: new(bool)}
	c := f.client(ts)
	address := ts.Getenv("URL") + args[3]
	ctx, cancel := context.WithCancel(context.Background())
	var flow sync.WaitGroup
	var sent int
	var failed error
	flow.Go(func() {
		for ctx.Err() == nil && failed == nil {
			sent++
			failed = ask(context.WithoutCancel(ctx), c, args[1], args[2], address, args[4:])
		}
	})
	*flows = append(*flows, func() (int, error) {
		cancel()
		flow.Wait()
		return sent, failed
	})
	ts.Defer(cancel)
}

type unexpected string

func (e unexpected) Error() string { return "answered " + string(e) }

// ask sends a request whose answer must have one of the statuses, as 200,503.
func ask(ctx context.Context, c *http.Client, statuses, method, address string, header []string) error {
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return err
	}
	for _, field := range header {
		k, v, _ := strings.Cut(field, ":")
		req.Header.Set(k, strings.TrimSpace(v))
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err == nil && !strings.Contains(statuses, strconv.Itoa(res.StatusCode)) {
		err = unexpected(res.Status + ": " + string(text))
	}
	return err
}
