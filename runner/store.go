package runner

import (
	"context"
	"errors"
	"time"

	"sallyport/runner/hook"
)

// Claim binds a delivery to the run that it started, so that the same delivery never starts a second run.
type Claim struct {
	Key   string    // unique within the hook, or everywhere with OneBody; empty if it may be repeated
	Also  []string  // other keys of the same delivery, each unique within the hook: it is a replay if any was claimed
	Until time.Time // from then on a replay is refused for its age; zero means never
	Body  [32]byte  // SHA-256
	// OneBody is set if Key does not cover the body: the same Key with another Body is then an attack.
	OneBody bool
	// Named is set if the sender chose the key: the same key with another Body is then another delivery, by a mistake
	// of the sender.
	Named bool
	// UntilSuccess is set if the delivery may start another run after a run of it that did not succeed. Its keys then
	// name the new run.
	UntilSuccess bool
}

// Feed is the input of a command in addition to its parameters. It is kept until the run
// ends, and for longer if the run was interrupted.
type Feed struct {
	Trace string // W3C traceparent, may be empty
	Stdin []byte
}

// Admission is the result of Admit.
type Admission struct {
	Run        Run   // as recorded: running, so that it must be started now, or queued
	Joined     bool  // Run was queued before, and now has the parameters of this delivery
	Position   int   // of a queued run, 1 is next
	Stop       *Run  // Replace: the running run, to be cancelled so that Run can start; or nil
	Superseded []Run // Replace: queued runs that ended as cancelled
}

// AfterClaims says what becomes of the claims on a run that ends.
type AfterClaims int

const (
	// KeepClaims answers a repeated delivery of the run with the run.
	KeepClaims AfterClaims = iota
	// RemoveClaims accepts the deliveries of the run again. It is for a run that was recorded, but not started.
	RemoveClaims
)

// AfterQueue says what becomes of the first queued run of a flight when the run in progress ends.
type AfterQueue int

const (
	// PromoteNext makes it running.
	PromoteNext AfterQueue = iota
	// LeaveQueued leaves it to the next server.
	LeaveQueued
)

// Attempt is the next attempt at a run that failed.
type Attempt struct {
	ID      string
	Created time.Time
	After   time.Duration // until it may start
}

// Filter says which runs List returns. Empty fields do not restrict them.
type Filter struct {
	Hooks   []string
	Callers []string
	Joined  string // another caller joined a delivery of this caller: it is in StandsFor
	States  []State
	Since   time.Time // created at or after
	Until   time.Time // created before
	Before  string    // cursor: the id of the last run of the page before
	Limit   int       // at most; 0 means 50
}

// Store has runs and the claims on the deliveries that started them. Its methods may be called concurrently. What
// they return is durable.
type Store interface {
	// Find returns the run that a delivery to the hook started, or ErrReused or ErrOtherBody, or ErrUnknown if the
	// delivery may start a run.
	Find(ctx context.Context, hook string, c Claim) (Run, error)
	// Admit records a run together with the claim of its delivery, both or neither. A flight has at most one running
	// run. Errors are *Replayed, ErrReused, ErrOtherBody, *Busy, *Paused and ErrUnavailable; nothing may be started
	// after an error.
	Admit(ctx context.Context, r Run, c Claim, p hook.Policy, in Feed) (Admission, error)
	// Finish records the end of a run and, with PromoteNext, makes the next run of its flight running in the same
	// transaction. It may be repeated.
	Finish(ctx context.Context, id string, s State, e End, c AfterClaims, q AfterQueue) (ended Run, next *Run,
		err error)
	// FinishAndRetry is Finish for a run that failed. In the same transaction it queues the next attempt at the run, as
	// the first of its flight, and as Again of the run. Without one, the end of the run was requested, or recorded before.
	FinishAndRetry(ctx context.Context, run Run, e End, again Attempt, q AfterQueue) (ended Run, next *Run, err error)
	// Promote makes the next run of each of the flights running where none is, and
	// returns those runs. Without arguments, it does so for all flights.
	Promote(ctx context.Context, flights ...string) ([]Run, error)
	// NotDue returns for each of the flights with runs that are not due yet how long it takes until the first of these is
	// due: Promote does not make it running before. Without arguments, it does so for all flights.
	NotDue(ctx context.Context, flights ...string) (map[string]time.Duration, error)
	// Requeue queues a running run again as the first of its flight, because its command was not started. If the end of
	// the run was requested, the run ends. A run that is not running is not changed. Requeue returns the run as it is
	// then.
	Requeue(ctx context.Context, id string) (Run, error)
	// Feed returns the input of the command of a run, or ErrUnknown.
	Feed(ctx context.Context, id string) (Feed, error)
	// Get returns a run, or ErrUnknown.
	Get(ctx context.Context, id string) (Run, error)
	// List returns the newest runs first, and the cursor of the next page,
	// empty on the last one.
	List(ctx context.Context, f Filter) (runs []Run, next string, err error)
	// Active returns the runs that are queued or running.
	Active(ctx context.Context) ([]Run, error)
	// Cancel ends a queued run as cancelled, and reports whether it did. For a running run, it records that the run
	// should end as cancelled. It returns the run as it is then.
	Cancel(ctx context.Context, id string) (run Run, ended bool, err error)
	// Pause records the pause of a hook in place of an earlier one, and returns it with its begin and end: no run of
	// the hook starts then, neither by Admit nor by Finish or Promote. Deliveries are queued by the policy of the hook,
	// or refused with *Paused.
	Pause(ctx context.Context, p Pause) (Pause, error)
	// Resume ends the pause of a hook, and reports whether there was one.
	Resume(ctx context.Context, hook string) (paused bool, err error)
	// Pauses returns the pauses that have not ended, by hook.
	Pauses(ctx context.Context) ([]Pause, error)
	// EndPauses removes the pauses whose time is over, and returns their hooks.
	EndPauses(ctx context.Context) (hooks []string, err error)
	// ExpireQueued ends the queued runs of a hook that have waited for longer than longest since their last delivery
	// was accepted, as timed out, and returns them. Changes of the wall clock do not affect it.
	ExpireQueued(ctx context.Context, hook string, longest time.Duration) ([]Run, error)
}

// Errors of a Store.
var (
	ErrUnknown     = errors.New("no such run")
	ErrReused      = errors.New("one-time credential used again with another body")
	ErrOtherBody   = errors.New("the id of an earlier delivery with another body")
	ErrUnavailable = errors.New("the store cannot record")
	// ErrUncertain is wrapped together with ErrUnavailable if the next server may nevertheless find the operation
	// recorded.
	ErrUncertain = errors.New("it is unknown whether it was recorded")
)

// Replayed says that an earlier, equal delivery started Run.
type Replayed struct{ Run Run }

func (e *Replayed) Error() string { return "delivery accepted before, as run " + e.Run.ID }
