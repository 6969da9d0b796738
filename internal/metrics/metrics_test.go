package metrics_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sallyport/certs"
	"sallyport/internal/keyuse"
	"sallyport/internal/metrics"
)

// TestMetrics_LabelsOfOthers uses names that are invalid UTF-8, and differ only in the invalid bytes.
func TestMetrics_LabelsOfOthers(t *testing.T) {
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	uses := new(keyuse.Table)
	for key, seconds := range map[string]int64{"k\xfe": 2000, "k\xff": 3000, "k": 4000} {
		uses.Note(keyuse.Use{Caller: "etl", Kind: "signature", Key: key, At: at(seconds)})
	}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(metrics.Trust([]certs.Expiry{
		{What: "client CA", File: "c.pem", Subject: "CN=\xfe", NotAfter: at(2000)},
		{What: "client CA", File: "c.pem", Subject: "CN=\xff", NotAfter: at(3000)},
		{What: "client CA", File: "c.pem", Subject: "CN=Corp", NotAfter: at(4000)},
	}, uses))
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	const unknown = "\uFFFD"
	// Of two equal labels, the earlier expiry and the later use remain.
	for _, want := range []string{
		`{file="c.pem",subject="CN=` + unknown + `",what="client CA"} 2000`, `{file="c.pem",subject="CN=Corp",what="client CA"} 4000`,
		`{caller="etl",key="k` + unknown + `",kind="signature"} 3000`, `{caller="etl",key="k",kind="signature"} 4000`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, w.Body)
		}
	}
	if n := strings.Count(w.Body.String(), "\n"); n != 2*(2+2) {
		t.Errorf("%d lines:\n%s", n, w.Body)
	}
}
