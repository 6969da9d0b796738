package process_test

import (
	"testing"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
)

// TestFollow_ForgetsFollowers checks that a run keeps no follower for a call of Known, and none that has left, as
// when a server has gone.
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
	_, leave, err := b.FollowUntil(run)
	if err != nil {
		t.Fatal(err)
	}
	if n := b.Followers(run); n != 2 {
		t.Errorf("%d follow the run, and not 2", n)
	}
	leave()
	leave()
	if n := b.Followers(run); n != 1 {
		t.Errorf("%d follow the run, and not 1", n)
	}
	if err := b.Stop(run, runner.Cancelled, 0); err != nil {
		t.Fatal(err)
	}
	if e := <-stays; e.Reason != runner.Cancelled {
		t.Errorf("the other follower got %+v", e)
	}
	leave() // also allowed after the run is over
}
