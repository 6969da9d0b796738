package supervisor_test

import (
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
	"sallyport/runner/process/rundir"
)

// way is one of the compared ways to start a command.
type way struct {
	name  string
	start func() (end func())
	took  []time.Duration
}

// BenchmarkStart compares how long it takes until the program of the command runs. The ways alternate, because other
// load on the machine changes the figures more than they differ. There is a pause before each start, as there is
// between runs.
func BenchmarkStart(b *testing.B) {
	local, supplied := processtest.NewBench(b, hook.Spec{Command: []string{"/bin/true"}}), processtest.NewBench(b, hook.Spec{Command: []string{"/bin/true"}})
	supplied.KeepReady()
	p := newPost(b, job([]string{"/bin/true"}))
	ways := []way{
		{name: "bare", start: startBare(b)},
		{name: "local", start: starter(b, local.Subject, processtest.NewOrder)},
		{name: "supplied", start: starter(b, supplied.Subject, processtest.NewOrder)},
		{name: "supervisor", start: starter(b, p.Subject, func() runner.Order { return p.order("job", nil) })},
		{name: "roundtrip", start: func() func() {
			if _, err := p.List(); err != nil {
				b.Fatal(err)
			}
			return func() {}
		}},
	}
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for b.Loop() {
		for i := range ways {
			<-pause.C
			from := time.Now()
			end := ways[i].start()
			ways[i].took = append(ways[i].took, time.Since(from))
			end()
		}
	}
	bare := 0.0
	for i, w := range ways {
		slices.Sort(w.took)
		p50 := float64(w.took[len(w.took)/2].Microseconds())
		if i == 0 {
			bare = p50
		}
		b.ReportMetric(p50, w.name+"-p50-µs")
		b.ReportMetric(float64(w.took[len(w.took)*99/100].Microseconds()), w.name+"-p99-µs")
		b.ReportMetric(p50/bare, w.name+"/bare")
	}
}

func startBare(b *testing.B) func() (end func()) {
	b.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = null.Close() })
	return func() func() {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{
			Env: []string{"A=B"}, Files: []*os.File{null, null, null}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		if err != nil {
			b.Fatal(err)
		}
		return func() {
			if _, err := p.Wait(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func starter(b *testing.B, s processtest.Subject, order func() runner.Order) func() (end func()) {
	b.Helper()
	return func() func() {
		o := order()
		if err := s.Start(o); err != nil {
			b.Fatal(err)
		}
		return func() {
			ends, err := s.Follow(o.Run)
			if err != nil {
				b.Fatal(err)
			}
			<-ends
			if err := rundir.Remove(s.Dir, o.Run); err != nil {
				b.Fatal(err)
			}
		}
	}
}
