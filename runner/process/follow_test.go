package process_test

import (
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
)

// TestFollow_ForgetsFollowers checks that nothing is left of a call of Known, or of a follower that has left before the
// end, as when a server has gone.
func TestFollow_ForgetsFollowers(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: []string{"/bin/sleep", "600"}})
	run := b.Begin(t, processtest.NewOrder())
	for range 10 {
		if known, err := b.Known(run); !known || err != nil {
			t.Fatalf("a run in progress is known: %v, %v", known, err)
		}
	}
	stays, err := b.Follow(run)
	if err != nil {
		t.Fatal(err)
	}
	ended, end, err := b.AwaitRun(run)
	if err != nil {
		t.Fatal(err)
	}
	processtest.Eventually(t, "one goroutine follows the run", func() bool {
		const local = "process.(*Local)."
		return len(testenv.FindGoroutines(local+"Known", local+"Follow", local+"AwaitRun")) == 1
	})
	if err := b.Stop(run, runner.Cancelled, 0); err != nil {
		t.Fatal(err)
	}
	if e := <-stays; e.Reason != runner.Cancelled {
		t.Errorf("the other follower got %+v", e)
	}
	<-ended
	if e := end(); e.Reason != runner.Cancelled {
		t.Errorf("got %+v", e)
	}
}
