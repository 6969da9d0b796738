package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the scripts run the program itself, as a process of its own,
// race detector and all.
func TestMain(m *testing.M) {
	syscall.Umask(0o022) // the scripts make the files that the server inspects
	testscript.Main(m, map[string]func(){"sallyport": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			port, err := freePort()
			env.Setenv("PORT", port)
			env.Setenv("URL", "https://localhost:"+port)
			env.Values["servers"] = map[string]*exec.Cmd{}
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"expand":   expand,
			"serve":    serve,
			"signal":   sendSignal,
			"exited":   exited,
			"request":  request,
			"waitfile": waitFile,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

func freePort() (string, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

// expand puts the script's environment into files: expand FILE...
func expand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

const patience = 20 * time.Second // for what takes milliseconds on an idle machine

// eventually asks until the answer is yes.
func eventually(ts *testscript.TestScript, what string, ask func() bool) {
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ask() {
		select {
		case <-deadline:
			ts.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// serve starts the server and waits until it answers: serve NAME ARG... Its
// log goes to NAME.log.
func serve(ts *testscript.TestScript, _ bool, args []string) {
	name := args[0]
	log, err := os.Create(ts.MkAbs(name + ".log"))
	ts.Check(err)
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(context.Background(), "sallyport", append([]string{"serve"}, args[1:]...)...)
	if path, err := lookPath(ts, "sallyport"); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"), "CREDENTIALS_DIRECTORY="+ts.Getenv("CREDENTIALS_DIRECTORY"), "SECRET="+ts.Getenv("SECRET"))
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	servers(ts)[name] = cmd
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b, err := os.ReadFile(ts.MkAbs(name + ".log")); err == nil {
			ts.Logf("log of %s:\n%s", name, b)
		}
	})
	eventually(ts, "the server to answer", func() bool {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", "localhost:"+ts.Getenv("PORT"))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func servers(ts *testscript.TestScript) map[string]*exec.Cmd {
	m, _ := ts.Value("servers").(map[string]*exec.Cmd)
	return m
}

func lookPath(ts *testscript.TestScript, name string) (string, error) {
	for dir := range strings.SplitSeq(ts.Getenv("PATH"), string(os.PathListSeparator)) {
		if info, err := os.Stat(dir + "/" + name); err == nil && info.Mode()&0o111 != 0 {
			return dir + "/" + name, nil
		}
	}
	return "", exec.ErrNotFound
}

// sendSignal signals a server: signal NAME TERM
func sendSignal(ts *testscript.TestScript, _ bool, args []string) {
	sig := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "HUP": syscall.SIGHUP}[args[1]]
	ts.Check(servers(ts)[args[0]].Process.Signal(sig))
}

// exited waits for the end of a server and checks its exit code: exited NAME CODE
func exited(ts *testscript.TestScript, _ bool, args []string) {
	cmd := servers(ts)[args[0]]
	_ = cmd.Wait() // its exit code is what counts
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s exited with %s, want %s", args[0], got, args[1])
	}
}

// waitFile waits until a file is there: waitfile FILE [TEXT]
func waitFile(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, args[0], func() bool {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		return err == nil && (len(args) == 1 || bytes.Contains(b, []byte(args[1])))
	})
}

type headers []string

func (h *headers) String() string     { return strings.Join(*h, "\n") }
func (h *headers) Set(s string) error { *h = append(*h, s); return nil }

// request sends one request over TLS and prints the answer, status first:
//
//	request [-h 'Name: value']... [-headers FILE] [-cert NAME] [-d TEXT | -data FILE] [-http1] [-as STATUS] METHOD PATH
//
// It fails unless the answer has the status of -as, or with "!" unless there is
// no answer at all.
func request(ts *testscript.TestScript, neg bool, args []string) {
	fs := flag.NewFlagSet("request", flag.ContinueOnError)
	var add headers
	fs.Var(&add, "h", "")
	file := fs.String("headers", "", "")
	cert := fs.String("cert", "", "")
	text := fs.String("d", "", "")
	data := fs.String("data", "", "")
	http1 := fs.Bool("http1", false, "")
	as := fs.Int("as", 200, "")
	ts.Check(fs.Parse(args))
	body := []byte(*text)
	if *data != "" {
		body = []byte(ts.ReadFile(*data))
	}
	req, err := http.NewRequestWithContext(context.Background(), fs.Arg(0), ts.Getenv("URL")+fs.Arg(1), bytes.NewReader(body))
	ts.Check(err)
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	if *file != "" {
		add = append(add, strings.Split(strings.TrimSpace(ts.ReadFile(*file)), "\n")...)
	}
	seen := []string{}
	for _, h := range add {
		k, v, _ := strings.Cut(h, ":")
		if k = http.CanonicalHeaderKey(k); !slices.Contains(seen, k) {
			req.Header.Del(k)
			seen = append(seen, k)
		}
		req.Header.Add(k, strings.TrimSpace(v))
	}
	res, err := httpClient(ts, *cert, *http1).Do(req)
	if neg {
		if err == nil {
			_ = res.Body.Close()
			ts.Fatalf("answered %s", res.Status)
		}
		return
	}
	ts.Check(err)
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	ts.Check(err)
	var out bytes.Buffer
	_, _ = fmt.Fprintln(&out, res.Proto, res.Status)
	_ = res.Header.Write(&out)
	_, _ = fmt.Fprintf(&out, "\n%s\n", b)
	_, _ = ts.Stdout().Write(out.Bytes())
	if res.StatusCode != *as {
		ts.Fatalf("status %d, want %d:\n%s", res.StatusCode, *as, out.Bytes())
	}
}

func httpClient(ts *testscript.TestScript, cert string, http1 bool) *http.Client {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ts.ReadFile("certs/ca.pem"))) {
		ts.Fatalf("certs/ca.pem holds no certificate")
	}
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(ts.MkAbs(cert+".pem"), ts.MkAbs(cert+".key"))
		ts.Check(err)
		conf.Certificates = []tls.Certificate{pair}
	}
	t := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: !http1, DisableKeepAlives: true}
	return &http.Client{Transport: t, Timeout: patience}
}
