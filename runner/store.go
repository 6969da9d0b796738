package runner

import (
	"errors"
	"time"
)

// Claim ties a delivery to the run it started, so that the same delivery never
// starts a second one.
type Claim struct {
	Key   string    // of the delivery, unique within its hook; empty where repetition is legitimate
	Until time.Time // a replay is refused by its own age from then on; zero means never
	Body  [32]byte  // SHA-256
	// OneBody is set where Key does not cover the body: the same Key with
	// another Body is an attack.
	OneBody bool
}

// Store is the record of runs and of the claims on the deliveries that started
// them. Its methods may be called at once from many goroutines.
type Store interface {
	// Find returns the run that a delivery to the hook started, or
	// ErrUnknown, or ErrReused.
	Find(hook string, c Claim) (Run, error)
	// Begin records a run together with the claim of its delivery, both or
	// neither. A delivery claimed before is *Replayed or ErrReused. What
	// cannot be recorded is refused: the caller starts nothing on any error.
	Begin(r Run, c Claim) error
	// Finish records the end of a run and returns the run. With giveBack, the
	// claim is given up: the delivery may come again.
	Finish(id string, s State, e End, giveBack bool) (Run, error)
	// Get returns a run, or ErrUnknown.
	Get(id string) (Run, error)
}

// Errors of a Store.
var (
	ErrUnknown = errors.New("no such run")
	ErrReused  = errors.New("one-time credential used again with another body")
	ErrFull    = errors.New("no room to remember another delivery")
)

// Replayed says that a delivery started Run already.
type Replayed struct{ Run Run }

func (e *Replayed) Error() string { return "delivery accepted before, as run " + e.Run.ID }
