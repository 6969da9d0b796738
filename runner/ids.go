package runner

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/google/uuid"
)

// idSource creates the ids of runs. Each id is higher than all before it, because the order of ids is the order of
// runs, in lists and when runs are pruned. If the clock was ahead for a while, new ids continue from the highest one.
type idSource struct {
	mu     sync.Mutex
	newest uuid.UUID
}

// nextID returns the id of a new run.
func (s *idSource) nextID() (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.UUID{}, fmt.Errorf("making a run id: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Compare(id[:], s.newest[:]) <= 0 {
		var at [8]byte
		copy(at[2:], s.newest[:6]) // milliseconds (RFC 9562 5.7)
		binary.BigEndian.PutUint64(at[:], binary.BigEndian.Uint64(at[:])+1)
		copy(id[:6], at[2:])
	}
	s.newest = id
	return id, nil
}

// noteRecorded ensures that the ids of new runs are higher than that of a recorded run.
func (s *idSource) noteRecorded(run string) {
	id, err := uuid.Parse(run)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && bytes.Compare(id[:], s.newest[:]) > 0 {
		s.newest = id
	}
}
