package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/rogpeppe/go-internal/testscript"

	"sallyport/internal/client"
	"sallyport/internal/spiffetest"
)

// witness is a command for hooks: witness FILE ARG... It writes its arguments to FILE.argv and its environment to
// FILE.env, each entry followed by a NUL, and its input to FILE.stdin.
func witness() {
	file := os.Args[1]
	list := func(entries []string) []byte { return []byte(strings.Join(append(entries, ""), "\x00")) }
	stdin, err := io.ReadAll(os.Stdin)
	err = errors.Join(
		err,
		os.WriteFile(file+".argv", list(os.Args[2:]), 0o600),
		os.WriteFile(file+".env", list(os.Environ()), 0o600),
		os.WriteFile(file+".stdin", stdin, 0o600),
	)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // it is a separate program
	}
}

func entries(ts *testscript.TestScript, file string) []string {
	list := strings.Split(ts.ReadFile(file), "\x00")
	return list[:len(list)-1]
}

// vector compares a file of a witness with a JSON list, byte by byte, and removes it: vector FILE JSON
func vector(ts *testscript.TestScript, _ bool, args []string) {
	var want []string
	ts.Check(json.Unmarshal([]byte(args[1]), &want))
	if got := entries(ts, args[0]); !slices.Equal(got, want) {
		ts.Fatalf("got  %q\nwant %q", got, want)
	}
	ts.Check(os.Remove(ts.MkAbs(args[0])))
}

// environ checks that a witness had exactly these variables: environ FILE NAME...
func environ(ts *testscript.TestScript, _ bool, args []string) {
	var names []string
	for _, entry := range entries(ts, args[0]) {
		name, _, _ := strings.Cut(entry, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	if want := slices.Sorted(slices.Values(args[1:])); !slices.Equal(names, want) {
		ts.Fatalf("got  %q\nwant %q", names, want)
	}
}

// exits runs a program and checks its exit code: exits CODE PROGRAM ARG...
func exits(ts *testscript.TestScript, _ bool, args []string) {
	code := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("%v exited with %d, want %s\n%s%s", args[1:], code, args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// fill creates a file with a repeated text: fill FILE TEXT TIMES
func fill(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Repeat(args[1], n)), 0o600))
}

// gone checks that the processes whose ids are in files have ended: gone FILE...
func gone(ts *testscript.TestScript, _ bool, args []string) {
	for _, file := range args {
		pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(file)))
		ts.Check(err)
		if syscall.Kill(pid, 0) != nil {
			continue
		}
		// A killed process may wait for process 1 to reap it.
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if !strings.Contains(string(stat), ") Z ") {
			ts.Fatalf("process %d of %s has not ended: %s", pid, file, stat)
		}
	}
}

// logged checks that a log contains the request id of the last answer: logged FILE
func logged(ts *testscript.TestScript, _ bool, args []string) {
	_, rest, ok := strings.Cut(ts.ReadFile("stdout"), "\nX-Request-Id: ")
	id, _, _ := strings.Cut(rest, "\r\n")
	if !ok || id == "" {
		ts.Fatalf("the answer has no request id")
	}
	eventually(ts, id+" in the log", func() bool { return strings.Contains(ts.ReadFile(args[0]), `"request":"`+id+`"`) })
}

// port sets a variable to a free port: port VARIABLE
func port(ts *testscript.TestScript, _ bool, args []string) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(errors.Join(err, l.Close()))
	ts.Setenv(args[0], port)
}

// audited checks that the audit log has one line with this decision for the request of the last answer, and its fields:
// audited DECISION FIELD=VALUE... The value * matches any value. The fields that every line has are not listed.
func audited(ts *testscript.TestScript, _ bool, args []string) {
	_, rest, _ := strings.Cut(ts.ReadFile("stdout"), "\nX-Request-Id: ")
	id, _, ok := strings.Cut(rest, "\r\n")
	if !ok {
		ts.Fatalf("the answer has no request id")
	}
	want := map[string]string{"decision": args[0], "request": id}
	for _, field := range args[1:] {
		name, value, _ := strings.Cut(field, "=")
		want[name] = value
	}
	var got map[string]string
	eventually(ts, args[0]+" in the audit", func() bool { got = auditLine(ts, args[0], id); return got != nil })
	for _, every := range []string{"seq", "time", "address", "prev", "hash"} {
		if got[every] == "" {
			ts.Fatalf("no %s in %v", every, got)
		}
		delete(got, every)
	}
	for name, value := range want {
		if value == "*" {
			want[name] = got[name]
		}
	}
	if !maps.Equal(got, want) {
		ts.Fatalf("got  %q\nwant %q", got, want)
	}
}

// auditLine returns the line about a request with this decision, or nil.
func auditLine(ts *testscript.TestScript, decision, request string) map[string]string {
	names, err := filepath.Glob(ts.MkAbs("state/audit/*.jsonl"))
	ts.Check(err)
	refusals, err := filepath.Glob(ts.MkAbs("state/audit/refusals/*.jsonl"))
	ts.Check(err)
	for _, name := range append(names, refusals...) {
		for text := range strings.Lines(ts.ReadFile(name)) {
			if !strings.HasSuffix(text, "\n") { // a line that is partly written
				continue
			}
			var line map[string]any
			ts.Check(json.Unmarshal([]byte(text), &line))
			if line["decision"] == decision && line["request"] == request {
				fields := map[string]string{}
				for k, v := range line {
					fields[k] = fmt.Sprint(v)
				}
				return fields
			}
		}
	}
	return nil
}

