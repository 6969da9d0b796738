package cli_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/internal/app"
	"sallyport/internal/audit"
	"sallyport/internal/client"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// result is the output of a command and its exit code.
type result struct {
	out, errOut string
	code        int
}

// runProgram runs a command of the program.
func runProgram(in string, args ...string) result {
	var out, errOut bytes.Buffer
	code := app.Main("v1", args, strings.NewReader(in), &out, &errOut)
	return result{out.String(), errOut.String(), code}
}

// writeFile makes a file in a new folder and returns its name.
func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestFlags_Refused uses flags without an effect, without another flag that they need, or with an invalid value.
func TestFlags_Refused(t *testing.T) {
	t.Parallel()
	key := writeFile(t, "a-token-of-thirty-two-bytes-or-so")
	for line, want := range map[string]string{
		"runs list --state /var/lib/x":                "to name the state folder, write --state-dir /var/lib/x",
		"runs list --state-dir . --state failed,lost": `"lost" is not a state of runs`,
		"runs list --state failed":                    "missing flags: --server=URL or --state-dir=DIR",
		"runs list --state-dir . --server https://h":  "can't be used together",
		"runs show --state . ID":                      `did you mean "--state-dir"?`,
		"runs output --state . ID":                    `did you mean "--state-dir"?`,
		"runs cancel --state . ID":                    `did you mean "--state-dir"?`,
		"runs rerun --state . ID":                     `did you mean "--state-dir"?`,
		"backup --state . x":                          `did you mean "--state-dir"?`,
		"audit verify --state .":                      `did you mean "--state-dir"?`,
		"audit key --state .":                         `did you mean "--state-dir"?`,
		"audit verify":                                "either --state-dir or files are needed",
		"audit verify a b":                            "files need --key",
		"runs show --state-dir . --scheme token --key-file " + key + " I": "--scheme needs --server",
		"runs output --state-dir . --follow ID":                           "--follow needs --server",
		"call --data x http://h/start":                                    "is not of the form https://host/path",
		"call --scheme github --key-file " + key + " https://h/x":         "--data is missing",
		"sign --key-file " + key:                                          "--key-file needs --scheme",
		"sign --scheme nosuch --data x --key-file " + key:                 `unknown scheme "nosuch"`,
		"keys new nosuch":                                                 "nosuch",
	} {
		if got := runProgram("", strings.Fields(line)...); got.code != client.ExitUsage || !strings.Contains(got.errOut, want) {
			t.Errorf("%s: exit code %d, %s\nwant %d and %q", line, got.code, got.errOut, client.ExitUsage, want)
		}
	}
}

