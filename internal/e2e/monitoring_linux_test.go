package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/internal/testenv"
)

// TestMonitoring_FailedRunFires loads the alert rules into a real Prometheus, which scrapes the program: a failed run
// fires, also after a restart of the server, and a run that succeeds does not.
func TestMonitoring_FailedRunFires(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "prometheus", "promtool")
	rules, err := filepath.Abs("docs/monitoring/alerts.yaml")
	mustSucceed(t, err)
	if out, err := exec.CommandContext(t.Context(), "promtool", "check", "rules", rules).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	in := install(t, "sallyport", "  prometheus: {token: {keys: [{file: DIR/token}]}}\nmetrics: {callers: [prometheus]}\n"+
		"hooks:\n  fails: {callers: [load], command: [/bin/false]}\n  works: {callers: [load], command: [/bin/true]}\n"+
		"  again: {callers: [load], command: [/bin/false], retry: {times: 1, after: 100ms}}\n")
	in.write("token", strings.Repeat("a", 40), 0o600)
	in.start(true)
	address := "localhost:" + freeTCPPort(t)
	in.write("prometheus.yml", fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: sallyport
    scheme: https
    authorization: {credentials_file: token}
    tls_config: {ca_file: certs/ca.pem}
    static_configs: [{targets: [%q]}]
`, rules, strings.TrimPrefix(*in.url.Load(), "https://")), 0o600)
	startDaemon(t, in.dir, "prometheus", exec.CommandContext(t.Context(), "prometheus", "--config.file=prometheus.yml",
		"--storage.tsdb.path=tsdb", "--web.listen-address="+address))
	waitFor(t, address)
	ask := func(path string) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, http.NoBody)
		mustSucceed(t, err)
		res, err := new(http.Client).Do(req)
		mustSucceed(t, err)
		defer func() { _ = res.Body.Close() }()
		text, err := io.ReadAll(res.Body)
		mustSucceed(t, err)
		return string(text)
	}
	in.waitUntil("the first scrape", func() bool { return strings.Contains(ask("/api/v1/query?query=up"), `"1"]`) })
	in.endRun("works", "1")
	in.endRun("fails", "2")
	in.endRun("again", "3")
	var firing string
	in.waitUntil("the alert", func() bool {
		firing = ask("/api/v1/alerts")
		return regexp.MustCompile(`"alertname":"SallyportRunFailed","hook":"fails"[^}]*"state":"failed"`).MatchString(firing) &&
			strings.Contains(firing, `"alertname":"SallyportHookFailing","hook":"fails"`)
	})
	if strings.Contains(firing, `"hook":"works"`) {
		t.Errorf("got %s", firing)
	}
	for query, want := range map[string]string{
		`sallyport_runs_ended_total{hook="works",state="succeeded"}`: "1", `sallyport_run_duration_seconds_count{hook="fails"}`: "1",
		`sallyport_deliveries_total{hook="fails",outcome="accepted"}`: "1", `sallyport_run_last_succeeded{hook="works"}`: "1",
		`sallyport_runs_ended_total{hook="again",state="failed"}`: "2", `sallyport_run_retries_total{hook="again"}`: "1",
		`sallyport_runs{hook="works",state="running"}`: "0", `sallyport_part_ready{part="supervisor"}`: "1",
	} {
		if got := in.scrape(query); got != want {
			t.Errorf("%s is %s, want %s", query, got, want)
		}
	}
	in.endServer()
	in.start(true)
	in.waitUntil("the last run to be known again", func() bool { return in.scrape(`sallyport_run_last_succeeded{hook="fails"}`) == "0" })
	if got := in.scrape(`sallyport_runs_ended_total{hook="fails",state="failed"}`); got != "0" {
		t.Errorf("after a restart, %s runs have failed", got)
	}
}

// scrape returns the value of a series, or an empty text.
func (in *installation) scrape(series string) string {
	in.t.Helper()
	req, err := http.NewRequestWithContext(in.t.Context(), http.MethodGet, *in.url.Load()+"/metrics", http.NoBody)
	mustSucceed(in.t, err)
	req.Header.Set("Authorization", "Bearer "+strings.Repeat("a", 40))
	res, err := in.http.Do(req)
	mustSucceed(in.t, err)
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	mustSucceed(in.t, err)
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindSubmatch(text)
	if found == nil {
		return ""
	}
	return string(found[1])
}

// TestMonitoring_KnownMetrics: rules and dashboard use only metrics that the manual has, and the dashboard is JSON.
func TestMonitoring_KnownMetrics(t *testing.T) {
	t.Parallel()
	manual, err := os.ReadFile("docs/metrics.md")
	mustSucceed(t, err)
	for _, name := range []string{"alerts.yaml", "dashboard.json"} {
		text, err := os.ReadFile(filepath.Join("docs/monitoring", name))
		mustSucceed(t, err)
		if strings.HasSuffix(name, ".json") && !json.Valid(text) {
			t.Errorf("%s is not JSON", name)
		}
		used := regexp.MustCompile(`sallyport_\w+`).FindAllString(string(text), -1)
		if len(used) < 5 {
			t.Errorf("%s uses %q", name, used)
		}
		for _, metric := range used {
			if !strings.Contains(string(manual), "`"+strings.TrimSuffix(metric, "_bucket")) {
				t.Errorf("%s uses %s, which the manual does not have", name, metric)
			}
		}
	}
}
