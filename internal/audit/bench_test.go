package audit_test

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"sallyport/internal/audit"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// BenchmarkAdmit compares the time to record a run, with the audit log and without, by one goroutine and by sixteen.
// The variants alternate, because other work on the machine changes the figures more than the variants differ.
func BenchmarkAdmit(b *testing.B) {
	state := b.TempDir()
	if err := os.Chmod(state, 0o700); err != nil {
		b.Fatal(err)
	}
	st, err := store.Open(b.Context(), state, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close() //nolint:errcheck // not needed any more
	l := openCheckpoint(b, state, 1<<30)
	admit := func(s runner.Store) {
		r := runner.Run{
			ID: uuid.Must(uuid.NewV7()).String(), Hook: "build", Caller: "ci", Created: time.Now(),
			Params: hook.Values{"region": "eu"},
		}
		r.Flight = r.ID
		if _, err := s.Admit(b.Context(), r, runner.Claim{Key: r.ID}, hook.Policy{}, runner.Feed{}); err != nil {
			b.Error(err)
		}
	}
	burst := func(s runner.Store) {
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() { admit(s) })
		}
		all.Wait()
	}
	audited := audit.Store(st, l)
	ways := []struct {
		name string
		do   func()
		took []time.Duration
	}{
		{name: "record", do: func() { admit(st) }},
		{name: "audited", do: func() { admit(audited) }},
		{name: "record-16", do: func() { burst(st) }},
		{name: "audited-16", do: func() { burst(audited) }},
	}
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for b.Loop() {
		for i := range ways {
			<-pause.C
			from := time.Now()
			ways[i].do()
			ways[i].took = append(ways[i].took, time.Since(from))
		}
	}
	p50 := map[string]float64{}
	for _, w := range ways {
		slices.Sort(w.took)
		p50[w.name] = float64(w.took[len(w.took)/2].Microseconds())
		b.ReportMetric(p50[w.name], w.name+"-p50-µs")
		b.ReportMetric(float64(w.took[len(w.took)*99/100].Microseconds()), w.name+"-p99-µs")
	}
	b.ReportMetric(p50["audited"]/p50["record"], "audited/record")
	b.ReportMetric(p50["audited-16"]/p50["record-16"], "audited/record-16")
}

// BenchmarkVerify reports how fast an audit is verified.
func BenchmarkVerify(b *testing.B) {
	state := b.TempDir()
	l := openCheckpoint(b, state, 1<<30)
	for i := range 50_000 {
		l.Decided(audit.Line{
			Decision: audit.Refused, Status: 503, Request: "K2YK3XBQ6GR5LCYPJZEURA2DYY",
			Address: "203.0.113.7:33926", Caller: "ci", Kind: "hmac",
			Key: "2026-11", Hook: "build", Params: audit.Digest(nil), Run: fmt.Sprint(i), Reason: "busy",
		}, "busy", audit.Verified)
	}
	closeLog(b, l)
	v := newVerifier(b, state)
	var r audit.Report
	for b.Loop() {
		var err error
		if r, err = v.State(state); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(r.Lines)*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
	b.SetBytes(int64(countLines(b, state)))
}