// makeStateFolder makes a state folder with three runs, the newest last: one succeeded, one failed, one in progress.
func makeStateFolder(t *testing.T) (dir string, ids []string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, log := t.Context(), slog.New(slog.DiscardHandler)
	s, err := store.Open(ctx, dir, time.Now, log)
	if err != nil {
		t.Fatal(err)
	}
	ids = []string{
		"01990000-0000-7000-8000-000000000001", "01990000-0000-7000-8000-000000000002", "01990000-0000-7000-8000-000000000003",
	}
	for i, id := range ids {
		r := runner.Run{
			ID: id, Hook: "build", Caller: "ci", Flight: fmt.Sprint("flight", i), Created: time.Now(),
			Params: map[string]string{"ref": "v" + fmt.Sprint(i) + "\x1b[2J"},
		}
		if _, err := s.Admit(ctx, r, runner.Claim{Key: id}, hook.Policy{Kind: hook.Reject}, runner.Feed{}); err != nil {
			t.Fatal(err)
		}
	}
	for i, state := range []runner.State{runner.Succeeded, runner.Failed} {
		if _, _, err := s.Finish(ctx, ids[i], state, runner.End{Ended: time.Now(), ExitCode: &i},
			runner.KeepClaims, runner.LeaveQueued); err != nil {
			t.Fatal(err)
		}
	}
	trail, err := audit.Open(audit.Options{State: dir, Keep: 1 << 20, LeastAge: time.Hour}, time.Now, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := trail.Write(ctx, audit.Line{Event: audit.Started, Version: "v1"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []io.Closer{trail, s} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return dir, ids
}

// parseList returns the ids of a list in JSON, and where the next page begins.
func parseList(t *testing.T, text string) (ids []string, next string) {
	t.Helper()
	var p client.Page
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, r := range p.Runs {
		ids = append(ids, r.ID)
	}
	return ids, p.Next
}

// TestRuns_StateFolder reads runs from a state folder without a server.
func TestRuns_StateFolder(t *testing.T) {
	t.Parallel()
	dir, ids := makeStateFolder(t)
	list := func(args ...string) []string {
		t.Helper()
		got := runProgram("", append([]string{"runs", "list", "--json", "--state-dir", dir}, args...)...)
		if got.code != 0 {
			t.Fatal(got)
		}
		found, _ := parseList(t, got.out)
		return found
	}
	newestFirst := []string{ids[2], ids[1], ids[0]}
	for _, row := range []struct {
		args []string
		want []string
	}{
		{nil, newestFirst},
		{[]string{"--state", "failed"}, ids[1:2]},
		{[]string{"--state", "failed,succeeded"}, newestFirst[1:]},
		{[]string{"--hook", "build", "--caller", "ci"}, newestFirst},
		{[]string{"--hook", "deploy"}, nil},
		{[]string{"--before", ids[1]}, ids[:1]},
	} {
		if got := list(row.args...); !slices.Equal(got, row.want) {
			t.Errorf("%q lists %q, want %q", row.args, got, row.want)
		}
	}
	page := runProgram("", "runs", "list", "--limit", "2", "--state-dir", dir)
	if lines := strings.Split(page.out, "\n"); page.code != 0 || len(lines) != 4 ||
		!strings.HasPrefix(lines[0], "RUN ") || !strings.HasPrefix(lines[1], ids[2]) || !strings.Contains(page.errOut, "--before "+ids[1]) {
		t.Errorf("a page of 2: %+v", page)
	}
	show := runProgram("", "runs", "show", "--state-dir", dir, ids[1])
	if show.code != 0 || !strings.Contains(show.out, "failed") || !strings.Contains(show.out, `"v1\x1b[2J"`) {
		t.Errorf("show: %+v", show)
	}
	for _, args := range [][]string{
		{"runs", "show", "--state-dir", dir, "01990000-0000-7000-8000-000000000009"},
		{"runs", "output", "--state-dir", dir, ids[2]}, // no command was started
		{"runs", "list", "--state-dir", filepath.Join(dir, "none")},
	} {
		if got := runProgram("", args...); got.code != client.ExitLocal || got.errOut == "" || got.out != "" {
			t.Errorf("%q: %+v", args, got)
		}
	}
	for _, change := range []string{"cancel", "rerun"} { // which a server does
		if got := runProgram("", "runs", change, "--state-dir", dir, ids[2]); got.code != client.ExitUnreachable ||
			!strings.Contains(got.errOut, "no server serves "+dir) {
			t.Errorf("%s: %+v", change, got)
		}
	}
}

// TestAudit_Verify verifies the audit log of a state folder, and finds a line that was changed.
func TestAudit_Verify(t *testing.T) {
	t.Parallel()
	dir, _ := makeStateFolder(t)
	key := runProgram("", "audit", "key", "--state-dir", dir)
	good := runProgram("", "audit", "verify", "--state-dir", dir, "--key", strings.TrimSpace(key.out))
	if key.code != 0 || good.code != 0 || !strings.Contains(good.out, "lines in 1 files") {
		t.Errorf("%+v, %+v", key, good)
	}
	files, err := filepath.Glob(filepath.Join(dir, "audit", "*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], bytes.Replace(text, []byte(`"v1"`), []byte(`"v2"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := runProgram("", "audit", "verify", "--state-dir", dir); got.code != client.ExitLocal || got.errOut == "" {
		t.Errorf("a changed line: %+v", got)
	}
}

// recordedServer answers each request, by method and path, as a server did, and returns its flags.
func recordedServer(t *testing.T, answers map[string]func(http.ResponseWriter, *http.Request)) []string {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			answer = answerProblem(http.StatusNotFound)
		}
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	ca := writeFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	return []string{"--ca", ca, "--server", s.URL}
}

// answerProblem answers with an RFC 9457 problem.
func answerProblem(status int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.Header().Set("X-Request-Id", "request-1")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"status":%d,"detail":"Recorded.\u001b[2J"}`, status)
	}
}

// answerJSON answers with a text.
func answerJSON(text string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Location", "/runs/R")
		_, _ = io.WriteString(w, text)
	}
}

const recordedRun = `{"id":"R","hook":"build","caller":"ci","flight":"build","state":"running","created":"2026-11-27T10:00:00Z"}`

// TestRuns_Server asks a server for runs: what is sent, and what is printed of the answers.
func TestRuns_Server(t *testing.T) {
	t.Parallel()
	token := writeFile(t, "a-token-of-thirty-two-bytes-or-so\n")
	at := recordedServer(t, map[string]func(http.ResponseWriter, *http.Request){
		"GET /runs": func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			if r.Header.Get("Authorization") != "Bearer a-token-of-thirty-two-bytes-or-so" ||
				!slices.Equal(q["state"], []string{"failed", "running"}) || q.Get("hook") != "build" || q.Get("limit") != "1" {
				t.Errorf("asked with %s", q.Encode())
			}
			answerJSON(`{"runs":[`+recordedRun+`],"next":"/runs?before=R"}`)(w, r)
		},
		"GET /runs/R":        answerJSON(recordedRun),
		"GET /runs/R/output": answerJSON("line 1\n"),
		"DELETE /runs/R":     answerJSON(strings.Replace(recordedRun, "running", "cancelled", 1)),
		"POST /runs/R/rerun": answerJSON(strings.Replace(recordedRun, `"id":"R"`, `"id":"S","rerun_of":"R"`, 1)),
	})
	for _, row := range []struct{ line, out, errOut string }{
		{"list --scheme token --key-file " + token + " --state failed --state running --hook build --limit 1", "R    build  ci", "--before R"},
		{"show R", "running", ""},
		{"show --json R", `"state": "running"`, ""},
		{"output R", "line 1\n", ""},
		{"cancel R", "cancelled", ""},
		{"rerun --json R", `"rerun_of": "R"`, ""},
	} {
		args := append(append([]string{"runs"}, strings.Fields(row.line)...), at...)
		if got := runProgram("", args...); got.code != 0 || !strings.Contains(got.out, row.out) || !strings.Contains(got.errOut, row.errOut) {
			t.Errorf("%s: %+v, want %q and %q", row.line, got, row.out, row.errOut)
		}
	}
}

// TestExitCodes_Refusals maps what a server answers to exit codes, and prints its reason without control characters.
func TestExitCodes_Refusals(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]int{
		400: client.ExitMalformed, 404: client.ExitMalformed, 413: client.ExitMalformed, 422: client.ExitMalformed,
		401: client.ExitRefused, 403: client.ExitRefused, 429: client.ExitBusy, 503: client.ExitBusy, 500: client.ExitServer,
	} {
		at := recordedServer(t, map[string]func(http.ResponseWriter, *http.Request){
			"GET /runs/R": answerProblem(status), "POST /start": answerProblem(status),
		})
		for _, args := range [][]string{append([]string{"runs", "show", "R"}, at...), {"call", "--ca", at[1], "-d", "{}", at[3] + "/start"}} {
			got := runProgram("", args...)
			if got.code != want || !strings.Contains(got.errOut, "request-1") || strings.Contains(got.errOut, "\x1b") {
				t.Errorf("%q at %d: %+v, want exit code %d", args[0], status, got, want)
			}
		}
	}
	if got := runProgram("", "runs", "show", "--server", "https://127.0.0.1:1", "R"); got.code != client.ExitUnreachable {
		t.Errorf("no server: %+v", got)
	}
}

// TestCall_ExitsAsTheRun follows a run to its end, and exits as it did.
func TestCall_ExitsAsTheRun(t *testing.T) {
	t.Parallel()
	for end, want := range map[string]int{
		`"state":"succeeded","exit_code":0`:      0,
		`"state":"failed","exit_code":3`:         3,
		`"state":"failed","signal":"SIGKILL"`:    128 + 9,
		`"state":"timed_out","signal":"SIGTERM"`: client.ExitTimedOut,
		`"state":"failed","error":"no start"`:    client.ExitNotStarted,
		`"state":"interrupted"`:                  client.ExitServer,
	} {
		at := recordedServer(t, map[string]func(http.ResponseWriter, *http.Request){
			"POST /start": answerJSON(recordedRun),
			"GET /runs/R": answerJSON(strings.Replace(recordedRun, `"state":"running"`, end, 1)),
		})
		got := runProgram("body", "call", "--wait", "--json", "--data-file", "-", "--ca", at[1], at[3]+"/start")
		if got.code != want || !strings.Contains(got.out, `"id": "R"`) || !strings.Contains(got.errOut, "run R is running") {
			t.Errorf("%s: %+v, want exit code %d", end, got, want)
		}
	}
}

// TestSign_Headers prints the headers of a sender, by the example of GitHub's documentation.
func TestSign_Headers(t *testing.T) {
	t.Parallel()
	key := writeFile(t, "It's a Secret to Everybody\n")
	const want = "X-Hub-Signature-256: sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
	for _, args := range [][]string{{"-d", "Hello, World!"}, {"--data-file", "-"}} {
		got := runProgram("Hello, World!", append([]string{"sign", "--scheme", "github", "--key-file", key}, args...)...)
		if got.code != 0 || !strings.Contains(got.out, want+"\n") {
			t.Errorf("%q: %+v", args, got)
		}
	}
}

// TestKeys_New makes files that only their owner may read, replaces none, and prints the line for the configuration.
func TestKeys_New(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	made := runProgram("", "keys", "new", "signature", "--id", "one", "--out", file)
	if made.code != 0 || made.out != fmt.Sprintf("- {id: \"one\", file: %q}\n", file+".pub") {
		t.Errorf("%+v", made)
	}
	for _, name := range []string{file, file + ".pub"} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Error(info, err)
		}
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	again := runProgram("", "keys", "new", "signature", "--out", file)
	if after, err := os.ReadFile(file); again.code != client.ExitLocal || err != nil || !bytes.Equal(before, after) {
		t.Errorf("a key was replaced: %+v, %v", again, err)
	}
	printed := runProgram("", "keys", "new", "token", "--out", "-")
	if printed.code != 0 || len(printed.out) < 32 || strings.Contains(printed.errOut, strings.TrimSpace(printed.out)) {
		t.Errorf("%+v", printed)
	}
}

// TestBackup_Write copies a state folder, and refuses a folder that is not empty.
func TestBackup_Write(t *testing.T) {
	t.Parallel()
	dir, ids := makeStateFolder(t)
	to := filepath.Join(t.TempDir(), "backup")
	if got := runProgram("", "backup", "--state-dir", dir, to); got.code != 0 || !strings.Contains(got.out, to) {
		t.Errorf("%+v", got)
	}
	show := runProgram("", "runs", "show", "--state-dir", to, ids[0])
	if show.code != 0 || !strings.Contains(show.out, "succeeded") {
		t.Errorf("%+v", show)
	}
	if got := runProgram("", "backup", "--state-dir", dir, to); got.code != client.ExitLocal || !strings.Contains(got.errOut, "backing up "+dir) {
		t.Errorf("%+v", got)
	}
}
