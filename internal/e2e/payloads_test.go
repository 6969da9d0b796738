package e2e_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/testenv"
)

const (
	payloadKey      = "a secret of at least 32 bytes: payloads"
	payloadExamples = "internal/e2e/testdata/senders/node_modules/@octokit/webhooks-examples"
)

// githubPayload is the body of a delivery, with the name of its event.
type githubPayload struct {
	event string
	body  []byte
}

// TestGitHubPayloads sends each example payload of GitHub as JSON and as a form, signed. Both give the same run: the
// same arguments, and the same bytes on standard input, also with a Content-Type that does not fit.
func TestGitHubPayloads(t *testing.T) {
	t.Parallel()
	testenv.Need(t, payloadExamples+"/index.d.ts")
	payloads := readGitHubPayloads(t)
	if len(payloads) < 300 {
		t.Fatalf("there are %d payloads", len(payloads))
	}
	dir := t.TempDir()
	server := payloadHook(t, dir)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots(t, dir+"/pki/ca.pem"), MinVersion: tls.VersionTLS13},
		ForceAttemptHTTP2: true,
	}}
	defer client.CloseIdleConnections()
	address := server.awaitURL(t) + "/hooks/github?n="
	var group sync.WaitGroup
	next := make(chan int)
	for range 4 { // at once
		group.Go(func() {
			for i := range next {
				checkPayload(t, client, fmt.Sprint(address, i), dir, i, payloads[i])
			}
		})
	}
	for i := range payloads {
		next <- i
	}
	close(next)
	group.Wait()
}

// readGitHubPayloads returns all different payloads of the examples.
func readGitHubPayloads(t *testing.T) (payloads []githubPayload) {
	t.Helper()
	files, err := filepath.Glob(payloadExamples + "/*/index.json")
	mustSucceed(t, err)
	seen := map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		mustSucceed(t, err)
		var events []struct {
			Name     string
			Examples []json.RawMessage
		}
		mustSucceed(t, json.Unmarshal(data, &events))
		for _, e := range events {
			for _, example := range e.Examples {
				var body bytes.Buffer
				mustSucceed(t, json.Compact(&body, example))
				if !seen[body.String()] {
					seen[body.String()] = true
					payloads = append(payloads, githubPayload{e.Name, body.Bytes()})
				}
			}
		}
	}
	return payloads
}

// payloadHook serves a hook with parameters of each type. Its command stores its arguments and its standard input in
// ran/RUN.
func payloadHook(t *testing.T, dir string) *daemon {
	t.Helper()
	_, err := certs.Dev(filepath.Join(dir, "pki"), time.Now(), false)
	mustSucceed(t, err)
	mustSucceed(t, os.Mkdir(dir+"/ran", 0o700))
	mustSucceed(t, os.WriteFile(dir+"/key", []byte(payloadKey), 0o600))
	script := "#!/bin/sh\nexec >\"$1/ran/$SALLYPORT_RUN\"\nshift\nprintf '%s\\n' \"$@\"\nexec cat\n"
	mustSucceed(t, os.WriteFile(dir+"/store.sh", []byte(script), 0o700))
	mustSucceed(t, os.WriteFile(dir+"/sallyport.yaml", fmt.Appendf(nil, `listen: "localhost:0"
state: state
tls: {cert: pki/server.pem, key: pki/server.key}
limits:
  address: {rate: 10000/s, burst: 10000}
  caller: {rate: 10000/s, burst: 10000}
callers:
  github: {hmac: {scheme: github, keys: [{file: key}]}}
hooks:
  github:
    callers: [github]
    command: [%q, %q, "a{action}", "{id}", "{public}", "{repository}", "{sender}", "{commits}", "{login}"]
    params:
      n: {from: query.n, type: int}
      action: {from: body.action, match: '[\w-]*', default: ""}
      id: {from: [body.repository.id, body.sender.id], type: number, default: "0"}
      public: {from: body.repository.private, type: bool, default: "false"}
      repository: {from: body.repository, type: json, default: "null"}
      sender: {from: body.sender, type: json, default: "null"}
      commits: {from: body.commits, type: json, default: "[]"}
      login: {from: [body.sender.login, body.organization.login], match: '.*', default: nobody}
    flight: "{n}"
    stdin: body
`, dir+"/store.sh", dir), 0o600))
	return startDaemon(t, dir, "sallyport", program(t, dir, "serve"))
}

// checkPayload sends a payload in both forms and compares what the command of each got.
func checkPayload(t *testing.T, client *http.Client, address, dir string, i int, p githubPayload) {
	t.Helper()
	kinds := []string{"application/json", "application/x-www-form-urlencoded"}
	form := url.Values{"payload": {string(p.body)}}.Encode()
	var got [2]string
	for j, body := range []string{string(p.body), form} {
		status, run := sendPayload(t, client, address, kinds[(i+j)%2], p.event, body)
		if p.event == "ping" { // is answered, and starts nothing
			if status != http.StatusOK || run.ID != "" {
				t.Errorf("ping: status %d, run %+v", status, run)
			}
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, "ran", run.ID))
		if status != http.StatusOK || run.State != "succeeded" || err != nil {
			t.Errorf("payload %d, %s: status %d, run %+v, %v", i, p.event, status, run, err)
			return
		}
		got[j] = string(text)
	}
	var document struct{ Action string }
	if err := json.Unmarshal(p.body, &document); err != nil {
		t.Error(err)
	}
	if got[0] != got[1] || p.event != "ping" &&
		(!strings.HasPrefix(got[0], "a"+document.Action+"\n") || !strings.HasSuffix(got[0], "\n"+string(p.body))) {
		t.Errorf("payload %d, %s: JSON gives %.300q, and a form %.300q", i, p.event, got[0], got[1])
	}
}

// sendPayload sends one delivery and waits for its run.
func sendPayload(t *testing.T, client *http.Client, address, kind, event, body string) (int, recordedRun) {
	t.Helper()
	mac := hmac.New(sha256.New, []byte(payloadKey))
	mac.Write([]byte(body))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0, recordedRun{}
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("X-GitHub-Event", event)
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	req.Header.Set("Prefer", "wait=60")
	res, err := client.Do(req)
	if err != nil {
		t.Error(err)
		return 0, recordedRun{}
	}
	defer func() { _ = res.Body.Close() }()
	var run recordedRun
	text, err := io.ReadAll(res.Body)
	if err != nil || json.Unmarshal(text, &run) != nil {
		t.Errorf("%s: %v, %s", event, err, text)
	}
	return res.StatusCode, run
}
