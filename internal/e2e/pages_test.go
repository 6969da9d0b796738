package e2e_test

import (
	"crypto/rand"
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"sallyport/certs"
	"sallyport/internal/client"
	"sallyport/internal/config"
)

// pageDelivery is the payload of a sender, and the run that the configuration on the page of the sender makes of it.
type pageDelivery struct {
	file   string // in testdata/pages: headers, an empty line, the body
	caller string // empty: the sender has no credential
	path   string
	params string // of the run, as JSON
}

// pageDeliveries are by page of docs/senders.
func pageDeliveries() map[string][]pageDelivery {
	const commit = `"commit":"` + exampleCommit + `"`
	return map[string][]pageDelivery{
		"github":         {{"github", "github", "/hooks/github-build", commit}},
		"gitlab":         {{"gitlab", "gitlab", "/hooks/gitlab-deploy", commit}, {"gitlab", "gitlab-old", "/hooks/gitlab-deploy", commit}},
		"gitea":          {{"gitea", "gitea", "/hooks/gitea-build", commit}, {"gitea", "forgejo", "/hooks/gitea-build", commit}},
		"bitbucket":      {{"bitbucket", "bitbucket", "/hooks/bitbucket-build", commit}, {"bitbucket-server", "stash", "/hooks/stash-build", commit}},
		"alertmanager":   {{"alertmanager", "alertmanager", "/hooks/remedy", `"alert":"QueueStuck","instance":"mail-1:9100"`}},
		"slack":          {{"slack", "slack", "/hooks/slack-mention", `"user":"U0123ABCD"`}},
		"discord":        {{"discord", "discord", "/hooks/discord-deploy", `"version":"v1.4.2"`}},
		"stripe":         {{"stripe", "stripe", "/hooks/stripe-paid", `"invoice":"in_1MtHbELkdIwHu7ixl4OzzPMv"`}},
		"github-actions": {{"github-actions", "actions", "/hooks/actions-release", commit}},
		"gitlab-ci":      {{"gitlab-ci", "gitlab-job", "/hooks/ci-release", commit}},
		"grafana":        {{"grafana", "grafana", "/hooks/grafana-alert", `"alert":"High memory usage"`}},
		"docker-hub":     {{"docker-hub", "", "/hooks/hub-6f1d0c7f2f5b4c1e9a7d3b8e5a2c4d60", ""}},
		"harbor": {{
			"harbor", "harbor", "/hooks/harbor-pushed",
			`"digest":"sha256:76525f02955aec223342400a080c73024c995c9db1ba2eabf7505cf3bdf3f1f0","tag":"v1"`,
		}},
		"sonarqube": {{"sonarqube", "sonarqube", "/hooks/quality-gate", commit}},
		"zoom":      {{"zoom", "zoom", "/hooks/zoom-recorded", `"meeting":"1234567890"`}},
		"cron":      {{"cron", "nightly", "/hooks/nightly", `"report":"daily"`}},
		"airflow":   {{"airflow", "airflow", "/hooks/airflow-load", `"date":"2026-11-20","table":"orders"`}},
		"dbt":       {{"dbt", "dbt", "/hooks/dbt-finished", `"run":"12345"`}},
	}
}

// TestSenderPages_Deliveries serves the configurations of all pages of docs/senders by one server, as the index of the
// pages says, and sends each the payload of its sender.
func TestSenderPages_Deliveries(t *testing.T) {
	t.Parallel()
	e := &example{dir: t.TempDir(), certs: map[string]*tls.Certificate{}, signers: map[string]client.Signer{}}
	e.claims = map[string]any{"sha": exampleCommit}
	e.copyPages(t)
	out, err := program(t, e.dir, "check", "--config", "sallyport.yaml").CombinedOutput()
	if text := string(out); err != nil || strings.Count(text, "warning") != 1 || !strings.Contains(text, "any client") {
		t.Fatalf("check: %v, want one warning, of Docker Hub\n%s", err, out)
	}
	e.url = startListening(t, e.dir, program(t, e.dir, "serve", "--config", "sallyport.yaml"))
	for page, rows := range pageDeliveries() {
		for _, row := range rows {
			t.Run(page+"/"+row.caller, func(t *testing.T) { e.testPage(t, row) })
		}
	}
}

