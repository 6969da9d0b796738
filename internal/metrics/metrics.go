// Package metrics tells Prometheus how the server is doing. Everything is
// looked up when it is asked for.
package metrics

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sallyport/internal/keyuse"
	"sallyport/internal/live"
)

// Handler answers with the metrics, in the format that is asked for.
func Handler(conf *live.Configuration, uses *keyuse.Table, version string) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&configuration{
			conf:    conf,
			build:   prometheus.NewDesc("sallyport_build_info", "1, for the version that runs.", nil, prometheus.Labels{"version": version}),
			loaded:  prometheus.NewDesc("sallyport_configuration_loaded_timestamp_seconds", "When the configuration in force was loaded.", nil, nil),
			stale:   prometheus.NewDesc("sallyport_configuration_stale", "1 if a newer configuration was refused.", nil, nil),
			reloads: prometheus.NewDesc("sallyport_reloads_total", "Attempts to load the configuration anew.", []string{"result"}, nil),
		},
		&trust{
			conf: conf, uses: uses,
			ends: prometheus.NewDesc("sallyport_certificate_not_after_timestamp_seconds", "When a certificate, a CA or a CRL ends.", []string{"what", "file", "subject"}, nil),
			used: prometheus.NewDesc("sallyport_key_last_used_timestamp_seconds", "When a key was last used.", []string{"caller", "scheme", "key"}, nil),
		},
	)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// configuration is what there is to say about the configuration.
type configuration struct {
	conf                          *live.Configuration
	build, loaded, stale, reloads *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *configuration) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.build, c.loaded, c.stale, c.reloads} {
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
	ch <- prometheus.MustNewConstMetric(c.loaded, prometheus.GaugeValue, seconds(status.Loaded))
	ch <- prometheus.MustNewConstMetric(c.stale, prometheus.GaugeValue, stale)
	ch <- prometheus.MustNewConstMetric(c.reloads, prometheus.CounterValue, float64(status.Reloads-status.Failures), "succeeded")
	ch <- prometheus.MustNewConstMetric(c.reloads, prometheus.CounterValue, float64(status.Failures), "failed")
}

// trust is what there is to say about certificates and keys.
type trust struct {
	conf       *live.Configuration
	uses       *keyuse.Table
	ends, used *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *trust) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.ends
	ch <- c.used
}

// Collect implements prometheus.Collector.
func (c *trust) Collect(ch chan<- prometheus.Metric) {
	for _, e := range c.conf.Get().Expiries() {
		ch <- prometheus.MustNewConstMetric(c.ends, prometheus.GaugeValue, seconds(e.NotAfter), utf8(e.What), utf8(e.File), utf8(e.Subject))
	}
	for _, u := range c.uses.List() {
		ch <- prometheus.MustNewConstMetric(c.used, prometheus.GaugeValue, seconds(u.At), u.Caller, u.Scheme, utf8(u.Key))
	}
}

// utf8 keeps what a certificate may say from being no label: that would spoil
// all metrics.
func utf8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / float64(time.Second) }
