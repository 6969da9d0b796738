package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/testenv"
)

// TestAlertmanager sends one alert from Prometheus Alertmanager to three hooks: with a client certificate, with a
// token, and with a wrong token.
func TestAlertmanager(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "prometheus-alertmanager")
	dir := t.TempDir()
	server := alertHooks(t, dir)
	url := server.awaitURL(t)
	address := "localhost:" + freeTCPPort(t)
	receiver := func(name, http string) string {
		return fmt.Sprintf("  - {name: %s, webhook_configs: [{url: %q, http_config: %s}]}\n", name, url+"/hooks/"+name, http)
	}
	mustSucceed(t, os.WriteFile(filepath.Join(dir, "alertmanager.yml"), []byte(
		"route:\n"+
			"  {receiver: token, group_wait: 1ms, group_interval: 1s, repeat_interval: 1s,\n"+
			"  routes: [{receiver: token, continue: true}, {receiver: wrong, continue: true}, {receiver: cert}]}\n"+
			"receivers:\n"+
			receiver("token", "{authorization: {credentials_file: token}, tls_config: {ca_file: pki/ca.pem}}")+
			receiver("wrong", "{authorization: {credentials_file: wrong}, tls_config: {ca_file: pki/ca.pem}}")+
			receiver("cert", "{tls_config: {ca_file: pki/ca.pem, cert_file: pki/client.pem, key_file: pki/client.key}}"),
	), 0o600))
	alertmanager := startDaemon(t, dir, "alertmanager", exec.CommandContext(t.Context(), "prometheus-alertmanager",
		"--config.file=alertmanager.yml", "--storage.path=alerts", "--web.listen-address="+address, "--cluster.listen-address="))
	waitFor(t, address)
	postAlert(t, "http://"+address)

	for _, name := range []string{"token", "cert"} {
		// The second run is the repeated notification. Neither a token nor a certificate distinguishes it from a
		// replay.
		eventually(t, "two runs of "+name, func() bool { return len(readAlerts(t, dir, name)) >= 2 })
		for _, body := range readAlerts(t, dir, name) {
			if !strings.Contains(body, `"alertname":"QueueStuck"`) || !strings.Contains(body, `"receiver":"`+name+`"`) {
				t.Errorf("%s received %s", name, body)
			}
		}
		for _, r := range listRecordedRuns(t, dir, name) {
			if r.Caller != name {
				t.Errorf("a run of %s has the caller %q", name, r.Caller)
			}
		}
	}
	alertmanager.awaitLog(t, "wrong/webhook[0]", "unexpected status code 401")
	server.awaitLog(t, `"hook":"wrong"`)
	if got := readAlerts(t, dir, "wrong"); len(got) > 0 || len(listRecordedRuns(t, dir, "wrong")) > 0 {
		t.Errorf("a wrong token started %q", got)
	}
}

// alertHooks serves one hook for each way to deliver. Each run stores its body in ran/HOOK/RUN.
func alertHooks(t *testing.T, dir string) *daemon {
	t.Helper()
	_, err := certs.Dev(filepath.Join(dir, "pki"), time.Now(), false)
	mustSucceed(t, err)
	mustSucceed(t, os.WriteFile(filepath.Join(dir, "token"), []byte(strings.Repeat("a", 40)), 0o600))
	mustSucceed(t, os.WriteFile(filepath.Join(dir, "wrong"), []byte(strings.Repeat("b", 40)), 0o600))
	mustSucceed(t, os.WriteFile(filepath.Join(dir, "keep.sh"), []byte("#!/bin/sh\ncat >\"$1/$SALLYPORT_RUN\"\n"), 0o700))
	hook := func(name, caller string) string {
		ran := filepath.Join(dir, "ran", name)
		mustSucceed(t, os.MkdirAll(ran, 0o700))
		return fmt.Sprintf("  %s: {callers: [%s], command: [%q, %q], stdin: body}\n", name, caller, dir+"/keep.sh", ran)
	}
	mustSucceed(t, os.WriteFile(filepath.Join(dir, "sallyport.yaml"), []byte(
		"listen: \"localhost:0\"\nstate: state\ntls: {cert: pki/server.pem, key: pki/server.key, client_ca: pki/ca.pem}\n"+
			"callers:\n  token: {token: {keys: [{file: token}]}}\n  cert: {mtls: {uri: \"spiffe://localhost/dev\"}}\n"+
			"hooks:\n"+hook("token", "token")+hook("wrong", "token")+hook("cert", "cert"),
	), 0o600))
	return startDaemon(t, dir, "sallyport", program(t, dir, "serve"))
}

// postAlert posts one alert.
func postAlert(t *testing.T, url string) {
	t.Helper()
	body := `[{"labels": {"alertname": "QueueStuck", "service": "mail-out"}, "annotations": {"summary": "nothing moves"}}]`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/api/v2/alerts", strings.NewReader(body))
	mustSucceed(t, err)
	req.Header.Set("Content-Type", "application/json")
	res, err := new(http.Client).Do(req)
	mustSucceed(t, err)
	mustSucceed(t, res.Body.Close())
	if res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
}

// readAlerts returns the bodies that the runs of a hook received.
func readAlerts(t *testing.T, dir, hook string) (bodies []string) {
	t.Helper()
	for _, r := range listRecordedRuns(t, dir, hook) {
		if r.State != "succeeded" {
			continue
		}
		body, err := os.ReadFile(filepath.Join(dir, "ran", hook, r.ID))
		mustSucceed(t, err)
		bodies = append(bodies, string(body))
	}
	return bodies
}

type recordedRun struct{ ID, Caller, State string }

// listRecordedRuns returns the runs of a hook.
func listRecordedRuns(t *testing.T, dir, hook string) []recordedRun {
	t.Helper()
	out, err := program(t, dir, "runs", "list", "--state-dir", "state", "--hook", hook, "--json").Output()
	mustSucceed(t, err)
	var page struct{ Runs []recordedRun }
	mustSucceed(t, json.Unmarshal(out, &page))
	return page.Runs
}
