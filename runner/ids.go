package runner

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// idSource creates the ids of runs. Each id is higher than all before it, because the order of ids is the order of
// runs, in lists and when runs are pruned. If the clock was ahead for a while, new ids continue from the highest one.
type idSource struct{ newest atomic.Pointer[uuid.UUID] }

// nextID returns the id of a new run.
func (s *idSource) nextID() (string, error) {
	made, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("making a run id: %w", err)
	}
	for {
		newest, id := s.newest.Load(), made
		if newest != nil && bytes.Compare(id[:], newest[:]) <= 0 {
			var at [8]byte
			copy(at[2:], newest[:6]) // milliseconds (RFC 9562 5.7)
			binary.BigEndian.PutUint64(at[:], binary.BigEndian.Uint64(at[:])+1)
			copy(id[:6], at[2:])
		}
		if s.newest.CompareAndSwap(newest, &id) { // otherwise another run got an id in between
			return id.String(), nil
		}
	}
}

// LowestID returns an id that is lower than those of the runs from a moment on, as a cursor of a list.
func LowestID(at time.Time) string {
	var id uuid.UUID
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(max(at.UnixMilli(), 0)))
	copy(id[:6], ms[2:]) // RFC 9562 5.7
	return id.String()
}

// noteRecorded ensures that the ids of new runs are higher than that of a recorded run.
func (s *idSource) noteRecorded(run string) {
	id, err := uuid.Parse(run)
	for err == nil {
		newest := s.newest.Load()
		if newest != nil && bytes.Compare(id[:], newest[:]) <= 0 || s.newest.CompareAndSwap(newest, &id) {
			return
		}
	}
}
