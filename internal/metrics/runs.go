package metrics

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/internal/config"
	"sallyport/runner"
	"sallyport/runner/hook"
)

// durationBuckets returns the upper bounds of the durations of runs, in seconds.
func durationBuckets() []float64 { return []float64{0.1, 1, 10, 60, 300, 900, 3600, 4 * 3600} }

// Runs is a store that counts the runs that end in it. Every end of a run is recorded in the store, so none is missed.
type Runs struct {
	runner.Store

	mu     sync.Mutex
	byHook map[string]*hookRuns
}

// hookRuns is what is known of the runs of a hook.
type hookRuns struct {
	ended   map[runner.State]int       // since the start
	last    map[runner.State]time.Time // also of earlier starts, as far as Load has found them
	retries int
	output  int64
	buckets map[float64]uint64
	seconds float64
	timed   uint64
}

// CountRuns returns a store that counts.
func CountRuns(s runner.Store) *Runs { return &Runs{Store: s, byHook: map[string]*hookRuns{}} }

// Load reads when the last run of each hook ended in each state, so that a restart does not hide a failed run.
func (s *Runs) Load(ctx context.Context, hooks map[string]*hook.Hook) error {
	var errs []error
	for name := range hooks {
		for _, state := range runner.Ends() {
			found, _, err := s.List(ctx, runner.Filter{Hooks: []string{name}, States: []runner.State{state}, Limit: 1})
			errs = append(errs, err)
			for i := range found {
				s.noteLast(&found[i])
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Runs) noteLast(r *runner.Run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ofHook(r.Hook).noteLast(r.State, r.Ended)
}

// ofHook returns what is known of a hook. The caller holds mu.
func (s *Runs) ofHook(name string) *hookRuns {
	if s.byHook[name] == nil {
		s.byHook[name] = &hookRuns{
			ended: map[runner.State]int{}, last: map[runner.State]time.Time{}, buckets: map[float64]uint64{},
		}
	}
	return s.byHook[name]
}

func (h *hookRuns) noteLast(state runner.State, at time.Time) {
	if at.After(h.last[state]) {
		h.last[state] = at
	}
}

// addEnd counts a run that has ended.
func (s *Runs) addEnd(r *runner.Run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.ofHook(r.Hook)
	h.ended[r.State]++
	h.output += r.Output.Bytes
	h.noteLast(r.State, r.Ended)
	if r.Started.IsZero() || r.Ended.Before(r.Started) {
		return
	}
	took := r.Ended.Sub(r.Started).Seconds()
	h.timed++
	h.seconds += took
	for _, bound := range durationBuckets() {
		if took <= bound {
			h.buckets[bound]++
		}
	}
}

func (s *Runs) addRetry(hook string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ofHook(hook).retries++
}

// Admit implements runner.Store.
func (s *Runs) Admit(
	ctx context.Context, r runner.Run, c runner.Claim, p hook.Policy, in runner.Feed,
) (runner.Admission, error) {
	a, err := s.Store.Admit(ctx, r, c, p, in)
	for i := range a.Superseded {
		s.addEnd(&a.Superseded[i])
	}
	if err == nil && r.Attempt > 0 {
		s.addRetry(r.Hook)
	}
	return a, err
}

// Finish implements runner.Store.
func (s *Runs) Finish(
	ctx context.Context, id string, state runner.State, e runner.End, c runner.AfterClaims, q runner.AfterQueue,
) (ended runner.Run, next *runner.Run, err error) {
	ended, next, err = s.Store.Finish(ctx, id, state, e, c, q)
	if err == nil {
		s.addEnd(&ended)
	}
	return ended, next, err
}

// FinishAndRetry implements runner.Store.
func (s *Runs) FinishAndRetry(
	ctx context.Context, r runner.Run, e runner.End, again runner.Attempt, q runner.AfterQueue,
) (ended runner.Run, next *runner.Run, err error) {
	ended, next, err = s.Store.FinishAndRetry(ctx, r, e, again, q)
	if err == nil {
		s.addEnd(&ended)
	}
	if err == nil && ended.Again != "" {
		s.addRetry(ended.Hook)
	}
	return ended, next, err
}

// Requeue implements runner.Store.
func (s *Runs) Requeue(ctx context.Context, id string) (runner.Run, error) {
	r, err := s.Store.Requeue(ctx, id)
	switch {
	case err != nil:
	case r.State.Ended():
		s.addEnd(&r)
	case r.State == runner.Queued:
		s.addRetry(r.Hook)
	}
	return r, err
}

// Cancel implements runner.Store.
func (s *Runs) Cancel(ctx context.Context, id string) (runner.Run, bool, error) {
	r, ended, err := s.Store.Cancel(ctx, id)
	if ended && err == nil {
		s.addEnd(&r)
	}
	return r, ended, err
}

// ExpireQueued implements runner.Store.
func (s *Runs) ExpireQueued(ctx context.Context, name string, longest time.Duration) ([]runner.Run, error) {
	expired, err := s.Store.ExpireQueued(ctx, name, longest)
	for i := range expired {
		s.addEnd(&expired[i])
	}
	return expired, err
}

// runsCollector collects the metrics of runs.
type runsCollector struct {
	conf *config.Watcher
	runs *Runs

	ended, duration, current, last, succeeded, retries, output *prometheus.Desc
}

func newRunsCollector(conf *config.Watcher, runs *Runs) *runsCollector {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("sallyport_"+name, help, labels, nil)
	}
	return &runsCollector{
		conf: conf, runs: runs,
		ended:     describe("runs_ended_total", "Runs that ended.", "hook", "state"),
		duration:  describe("run_duration_seconds", "How long runs took.", "hook"),
		current:   describe("runs", "Runs that have not ended.", "hook", "state"),
		last:      describe("run_last_end_timestamp_seconds", "When the last run ended in a state.", "hook", "state"),
		succeeded: describe("run_last_succeeded", "1 if the last run that was not cancelled succeeded.", "hook"),
		retries:   describe("run_retries_total", "Starts of commands that were tried again.", "hook"),
		output:    describe("run_output_bytes_total", "Bytes that commands wrote.", "hook"),
	}
}

// Describe implements prometheus.Collector.
func (c *runsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.ended, c.duration, c.current, c.last, c.succeeded, c.retries, c.output,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *runsCollector) Collect(ch chan<- prometheus.Metric) {
	hooks := slices.Sorted(maps.Keys(c.conf.Get().Hooks))
	c.collectCurrent(ch, hooks)
	c.runs.mu.Lock()
	defer c.runs.mu.Unlock()
	for _, name := range hooks {
		h := c.runs.ofHook(name)
		for _, state := range runner.Ends() {
			ch <- prometheus.MustNewConstMetric(c.ended, prometheus.CounterValue, float64(h.ended[state]), name,
				string(state))
			if at := h.last[state]; !at.IsZero() {
				ch <- prometheus.MustNewConstMetric(c.last, prometheus.GaugeValue, toSeconds(at), name, string(state))
			}
		}
		if succeeded, known := h.lastSucceeded(); known {
			ch <- prometheus.MustNewConstMetric(c.succeeded, prometheus.GaugeValue, succeeded, name)
		}
		ch <- prometheus.MustNewConstMetric(c.retries, prometheus.CounterValue, float64(h.retries), name)
		ch <- prometheus.MustNewConstMetric(c.output, prometheus.CounterValue, float64(h.output), name)
		buckets := map[float64]uint64{}
		for _, bound := range durationBuckets() {
			buckets[bound] = h.buckets[bound]
		}
		ch <- prometheus.MustNewConstHistogram(c.duration, h.timed, h.seconds, buckets, name)
	}
}

// collectCurrent collects the runs that the store has as running and queued. Without an answer of the store, there are
// no values.
func (c *runsCollector) collectCurrent(ch chan<- prometheus.Metric, hooks []string) {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	active, err := c.runs.Active(ctx)
	if err != nil {
		return
	}
	type key struct {
		hook  string
		state runner.State
	}
	count := map[key]int{}
	for i := range active {
		count[key{active[i].Hook, active[i].State}]++
	}
	for _, name := range hooks {
		for _, state := range []runner.State{runner.Running, runner.Queued} {
			ch <- prometheus.MustNewConstMetric(c.current, prometheus.GaugeValue, float64(count[key{name, state}]),
				name, string(state))
		}
	}
}

// lastSucceeded returns 1 if the last run succeeded, and 0 if it failed. A cancelled run says neither.
func (h *hookRuns) lastSucceeded() (succeeded float64, known bool) {
	var latest time.Time
	for state, at := range h.last {
		if state != runner.Cancelled && at.After(latest) {
			latest, succeeded = at, 0
			if state == runner.Succeeded {
				succeeded = 1
			}
		}
	}
	return succeeded, !latest.IsZero()
}