// sign signs as a sender whose clock is off by AGE: sign AGE SCHEME KEYFILE BODY
func sign(ts *testscript.TestScript, _ bool, args []string) {
	age, err := time.ParseDuration(args[0])
	ts.Check(err)
	sign, err := client.HMAC(args[1], []byte(strings.TrimSpace(ts.ReadFile(args[2]))))
	ts.Check(err)
	h, err := sign(rand.Text(), []byte(args[3]), time.Now().Add(-age))
	ts.Check(err)
	_, _ = io.WriteString(ts.Stdout(), client.Lines(h))
}

// token prints a header with a token that "sallyport sign" does not make: token AGE ALG KEYFILE CLAIMS OTHERS. CLAIMS
// is a file with a JSON object. OTHERS is a JSON object whose claims override those of CLAIMS; null removes a claim.
func token(ts *testscript.TestScript, _ bool, args []string) {
	age, err := time.ParseDuration(args[0])
	ts.Check(err)
	iat := time.Now().Add(-age)
	claims, others := jwt.MapClaims{}, jwt.MapClaims{}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[3])), &claims))
	ts.Check(json.Unmarshal([]byte(args[4]), &others))
	maps.Copy(claims, jwt.MapClaims{"iat": iat.Unix(), "exp": iat.Add(5 * time.Minute).Unix(), "jti": rand.Text()})
	maps.Copy(claims, others)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	text := ts.ReadFile(args[2])
	var key any = []byte(strings.TrimSpace(text))
	method := jwt.GetSigningMethod(args[1])
	switch method.(type) {
	case *jwt.SigningMethodRSA:
		key, err = jwt.ParseRSAPrivateKeyFromPEM([]byte(text))
	case *jwt.SigningMethodECDSA:
		key, err = jwt.ParseECPrivateKeyFromPEM([]byte(text))
	case *jwt.SigningMethodEd25519:
		key, err = jwt.ParseEdPrivateKeyFromPEM([]byte(text))
	}
	if args[1] == "none" {
		key = jwt.UnsafeAllowNoneSignatureType
	}
	ts.Check(err)
	signed, err := jwt.NewWithClaims(method, claims).SignedString(key)
	ts.Check(err)
	_, _ = fmt.Fprintln(ts.Stdout(), "Authorization: Bearer "+signed)
}

// pki creates a CA, or a client's or server's certificate that it signs, as NAME.pem and NAME.key. The certificate
// expires in 30 days or after DURATION:
//
//	pki NAME
//	pki NAME CA uri:URI|dns:NAME|cn:NAME|server:NAME [expired|DURATION]
func pki(ts *testscript.TestScript, _ bool, args []string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	cert := &x509.Certificate{
		Subject: pkix.Name{CommonName: args[0]}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	ca, caKey := cert, key
	if len(args) == 1 {
		cert.IsCA, cert.BasicConstraintsValid, cert.KeyUsage, cert.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	} else {
		ca, caKey = authority(ts, args[1])
		addName(ts, cert, args[2])
		if len(args) == 4 {
			left := -time.Hour
			if args[3] != "expired" {
				left, err = time.ParseDuration(args[3])
				ts.Check(err)
			}
			cert.NotAfter = time.Now().Add(left)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, ca, key.Public(), caKey)
	ts.Check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
}

func addName(ts *testscript.TestScript, cert *x509.Certificate, text string) {
	switch kind, name, _ := strings.Cut(text, ":"); kind {
	case "uri":
		uri, err := url.Parse(name)
		ts.Check(err)
		cert.URIs = []*url.URL{uri}
	case "dns":
		cert.DNSNames = []string{name}
	case "server":
		cert.DNSNames, cert.ExtKeyUsage = []string{name}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	default:
		cert.Subject.CommonName = name
	}
}

func authority(ts *testscript.TestScript, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	block, _ := pem.Decode([]byte(ts.ReadFile(name + ".pem")))
	ca, err := x509.ParseCertificate(block.Bytes)
	ts.Check(err)
	block, _ = pem.Decode([]byte(ts.ReadFile(name + ".key")))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	ts.Check(err)
	return ca, key.(*ecdsa.PrivateKey)
}

// domain returns the SPIFFE trust domain of a name, and creates it at first use.
func domain(ts *testscript.TestScript, name string) *spiffetest.Domain {
	domains := ts.Value("domains").(map[string]*spiffetest.Domain)
	if domains[name] == nil {
		d, err := spiffetest.NewDomain("spiffe://" + name)
		ts.Check(err)
		domains[name] = d
	}
	return domains[name]
}

// workload lets a Workload API issue a new certificate for localhost, with the bundles of its domain and of federated
// ones, and writes the CA to certs/ca.pem:
//
//	workload SOCKET DOMAIN [FEDERATED...]
//	workload forget DOMAIN: the next one of this name has another CA
func workload(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "forget" {
		delete(ts.Value("domains").(map[string]*spiffetest.Domain), args[1])
		return
	}
	agent := ts.Value("agent").(**spiffetest.Agent)
	if *agent == nil {
		a, err := spiffetest.Listen(ts.MkAbs(args[0]))
		ts.Check(err)
		ts.Defer(a.Stop)
		*agent = a
	}
	own := domain(ts, args[1])
	pair, err := own.SVID("spiffe://"+args[1]+"/sallyport", "localhost")
	ts.Check(err)
	var federated []*spiffetest.Domain
	for _, name := range args[2:] {
		federated = append(federated, domain(ts, name))
	}
	ts.Check((*agent).Issue(pair, own, federated...))
	ts.Check(os.MkdirAll(ts.MkAbs("certs"), 0o700))
	ts.Check(os.WriteFile(ts.MkAbs("certs/ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.CA.Raw}), 0o600))
}

// svid issues an X.509-SVID as NAME.pem and NAME.key: svid NAME DOMAIN ID
func svid(ts *testscript.TestScript, _ bool, args []string) {
	pair, err := domain(ts, args[1]).SVID(args[2])
	ts.Check(err)
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
}
