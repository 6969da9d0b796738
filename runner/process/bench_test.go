package process_test

import (
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/process"
)

// report tells how long a start took until the command's program ran.
func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	for name, at := range map[string]int{"p50-µs": len(took) / 2, "p99-µs": len(took) * 99 / 100} {
		b.ReportMetric(float64(took[at].Nanoseconds())/1e3, name)
	}
}

// measure times each start, and not the end of what it started.
func measure(b *testing.B, start func(), end func()) {
	b.Helper()
	var took []time.Duration
	for b.Loop() {
		from := time.Now()
		start()
		took = append(took, time.Since(from))
		end()
	}
	report(b, took)
}

func BenchmarkStartBare(b *testing.B) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	var p *os.Process
	measure(b, func() {
		p, err = os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{
			Env: []string{"A=B"}, Files: []*os.File{null, null, null}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		if err != nil {
			b.Fatal(err)
		}
	}, func() {
		if _, err := p.Wait(); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkStartLocal(b *testing.B) {
	l := newBench(b, runner.HookSpec{Command: []string{"/bin/true"}})
	benchStart(b, l.Local, order)
}

func BenchmarkStartSupervisor(b *testing.B) {
	p := newPost(b, job([]string{"/bin/true"}))
	benchStart(b, p.Client, func() runner.Order { return p.order("job", nil) })
}

func benchStart(b *testing.B, s commands, order func() runner.Order) {
	b.Helper()
	var o runner.Order
	measure(b, func() {
		o = order()
		if err := s.Start(o); err != nil {
			b.Fatal(err)
		}
	}, func() {
		ends, err := s.Follow(o.Run)
		if err != nil {
			b.Fatal(err)
		}
		<-ends
		if err := s.Remove(o.Run); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkRoundTrip is what the way to the supervisor and back takes.
func BenchmarkRoundTrip(b *testing.B) {
	p := newPost(b, job([]string{"/bin/true"}))
	measure(b, func() {
		if _, err := p.List(); err != nil {
			b.Fatal(err)
		}
	}, func() {})
}

var _ commands = (*process.Client)(nil)
