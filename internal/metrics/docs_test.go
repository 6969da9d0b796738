package metrics_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/config"
	"sallyport/internal/keyuse"
	"sallyport/internal/metrics"
	"sallyport/internal/readiness"
	"sallyport/runner"
)

// everything is a configuration with at least one value for each metric.
const everything = `
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
callers:
  prometheus: {token: {keys: [{file: secret, not_after: 3000-01-01T00:00:00Z}]}}
metrics: {callers: [prometheus]}
hooks:
  work: {callers: [prometheus], command: [/bin/true]}
`

func TestManual_EveryMetric(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := regexp.MustCompile("(?m)^\\| `(sallyport_[^`]+)` \\|").FindAllStringSubmatch(string(text), -1)

	dir := t.TempDir()
	if _, err := certs.Dev(filepath.Join(dir, "certs"), time.Now(), false); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"sallyport.yaml": everything, "secret": "a secret of thirty-two bytes or so"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conf, found := config.NewWatcher(filepath.Join(dir, "sallyport.yaml"), config.Env{}, slog.New(slog.DiscardHandler))
	if conf == nil {
		t.Fatal(found)
	}
	uses := new(keyuse.Table)
	uses.Note(keyuse.Use{Caller: "prometheus", Kind: "token", Key: "1", At: time.Now()})
	none := func() int { return 0 }
	noCounts := func() map[string]int { return map[string]int{} }
	runs := metrics.CountRuns(oneFailed{})
	if err := runs.Load(t.Context(), conf.Get().Hooks); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	metrics.Handler(metrics.Source{
		Conf: conf, Uses: uses, Runs: runs, Missing: metrics.Missing{Dropped: none, Skipped: none, Suppressed: none}, Version: "v1",
		Deliveries: metrics.Deliveries{
			Outcomes: func() map[metrics.HookOutcome]int { return nil }, Ignored: noCounts, Handshakes: noCounts, Refusals: noCounts,
			Paused: func() map[string]bool { return nil },
		},
		Check: readiness.New(slog.New(slog.DiscardHandler), readiness.Part{Name: "store", Probe: func(context.Context) error { return nil }}),
	}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
	told := regexp.MustCompile(`(?m)^(sallyport_\w+(?:\{.*\})?) `).FindAllStringSubmatch(w.Body.String(), -1)

	if got, want := shapes(documented), shapes(told); !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("the manual has %q\nthere are       %q", got, want)
	}
}

// oneFailed is a store with one failed run.
type oneFailed struct{ runner.Store }

func (oneFailed) Active(context.Context) ([]runner.Run, error) { return nil, nil }

func (oneFailed) List(context.Context, runner.Filter) ([]runner.Run, string, error) {
	return []runner.Run{{Hook: "work", State: runner.Failed, End: runner.End{Ended: time.Now()}}}, "", nil
}

// shapes returns the metrics with the names of their labels, sorted and without duplicates.
func shapes(metrics [][]string) (all []string) {
	for _, m := range metrics {
		name, labels, _ := strings.Cut(strings.TrimSuffix(m[1], "}"), "{")
		// A histogram has three series.
		name = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		labels, _, _ = strings.Cut(labels, ",le=")
		names := strings.Split(regexp.MustCompile(`="(?:[^"\\]|\\.)*"`).ReplaceAllString(labels, ""), ",")
		slices.Sort(names)
		all = append(all, name+"{"+strings.Join(names, ",")+"}")
	}
	slices.Sort(all)
	return slices.Compact(all)
}
