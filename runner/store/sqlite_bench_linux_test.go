package store_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// reportTimes reports the median and the 99th percentile of the times of the calls.
func reportTimes(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkAdmit admits runs to free flights and ends them, with one caller and with several at once. The times are
// those of Admit only.
func BenchmarkAdmit(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			s := openStore(b)
			var mu sync.Mutex
			var took []time.Duration
			var next atomic.Int64
			var all sync.WaitGroup
			b.ResetTimer()
			for c := range callers {
				all.Go(func() {
					var mine []time.Duration
					for next.Add(1) <= int64(b.N) {
						r := newRun(b, "build", fmt.Sprint("flight", c))
						before := time.Now()
						admitRun(b, s, r, hook.Policy{})
						mine = append(mine, time.Since(before))
						finishRun(b, s, r.ID)
					}
					mu.Lock()
					defer mu.Unlock()
					took = append(took, mine...)
				})
			}
			all.Wait()
			b.StopTimer()
			reportTimes(b, took)
		})
	}
}

// BenchmarkDurable compares Admit with the minimum, a record of 512 bytes that is appended and synced. It alternates
// between both, because the time of the disk varies more than they differ.
func BenchmarkDurable(b *testing.B) {
	s := openStore(b)
	file, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = file.Close() })
	var appended, admitted []time.Duration
	for b.Loop() {
		before := time.Now()
		if _, err := file.Write(make([]byte, 512)); err != nil {
			b.Fatal(err)
		}
		if err := syscall.Fdatasync(int(file.Fd())); err != nil {
			b.Fatal(err)
		}
		appended = append(appended, time.Since(before))
		r := newRun(b, "build", "flight")
		before = time.Now()
		admitRun(b, s, r, hook.Policy{})
		admitted = append(admitted, time.Since(before))
		finishRun(b, s, r.ID)
		// This happens once per second. After it, the log is overwritten, which costs the disk less than to extend
		// it.
		if len(admitted)%100 == 0 {
			if _, err := s.Checkpoint(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	reportTimes(b, admitted)
	slices.Sort(appended)
	middle := len(appended) / 2
	b.ReportMetric(float64(appended[middle].Microseconds()), "append-p50-µs")
	b.ReportMetric(float64(admitted[middle])/float64(appended[middle]), "admit/append-p50")
}

// fillPast creates a store with n ended runs.
func fillPast(b *testing.B, n int) string {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "state")
	if err := openIn(b, dir).Close(); err != nil {
		b.Fatal(err)
	}
	fill, err := os.ReadFile("testdata/past.sql")
	if err != nil {
		b.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "state.db")+"?_pragma=synchronous(OFF)")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // later reads would show a failure
	if _, err := db.ExecContext(b.Context(),
		strings.NewReplacer("COUNT", fmt.Sprint(n), "HOOKS", "100").Replace(string(fill))); err != nil {
		b.Fatal(err)
	}
	return dir
}

// BenchmarkPast reads a long history and adds to it.
func BenchmarkPast(b *testing.B) {
	for _, n := range []int{1, 1_000_000} {
		b.Run(fmt.Sprint("runs=", n), func(b *testing.B) {
			dir := fillPast(b, n)
			before := time.Now()
			s := openIn(b, dir)
			b.Logf("opened in %v", time.Since(before))
			for name, f := range map[string]runner.Filter{
				"all": {}, "hook": {Hooks: []string{"hook7"}}, "caller": {Callers: []string{"caller7"}},
				"hook+caller+state": {
					Hooks: []string{"hook7"}, Callers: []string{"caller7"},
					States: []runner.State{runner.Succeeded},
				},
				"10 hooks, failed": {Hooks: []string{
					"hook0", "hook1", "hook2", "hook3", "hook4", "hook5", "hook6",
					"hook7", "hook8", "hook9",
				}, States: []runner.State{runner.Failed}},
				"nothing": {Hooks: []string{"none"}},
			} {
				b.Run("List/"+name, func(b *testing.B) {
					var took []time.Duration
					for b.Loop() {
						before := time.Now()
						if _, _, err := s.List(b.Context(), f); err != nil {
							b.Fatal(err)
						}
						took = append(took, time.Since(before))
					}
					reportTimes(b, took)
				})
			}
			b.Run("Admit", func(b *testing.B) {
				var took []time.Duration
				for b.Loop() {
					r := newRun(b, "hook7", "hook7/x")
					before := time.Now()
					admitRun(b, s, r, hook.Policy{})
					took = append(took, time.Since(before))
					finishRun(b, s, r.ID)
				}
				reportTimes(b, took)
			})
			b.Run("Prune", func(b *testing.B) {
				for b.Loop() {
					if _, _, err := s.Prune(b.Context(),
						store.Retention{Default: store.KeepRule{Count: 5_000, Age: 9e18}}); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
