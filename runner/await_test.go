package runner_test

import (
	"errors"
	"testing"
	"time"

	"sallyport/runner"
)

// TestStart_DiskHangs has the disk hang while a run is recorded: the sender gets an error, and if the run was
// recorded, it runs once.
func TestStart_DiskHangs(t *testing.T) {
	t.Parallel()
	h := alone(t)
	b := newBench(t, h)
	goOn := make(chan struct{})
	b.disk.admitted = func() { <-goOn }
	d := of(h, "")
	d.Claim = runner.Claim{Key: "k"}
	if _, err := b.Start(d); !errors.Is(err, runner.ErrUnavailable) {
		t.Errorf("while it hangs: %v", err)
	}
	close(goOn)
	_, err := b.Start(d)
	var first *runner.Replayed
	if !errors.As(err, &first) {
		t.Fatalf("once more: %v", err)
	}
	for b.count() == 0 {
		<-time.After(time.Millisecond)
	}
	if run := b.finish(t, first.Run, 0); run.State != runner.Succeeded {
		t.Errorf("%+v", run)
	}
	if b.started != 1 || b.twice != 0 {
		t.Errorf("%d commands were started, %d twice", b.started, b.twice)
	}
}
