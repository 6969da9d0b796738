package e2e

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
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"sallyport/internal/app"
	"sallyport/internal/spiffetest"
	"sallyport/internal/testenv"
)

// TestMain lets the scripts run the program as a process, with the race detector.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "witness" { // which reports its environment as it is
		testenv.EndProcessesAtOnce()
	}
	if err := flag.Set("test.parallel", "4"); err != nil { // most of them wait for processes; -parallel still sets it
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	syscall.Umask(0o022) // the server checks the modes of the scripts' files
	testscript.Main(inRepository{m}, map[string]func(){"sallyport": sallyport, "witness": witness, "unlocked": unlocked, "smuggler": smuggler, "spill": spill})
}

// inRepository runs the tests in the top folder of the repository. The programs run where the scripts start them.
type inRepository struct{ m *testing.M }

// Run implements testscript.TestingM.
func (r inRepository) Run() int {
	if _, err := os.Stat("go.mod"); err != nil { // a test that starts this program again is there already
		if err := os.Chdir("../.."); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	var err error
	if Builds, err = os.MkdirTemp("", "builds"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(Builds) }()
	return r.m.Run()
}

// Builds is a folder for programs that are built once for several tests. It exists while the tests run.
var Builds string //nolint:gochecknoglobals // TestMain sets it before the tests begin

// sallyport runs the program, as main.go does.
func sallyport() {
	os.Exit(app.Main("", os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// TestScripts runs the scripts in testdata.
func TestScripts(t *testing.T) {
	t.Parallel()
	programs := map[string]string{}
	for _, name := range []string{"witness", "smuggler"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		programs[strings.ToUpper(name)] = path
	}
	testscript.Run(t, testscript.Params{
		Dir: "internal/e2e/testdata",
		Setup: func(env *testscript.Env) error {
			for name, path := range programs {
				env.Setenv(name, path)
			}
			env.Setenv("GORACE", os.Getenv("GORACE")) // with what TestMain sets, so that no program begins twice
			env.Values["servers"] = map[string]*running{}
			env.Values["socket"] = new(*os.File)
			env.Values["held"] = &[]net.Conn{}
			env.Values["domains"] = map[string]*spiffetest.Domain{}
			env.Values["agent"] = new(*spiffetest.Agent)
			env.Values["kept"] = map[string]*http.Client{}
			env.Values["steady"] = &[]func() (int, error){}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"activate": activate,
			"audited":  audited,
			"environ":  environ,
			"exited":   exited,
			"exits":    exits,
			"expand":   expand,
			"fill":     fill,
			"gone":     gone,
			"hold":     hold,
			"logged":   logged,
			"pki":      pki,
			"port":     port,
			"raw":      raw,
			"release":  release,
			"request":  request,
			"serve":    serve,
			"setenv":   setenv,
			"sign":     sign,
			"shoot":    shoot,
			"signal":   sendSignal,
			"steady":   steady,
			"svid":     svid,
			"token":    token,
			"vector":   vector,
			"waitfile": waitFile,
			"waitlog":  waitLog,
			"workload": workload,
		},
		Condition: func(text string) (bool, error) { // [lacks:PROGRAM]
			if name, ok := strings.CutPrefix(text, "lacks:"); ok {
				return testenv.Lacks(name)
			}
			return false, fmt.Errorf("%q is not a condition", text)
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// setenv sets a variable from a file that contains NAME=VALUE: setenv FILE
func setenv(ts *testscript.TestScript, _ bool, args []string) {
	name, value, _ := strings.Cut(strings.TrimSpace(ts.ReadFile(args[0])), "=")
	ts.Setenv(name, value)
}

// expand replaces the variables of the script's environment in files: expand FILE...
func expand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

const patience = 30 * time.Second // a limit for steps that take milliseconds on an idle machine

// eventually calls ask until it returns true.
func eventually(ts *testscript.TestScript, what string, ask func() bool) {
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ask() {
		select {
		case <-deadline:
			ts.Fatalf("timed out waiting for %s", what)
		case <-tick.C:
		}
	}
}

// serve starts the server, waits until it serves, and sets $URL to its address: serve NAME ARG... Its log goes to
// NAME.log.
func serve(ts *testscript.TestScript, _ bool, args []string) {
	path, err := lookPath(ts, "sallyport")
	ts.Check(err)
	start(ts, args[0], exec.CommandContext(context.Background(), path, append([]string{"serve"}, args[1:]...)...))
}

// activate starts the server as a service manager does, with an open socket. All servers of a script get the same
// socket, which stays open when they end: activate NAME ARG...
func activate(ts *testscript.TestScript, _ bool, args []string) {
	path, err := lookPath(ts, "sallyport")
	ts.Check(err)
	socket := ts.Value("socket").(**os.File)
	if *socket == nil {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
		ts.Check(err)
		*socket, err = l.(*net.TCPListener).File()
		ts.Check(errors.Join(err, l.Close()))
		ts.Defer(func() { _ = (*socket).Close() })
	}
	// The variable LISTEN_PID must name the server, so the shell sets it to its own pid and executes the server.
	cmd := exec.CommandContext(context.Background(), "/bin/sh", append([]string{"-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" serve "$@"`, path}, args[1:]...)...)
	cmd.ExtraFiles = []*os.File{*socket}
	start(ts, args[0], cmd)
}

func start(ts *testscript.TestScript, name string, cmd *exec.Cmd) {
	file := ts.MkAbs(name + ".log")
	log, err := os.Create(file)
	ts.Check(err)
	defer func() { _ = log.Close() }()
	cmd.Dir = ts.MkAbs(".")
	for i, arg := range cmd.Args {
		if strings.HasSuffix(arg, ".yaml") {
			cmd.Args[i] = ts.MkAbs(arg) // endStrays looks for this path
		}
	}
	cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"), "SECRET="+ts.Getenv("SECRET"), "CREDENTIALS_DIRECTORY="+ts.Getenv("CREDENTIALS_DIRECTORY"))
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	srv := &running{Cmd: cmd, ended: make(chan struct{})}
	servers(ts)[name] = srv
	go func() {
		_ = cmd.Wait() // the test reads its exit code
		close(srv.ended)
	}()
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		<-srv.ended
		if b, err := os.ReadFile(file); err == nil {
			ts.Logf("log of %s:\n%s", name, b)
		}
		endStrays(cmd.Dir)
	})
	address := regexp.MustCompile(`"msg":"serving","address":"(https://[^"]+)"`)
	eventually(ts, "the server to serve", func() bool {
		b, err := os.ReadFile(file)
		ts.Check(err)
		found := address.FindSubmatch(b)
		if found != nil {
			ts.Setenv("URL", string(found[1]))
		}
		return found != nil
	})
}

// running is a server. The channel is closed when it has ended.
type running struct {
	*exec.Cmd

	ended chan struct{}
}

func servers(ts *testscript.TestScript) map[string]*running {
	return ts.Value("servers").(map[string]*running)
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
	ts.Check(servers(ts)[args[0]].Process.Signal(signalNamed(args[1])))
}

func signalNamed(name string) syscall.Signal { return unix.SignalNum("SIG" + name) }

// exited waits for the end of a server and checks its exit code: exited NAME CODE
func exited(ts *testscript.TestScript, _ bool, args []string) {
	srv := servers(ts)[args[0]]
	select {
	case <-srv.ended:
	case <-time.After(patience):
		ts.Fatalf("%s does not end", args[0])
	}
	if got := strconv.Itoa(srv.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s exited with %s, want %s", args[0], got, args[1])
	}
}

// waitFile waits until a file exists and contains the text: waitfile FILE [TEXT]
func waitFile(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, args[0], func() bool {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		return err == nil && (len(args) == 1 || bytes.Contains(b, []byte(args[1])))
	})
}

// waitLog waits until a file contains a text N times: waitlog FILE N TEXT
func waitLog(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	eventually(ts, args[2]+" in "+args[0], func() bool { return strings.Count(ts.ReadFile(args[0]), args[2]) >= n })
}

type headers []string

func (h *headers) String() string     { return strings.Join(*h, "\n") }
func (h *headers) Set(s string) error { *h = append(*h, s); return nil }

// requestFlags are the flags of the command request.
type requestFlags struct {
	*flag.FlagSet

	add                                               headers
	file, cert, text, data, flip, twice, tls, out, at *string
	keep, resume, has                                 *string
	chunked, http1, until                             *bool
	as                                                *int
}

func newRequestFlags() *requestFlags {
	f := &requestFlags{FlagSet: flag.NewFlagSet("request [FLAG]... METHOD PATH", flag.ContinueOnError)}
	f.Var(&f.add, "h", "a header, 'Name: value'; instead of those that -headers has, or again")
	f.file = f.String("headers", "", "a file of headers")
	f.cert = f.String("cert", "", "show the certificate NAME.pem with NAME.key")
	f.keep = f.String("keep", "", "send on the one connection of this name")
	f.resume = f.String("resume", "", "resume the TLS session of this name on a new connection")
	f.text = f.String("d", "", "the body")
	f.data = f.String("data", "", "a file with the body")
	f.flip = f.String("flip", "", "change one character near the end of this header")
	f.twice = f.String("twice", "", "send this header twice")
	f.tls = f.String("tls", "", "speak this version of TLS, 1.1 or 1.2")
	f.out = f.String("out", "", "keep the answer in a file, without what differs each time: Date and the request's id")
	f.at = f.String("location", "", "keep its Location in this variable, and the run's id in that with _ID")
	f.chunked = f.Bool("chunked", false, "do not declare the body's length")
	f.http1 = f.Bool("http1", false, "speak HTTP/1.1")
	f.until = f.Bool("until", false, "send again until the status is that of -as, and the body matches -has")
	f.has = f.String("has", "", "what the body matches, with -until")
	f.as = f.Int("as", 200, "the status")
	return f
}

// request sends one request over TLS and prints the answer, status line first. It fails unless the answer has the
// status of -as. With "!", it fails if there is an answer, and prints the error otherwise.
func request(ts *testscript.TestScript, neg bool, args []string) {
	f := newRequestFlags()
	ts.Check(f.Parse(args))
	if *f.until {
		eventually(ts, fmt.Sprint("status ", *f.as), func() bool {
			res, err := f.send(ts)
			return err == nil && res.code == *f.as && regexp.MustCompile(*f.has).Match(res.body)
		})
		return
	}
	res, err := f.send(ts)
	if neg {
		if err == nil {
			ts.Fatalf("answered %s", res.first)
		}
		_, _ = fmt.Fprintln(ts.Stdout(), err)
		return
	}
	ts.Check(err)
	var out bytes.Buffer
	_, _ = fmt.Fprintln(&out, res.first)
	_ = res.header.Write(&out)
	_, _ = fmt.Fprintf(&out, "\n%s\n", res.body)
	_, _ = ts.Stdout().Write(out.Bytes())
	if res.code != *f.as {
		ts.Fatalf("status %d, want %d:\n%s", res.code, *f.as, out.Bytes())
	}
	if *f.at != "" {
		ts.Setenv(*f.at, res.header.Get("Location"))
		ts.Setenv(*f.at+"_ID", strings.TrimPrefix(res.header.Get("Location"), "/runs/"))
	}
	if *f.out != "" {
		text := strings.ReplaceAll(out.String(), res.header.Get("X-Request-Id"), "ID")
		text = strings.ReplaceAll(text, res.header.Get("Date"), "DATE")
		ts.Check(os.WriteFile(ts.MkAbs(*f.out), []byte(text), 0o600))
	}
}

// reply is an answer whose body was read.
type reply struct {
	first  string // the status line
	code   int
	header http.Header
	body   []byte
}

func (f *requestFlags) send(ts *testscript.TestScript) (*reply, error) {
	body := []byte(*f.text)
	if *f.data != "" {
		body = []byte(ts.ReadFile(*f.data))
	}
	var reader io.Reader = bytes.NewReader(body)
	if *f.chunked {
		reader = struct{ io.Reader }{reader} // hides the length from net/http
	}
	req, err := http.NewRequestWithContext(context.Background(), f.Arg(0), ts.Getenv("URL")+f.Arg(1), reader)
	ts.Check(err)
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	f.header(ts, req.Header)
	_, known := ts.Value("kept").(map[string]*http.Client)[f.clientName()]
	reused := false
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused },
	}))
	res, err := f.client(ts).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if known && (*f.keep != "" && !reused || *f.resume != "" && !res.TLS.DidResume) {
		ts.Fatalf("the request used a new connection with a new TLS session")
	}
	b, err := io.ReadAll(res.Body)
	return &reply{res.Proto + " " + res.Status, res.StatusCode, res.Header, b}, err
}

func (f *requestFlags) header(ts *testscript.TestScript, h http.Header) {
	if *f.file != "" {
		for line := range strings.Lines(ts.ReadFile(*f.file)) {
			k, v, _ := strings.Cut(line, ":")
			h.Set(k, strings.TrimSpace(v))
		}
	}
	seen := []string{}
	for _, field := range f.add {
		k, v, _ := strings.Cut(field, ":")
		if k = http.CanonicalHeaderKey(k); !slices.Contains(seen, k) {
			h.Del(k)
			seen = append(seen, k)
		}
		h.Add(k, strings.TrimSpace(v))
	}
	if *f.flip != "" {
		h.Set(*f.flip, flipSignature(h.Get(*f.flip)))
	}
	if *f.twice != "" {
		h.Add(*f.twice, h.Get(*f.twice))
	}
}

// flipSignature replaces a character near the end, where every sender has its signature, by another one that is valid in hex and
// base64.
func flipSignature(v string) string {
	i := len(v) - 10
	if v[i] == '0' {
		return v[:i] + "1" + v[i+1:]
	}
	return v[:i] + "0" + v[i+1:]
}

// clientName returns the name of the client of -keep or -resume, or "".
func (f *requestFlags) clientName() string {
	switch {
	case *f.keep != "":
		return "keep " + *f.keep
	case *f.resume != "":
		return "resume " + *f.resume
	}
	return ""
}

func (f *requestFlags) client(ts *testscript.TestScript) *http.Client {
	kept := ts.Value("kept").(map[string]*http.Client)
	if c, ok := kept[f.clientName()]; ok {
		return c
	}
	conf := clientTLS(ts)
	if *f.tls != "" {
		conf.MinVersion = map[string]uint16{"1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12}[*f.tls]
		conf.MaxVersion = conf.MinVersion
	}
	if *f.cert != "" {
		pair, err := tls.LoadX509KeyPair(ts.MkAbs(*f.cert+".pem"), ts.MkAbs(*f.cert+".key"))
		ts.Check(err)
		// The client shows it even if the server does not list its CA.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	if *f.resume != "" {
		conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	t := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: !*f.http1, DisableKeepAlives: *f.keep == ""}
	c := &http.Client{Transport: t, Timeout: patience}
	if f.clientName() != "" {
		kept[f.clientName()] = c
		ts.Defer(t.CloseIdleConnections)
	}
	return c
}

// clientTLS trusts certs/ca.pem, which signed the server's certificate.
func clientTLS(ts *testscript.TestScript) *tls.Config {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ts.ReadFile("certs/ca.pem"))) {
		ts.Fatalf("certs/ca.pem does not contain a certificate")
	}
	return &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
}

// dial opens a connection to the server, without TLS.
func dial(ts *testscript.TestScript) net.Conn {
	address := strings.TrimPrefix(ts.Getenv("URL"), "https://")
	c, err := (&net.Dialer{Timeout: patience}).DialContext(context.Background(), "tcp", address)
	ts.Check(err)
	ts.Check(c.SetDeadline(time.Now().Add(patience)))
	return c
}

// raw sends a file with CRLF line ends, and prints what comes back until the server closes the connection: raw [-plain]
// FILE. It does not close the connection first, so it fails if the server keeps waiting.
func raw(ts *testscript.TestScript, _ bool, args []string) {
	c := dial(ts)
	if args[0] == "-plain" {
		args = args[1:]
	} else {
		c = tls.Client(c, clientTLS(ts))
	}
	defer func() { _ = c.Close() }()
	_, err := io.WriteString(c, strings.ReplaceAll(ts.ReadFile(args[0]), "\n", "\r\n"))
	ts.Check(err)
	b, err := io.ReadAll(c)
	_, _ = ts.Stdout().Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		ts.Fatalf("the server did not close the connection; it sent %q", b)
	}
}

// hold opens N idle connections and keeps them: hold N
func hold(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	held := ts.Value("held").(*[]net.Conn)
	for range n {
		c := tls.Client(dial(ts), clientTLS(ts))
		ts.Check(c.HandshakeContext(context.Background()))
		*held = append(*held, c)
	}
	ts.Defer(func() { release(ts, false, nil) })
}

// release closes the connections of hold.
func release(ts *testscript.TestScript, _ bool, _ []string) {
	held := ts.Value("held").(*[]net.Conn)
	for _, c := range *held {
		_ = c.Close()
	}
	*held = nil
}
