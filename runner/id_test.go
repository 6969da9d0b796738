package runner_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/uuid"

	"sallyport/runner"
	"sallyport/runner/hook"
)

// TestRunID_AboveAllRecorded: a clock that was ahead for a while leaves runs with high ids. New runs must come after
// them, or they would be the first to be pruned.
func TestRunID_AboveAllRecorded(t *testing.T) {
	h := policy(t, queueOf(5))
	b := newBench(t, h)
	var ahead uuid.UUID
	var at [8]byte
	binary.BigEndian.PutUint64(at[:], uint64(time.Now().Add(24*time.Hour).UnixMilli()))
	copy(ahead[:], at[2:])
	ahead[6], ahead[8] = 0x70, 0x80 // version 7 (RFC 9562)
	_, err := b.disk.SQLite.Admit(t.Context(), runner.Run{
		ID: ahead.String(), Hook: h.Name, Caller: "ci", Flight: h.Flight(hook.Values{"x": "1"}), Params: hook.Values{"x": "1"}, Created: b.now(),
	}, runner.Claim{}, h.Busy, runner.Feed{})
	if err != nil {
		t.Fatal(err)
	}
	b.crash(t)
	b.recover(t)
	last := ahead.String()
	for _, x := range []string{"2", "3", "4"} {
		run, err := b.Start(of(h, x))
		if err != nil {
			t.Fatal(err)
		}
		if id, err := uuid.Parse(run.ID); run.ID <= last || err != nil || id.Version() != 7 {
			t.Errorf("the run after %s is %s, version %d, %v", last, run.ID, id.Version(), err)
		}
		last = run.ID
	}
}
