// Package metrics reports the state of the server to Prometheus.
//
// [Handler] answers a scrape. Each value is read when a scrape asks for it, so nothing is counted twice, and a server
// that is not scraped does no work. Labels come from the configuration and never from a request, so senders cannot make
// new series. docs/metrics.md has a row for each metric, and a test compares both.
package metrics

import (
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sallyport/auth"
	"sallyport/certs"
	"sallyport/internal/config"
	"sallyport/internal/keyuse"
)

// Missing returns how many lines were not written since the start.
type Missing struct {
	Dropped func() int // lines of the log, because its reader was too slow
	Skipped func() int // lines of the log, because there were too many of one kind
	// lines of the audit log, because there were too many of one kind, or they could not be written
	Suppressed func() int
}

// Deliveries returns how many deliveries to each hook started nothing.
type Deliveries struct {
	Ignored    func() map[string]int
	Handshakes func() map[string]int
	Paused     func() map[string]bool // hooks that start nothing
}

// Handler answers with the metrics, in the format that the request accepts.
func Handler(
	conf *config.Watcher, uses *keyuse.Table, missing Missing, deliveries Deliveries, version string,
) http.Handler {
	r := prometheus.NewRegistry()
	for reason, count := range map[string]func() int{
		"dropped": missing.Dropped, "skipped": missing.Skipped, "suppressed": missing.Suppressed,
	} {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sallyport_log_lines_missing_total", Help: "Lines that were not written.",
			ConstLabels: prometheus.Labels{"reason": reason},
		}, func() float64 { return float64(count()) }))
	}
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&configuration{
			conf: conf,
			build: prometheus.NewDesc("sallyport_build_info", "1, for the version that runs.", nil,
				prometheus.Labels{"version": version}),
			loaded: prometheus.NewDesc("sallyport_configuration_loaded_timestamp_seconds",
				"When the configuration in force was loaded.", nil, nil),
			stale: prometheus.NewDesc("sallyport_configuration_stale", "1 if a newer configuration was refused.",
				nil, nil),
			ignored: prometheus.NewDesc("sallyport_deliveries_ignored_total",
				"Verified deliveries for which a condition of the hook did not hold.", []string{"hook"}, nil),
			handshakes: prometheus.NewDesc("sallyport_deliveries_handshake_total",
				"Deliveries with which a sender tested or registered its webhook.", []string{"hook"}, nil),
			paused:     prometheus.NewDesc("sallyport_hook_paused", "1 if the hook is paused.", []string{"hook"}, nil),
			deliveries: deliveries,
			reloads: prometheus.NewDesc("sallyport_reloads_total", "Attempts to reload the configuration.",
				[]string{"result"}, nil),
		},
		newTrust(
			func() []certs.Expiry { return conf.Get().Expiries() },
			func() []auth.KeyInfo { return conf.Get().Auth.Keys() }, uses,
		),
	)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// configuration collects the metrics of the configuration.
type configuration struct {
	conf                                                       *config.Watcher
	deliveries                                                 Deliveries
	build, loaded, stale, reloads, ignored, handshakes, paused *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *configuration) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.build, c.loaded, c.stale, c.reloads, c.ignored, c.handshakes, c.paused} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *configuration) Collect(ch chan<- prometheus.Metric) {
	status := c.conf.Status()
	stale := 0.0
	if !status.Failed.IsZero() {
		stale = 1
	}
	ch <- prometheus.MustNewConstMetric(c.build, prometheus.GaugeValue, 1)
	ch <- prometheus.MustNewConstMetric(c.loaded, prometheus.GaugeValue, toSeconds(status.Loaded))
	ch <- prometheus.MustNewConstMetric(c.stale, prometheus.GaugeValue, stale)
	ch <- prometheus.MustNewConstMetric(c.reloads, prometheus.CounterValue, float64(status.Reloads-status.Failures),
		"succeeded")
	ignored, handshakes, paused := c.deliveries.Ignored(), c.deliveries.Handshakes(), c.deliveries.Paused()
	for name := range c.conf.Get().Hooks {
		ch <- prometheus.MustNewConstMetric(c.ignored, prometheus.CounterValue, float64(ignored[name]), name)
		ch <- prometheus.MustNewConstMetric(c.handshakes, prometheus.CounterValue, float64(handshakes[name]), name)
		isPaused := 0.0
		if paused[name] {
			isPaused = 1
		}
		ch <- prometheus.MustNewConstMetric(c.paused, prometheus.GaugeValue, isPaused, name)
	}
	ch <- prometheus.MustNewConstMetric(c.reloads, prometheus.CounterValue, float64(status.Failures), "failed")
}

// trust collects the metrics of certificates and keys.
type trust struct {
	expiries        func() []certs.Expiry // the first to end first
	keys            func() []auth.KeyInfo
	uses            *keyuse.Table
	ends, due, used *prometheus.Desc
}

func newTrust(expiries func() []certs.Expiry, keys func() []auth.KeyInfo, uses *keyuse.Table) *trust {
	key := []string{"caller", "kind", "key"}
	return &trust{
		expiries: expiries, keys: keys, uses: uses,
		ends: prometheus.NewDesc("sallyport_certificate_not_after_timestamp_seconds",
			"When a certificate, a CA or a CRL ends.", []string{"what", "file", "subject"}, nil),
		due:  prometheus.NewDesc("sallyport_key_not_after_timestamp_seconds", "When a key ends.", key, nil),
		used: prometheus.NewDesc("sallyport_key_last_used_timestamp_seconds", "When a key was last used.", key, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *trust) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.ends, c.due, c.used} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *trust) Collect(ch chan<- prometheus.Metric) {
	ends, due, used := newGauges(c.ends), newGauges(c.due), newGauges(c.used)
	for _, e := range c.expiries() {
		ends.addValue(toSeconds(e.NotAfter), math.Min, e.What, e.File, e.Subject)
	}
	for _, k := range c.keys() {
		if !k.NotAfter.IsZero() {
			due.addValue(toSeconds(k.NotAfter), math.Min, k.Caller, k.Kind, k.ID)
		}
	}
	for _, u := range c.uses.List() {
		used.addValue(toSeconds(u.At), math.Max, u.Caller, u.Kind, u.Key)
	}
	for _, g := range []*gauges{ends, due, used} {
		g.collect(ch)
	}
}

// gauges are the values of one metric by their labels. Labels may come from certificates and senders, so they may be
// invalid UTF-8, and two of them may be equal after invalid bytes are replaced. Either would make the whole scrape
// fail.
type gauges struct {
	desc   *prometheus.Desc
	values map[[3]string]float64
}

func newGauges(d *prometheus.Desc) *gauges { return &gauges{d, map[[3]string]float64{}} }

// addValue adds a value. If the labels have a value already, of chooses between the two.
func (g *gauges) addValue(value float64, of func(a, b float64) float64, labels ...string) {
	var clean [3]string
	for i, text := range labels {
		clean[i] = strings.ToValidUTF8(text, "\uFFFD")
	}
	if other, twice := g.values[clean]; twice {
		value = of(value, other)
	}
	g.values[clean] = value
}

func (g *gauges) collect(ch chan<- prometheus.Metric) {
	for labels, value := range g.values {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, value, labels[:]...)
	}
}

// toSeconds returns t in seconds since 1970. It works for every year, but nanoseconds in an int64 end in 2262.
func toSeconds(t time.Time) float64 { return float64(t.Unix()) + float64(t.Nanosecond())/1e9 }