// copyPages writes the files that the pages show.
func (e *example) copyPages(t *testing.T) {
	t.Helper()
	pki := filepath.Join(e.dir, "certs")
	_, err := certs.Dev(pki, time.Now(), false)
	mustSucceed(t, err)
	e.roots = roots(t, filepath.Join(pki, "ca.pem"))
	main := strings.NewReplacer(`":8443"`, `"localhost:0"`, "/var/lib/sallyport", "state").Replace(readYAML(t, "README"))
	main += "limits: {address: {rate: 1000/s, burst: 1000}, failures: {rate: 1000/s, burst: 1000}}\n"
	mustSucceed(t, os.WriteFile(filepath.Join(e.dir, "sallyport.yaml"), []byte(main), 0o644))
	mustSucceed(t, os.Mkdir(filepath.Join(e.dir, "hooks.d"), 0o755))
	for page := range pageDeliveries() {
		text := []byte(readYAML(t, page))
		var f struct {
			Callers map[string]*config.CallerSpec `yaml:"callers"`
		}
		mustSucceed(t, yaml.Unmarshal(text, &f))
		text = e.createCredentials(t, text, f.Callers, e.dir, pki)
		mustSucceed(t, os.WriteFile(filepath.Join(e.dir, "hooks.d", page+".yaml"), text, 0o644))
	}
}

// readYAML returns the configuration on a page of docs/senders.
func readYAML(t *testing.T, page string) string {
	t.Helper()
	return cutBetween(t, readDoc(t, "docs/senders/"+page+".md"), "```yaml\n", "```\n")
}

// testPage sends a delivery with and without its credential.
func (e *example) testPage(t *testing.T, row pageDelivery) {
	t.Helper()
	head, body, _ := strings.Cut(readDoc(t, "internal/e2e/testdata/pages/"+row.file+".http"), "\n\n")
	e.path, e.body, e.header = row.path, strings.TrimSuffix(body, "\n"), map[string]string{}
	for line := range strings.Lines(head) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), ": "); found {
			e.header[name] = value
		}
	}
	header := http.Header{}
	if row.caller != "" {
		if status, text := e.send(t, http.Header{}, nil); status != http.StatusUnauthorized {
			t.Errorf("without a credential: %d %s, want 401", status, text)
		}
		var err error
		header, err = e.signers[row.caller](rand.Text(), []byte(e.body), time.Now())
		mustSucceed(t, err)
	}
	status, text := e.send(t, header, nil)
	if status != http.StatusOK || !strings.Contains(text, `"state":"succeeded"`) || !strings.Contains(text, row.params) {
		t.Errorf("%d %s, want a run with %s", status, text, row.params)
	}
}

// TestSenderPages_Complete: each page of docs/senders is in the index and is tested, is short, and says what a
// redelivery does and what to look at.
func TestSenderPages_Complete(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("docs/senders/*.md")
	mustSucceed(t, err)
	index := readDoc(t, "docs/senders/README.md")
	var names []string
	for _, file := range pages {
		name := strings.TrimSuffix(filepath.Base(file), ".md")
		if name == "README" {
			continue
		}
		names = append(names, name)
		text := readDoc(t, file)
		if !strings.Contains(text, "**Redelivery:** ") || !strings.Contains(text, "**When it is red:** ") {
			t.Errorf("%s does not say what a redelivery does, and what to look at", file)
		}
		if lines := strings.Count(text, "\n"); lines > 45 {
			t.Errorf("%s has %d lines", file, lines)
		}
		if len(pageDeliveries()[name]) == 0 || !strings.Contains(index, "]("+name+".md)") {
			t.Errorf("%s is not tested, or is missing in the index", file)
		}
	}
	if len(names) != len(pageDeliveries()) {
		t.Errorf("pages are %v, and %d are tested", slices.Sorted(slices.Values(names)), len(pageDeliveries()))
	}
}
