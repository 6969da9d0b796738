// Package metrics reports the state of the server to Prometheus.
//
// [Handler] answers a scrape. Each value is read when a scrape asks for it, so nothing is counted twice, and a server
// that is not scraped does no work. Labels come from the configuration and never from a request, so senders cannot make
// new series. docs/metrics.md has a row for each metric, and a test compares both.
package metrics

import (
	"context"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sallyport/auth"
	"sallyport/certs"
	"sallyport/internal/config"
	"sallyport/internal/keyuse"
	"sallyport/internal/readiness"
)

// Missing returns how many lines were not written since the start.
type Missing struct {
	Dropped func() int // lines of the log, because its reader was too slow
	Skipped func() int // lines of the log, because there were too many of one kind
	// lines of the audit log, because there were too many of one kind, or they could not be written
	Suppressed func() int
}

// Deliveries is what became of deliveries.
type Deliveries struct {
	Outcomes   func() map[HookOutcome]int
	Ignored    func() map[string]int  // by hook
	Handshakes func() map[string]int  // by hook
	Refusals   func() map[string]int  // by reason, of all requests and connections
	Paused     func() map[string]bool // hooks that start nothing
}

// HookOutcome is one outcome of deliveries to a hook.
type HookOutcome = struct{ Hook, Outcome string }

// outcomes returns the outcomes that have a series for each hook from the start, so that the first increase is seen.
func outcomes() []string {
	return []string{"accepted", "replayed", "observed", "busy", "refused", "failed"}
}

// Source is what the metrics are read from.
type Source struct {
	Conf       *config.Watcher
	Uses       *keyuse.Table
	Runs       *Runs
	Missing    Missing
	Deliveries Deliveries
	Check      *readiness.Check
	Version    string
}

// Handler answers with the metrics, in the format that the request accepts.
func Handler(from Source) http.Handler {
	r := prometheus.NewRegistry()
	missing := from.Missing
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
		newConfiguration(from),
		newRunsCollector(from.Conf, from.Runs),
		&health{from.Check, prometheus.NewDesc("sallyport_part_ready", "1 if a part of the server works.",
			[]string{"part"}, nil)},
		newTrust(
			func() []certs.Expiry { return from.Conf.Get().Expiries() },
			func() []auth.KeyInfo { return from.Conf.Get().Auth.Keys() }, from.Uses,
		),
	)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// health collects whether the parts of the server work.
type health struct {
	check *readiness.Check
	ready *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *health) Describe(ch chan<- *prometheus.Desc) { ch <- c.ready }

// Collect implements prometheus.Collector.
func (c *health) Collect(ch chan<- prometheus.Metric) {
	faults := c.check.Faults(context.Background())
	for _, part := range c.check.Parts() {
		ready := 1.0
		if slices.ContainsFunc(faults, func(f readiness.Fault) bool { return f.Part == part }) {
			ready = 0
		}
		ch <- prometheus.MustNewConstMetric(c.ready, prometheus.GaugeValue, ready, part)
	}
}

// configuration collects the metrics of the configuration, and of deliveries to its hooks.
type configuration struct {
	conf                                                      *config.Watcher
	from                                                      Deliveries
	build, loaded, stale, reloads, delivered, refused, paused *prometheus.Desc
}

func newConfiguration(from Source) *configuration {
	return &configuration{
		conf: from.Conf, from: from.Deliveries,
		build: prometheus.NewDesc("sallyport_build_info", "1, for the version that runs.", nil,
			prometheus.Labels{"version": from.Version}),
		loaded: prometheus.NewDesc("sallyport_configuration_loaded_timestamp_seconds",
			"When the configuration in force was loaded.", nil, nil),
		stale: prometheus.NewDesc("sallyport_configuration_stale", "1 if a newer configuration was refused.", nil, nil),
		reloads: prometheus.NewDesc("sallyport_reloads_total", "Attempts to reload the configuration.",
			[]string{"result"}, nil),
		delivered: prometheus.NewDesc("sallyport_deliveries_total", "What became of deliveries.",
			[]string{"hook", "outcome"}, nil),
		refused: prometheus.NewDesc("sallyport_refused_total", "Requests and connections that were refused.",
			[]string{"reason"}, nil),
		paused: prometheus.NewDesc("sallyport_hook_paused", "1 if the hook is paused.", []string{"hook"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *configuration) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.build, c.loaded, c.stale, c.reloads, c.delivered, c.refused, c.paused} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *configuration) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	count := func(d *prometheus.Desc, value int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	status := c.conf.Status()
	gauge(c.build, 1)
	gauge(c.loaded, toSeconds(status.Loaded))
	gauge(c.stale, toNumber(!status.Failed.IsZero()))
	count(c.reloads, status.Reloads-status.Failures, "succeeded")
	count(c.reloads, status.Failures, "failed")
	of, ignored, handshakes, paused := c.from.Outcomes(), c.from.Ignored(), c.from.Handshakes(), c.from.Paused()
	for name := range c.conf.Get().Hooks {
		for _, outcome := range outcomes() {
			count(c.delivered, of[HookOutcome{name, outcome}], name, outcome)
		}
		count(c.delivered, ignored[name], name, "ignored")
		count(c.delivered, handshakes[name], name, "handshake")
		gauge(c.paused, toNumber(paused[name]), name)
	}
	refusals := c.from.Refusals()
	for _, reason := range []string{"handshake", "too-often", "unauthorized"} { // so that their first increase is seen
		refusals[reason] += 0
	}
	for reason, n := range refusals {
		count(c.refused, n, reason)
	}
}

func toNumber(is bool) float64 {
	if is {
		return 1
	}
	return 0
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
