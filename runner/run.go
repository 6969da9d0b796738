package runner

import (
	"errors"
	"time"

	"sallyport/runner/hook"
)

// State is where a run stands.
type State string

// The states. All but Queued and Running are ends.
const (
	Queued      State = "queued"
	Running     State = "running"
	Succeeded   State = "succeeded"   // exit code 0
	Failed      State = "failed"      // any other exit code, a signal, or a command that could not start
	TimedOut    State = "timed_out"   // stopped because its time was over
	Cancelled   State = "cancelled"   // stopped because somebody asked
	Interrupted State = "interrupted" // its end was not seen; the exit code is unknown
)

// Ended tells whether the run is over.
func (s State) Ended() bool { return s != Queued && s != Running }

// Run is one execution of a hook's command, as the record keeps it.
type Run struct {
	ID      string            `json:"id"` // UUIDv7
	Hook    string            `json:"hook"`
	Caller  string            `json:"caller,omitempty"`
	Flight  string            `json:"flight"`
	State   State             `json:"state"`
	Params  map[string]string `json:"params,omitempty"`
	Created time.Time         `json:"created"`
	Started time.Time         `json:"started,omitzero"`
	RerunOf string            `json:"rerun_of,omitempty"` // the run that this one repeats
	Attempt int               `json:"attempt,omitempty"`  // how often it was repeated by itself, after an interruption
	// Boot is the start of the machine under which the command was ordered: it
	// may have run, whatever is left of it on the disk. Empty before that.
	Boot string `json:"-"`
	// Wish is the state in which the run was asked to end while it ran, or empty.
	Wish State `json:"-"`
	// StandsFor are other callers, whose deliveries wait in this run for want
	// of one of their own: those of Join before Caller's.
	StandsFor []string `json:"stands_for,omitempty"`
	// Cut names the parameters of which a list shows only the beginning.
	Cut []string `json:"cut,omitempty"`
	End
}

// End is how a run ended. Its fields are zero while the run is under way.
type End struct {
	Ended    time.Time `json:"ended,omitzero"`
	ExitCode *int      `json:"exit_code,omitempty"` // absent when a signal ended it, or nobody saw
	Signal   string    `json:"signal,omitempty"`    // SIGTERM
	Reason   State     `json:"-"`                   // TimedOut, Cancelled or Interrupted, when that is why it ended
	Error    string    `json:"error,omitempty"`     // why it could not start
	Detail   string    `json:"-"`                   // the same with what only a local administrator may read
	Output   Output    `json:"output,omitzero"`
	// LeftBehind counts the processes that were alive when the main process had
	// ended by itself, and that were ended then.
	LeftBehind int `json:"left_behind,omitempty"`
}

// Output counts what the command wrote to stdout and stderr together.
type Output struct {
	Bytes   int64 `json:"bytes"`   // all of it
	Dropped int64 `json:"dropped"` // of the middle, not kept
}

// Order is what the server asks for: never an argv, so that whoever takes the
// server over still gets nothing started but what the file allows.
type Order struct {
	Run     string
	Hook    string
	Digest  string // of the hook as the server has it: Hook.Digest
	Caller  string
	Values  hook.Values // of the parameters; compiled to an argv where the process is started
	Trace   string      // W3C traceparent, may be empty
	Stdin   []byte
	Created time.Time
}

// Errors of Start of Processes that the runner tells apart. After all others, too, nothing was started, and the same
// order may be carried out later, but for fs.ErrExist: then it was carried out before.
var (
	// ErrRefused: the order will never be carried out, because of what it asks for.
	ErrRefused = errors.New("the order is refused")
	// ErrFlight: something of the flight is alive, whatever the record says.
	ErrFlight = errors.New("a command of the same flight is still running")
	// ErrNotNow: who starts commands is on its way out, or not there.
	ErrNotNow = errors.New("commands cannot be started now")
	// ErrLeft: this server is not told any more, and the next one finds out.
	ErrLeft = errors.New("left to the next server")
)

// ErrFull is why Start of Processes refuses a run that there is no space for.
// Nothing is left of it, so that it may be started later.
var ErrFull = errors.New("no space for a run")

// Processes is the seam to what starts and follows commands. Errors of Start
// are for the operator.
type Processes interface {
	// Start returns once the command runs, or why it does not. While that
	// cannot be known it does not return.
	Start(Order) error
	// Known tells whether a run was ever given to Start, even if its end was
	// not seen.
	Known(run string) (bool, error)
	// Follow yields the end of a run once and is closed, or is closed without
	// an end when the run is left to the next server. It is ErrUnknown when no
	// run of that id was ever started.
	Follow(run string) (<-chan End, error)
	// Stop ends the run's whole tree: TERM, the hook's grace, KILL. It returns
	// at once. Grace below zero means the hook's own.
	Stop(run string, why State, grace time.Duration) error
	// Revoke has the command of a run never start, and the run end for a reason: Start returns fs.ErrExist from then on,
	// and Follow that end. It reports false where the command was started before, or is being started. It does not
	// wait for who starts commands.
	Revoke(run string, why State) (revoked bool, err error)
	// List names the runs that are under way.
	List() ([]string, error)
}

// Ends are the states in which a run is over.
func Ends() []State { return []State{Succeeded, Failed, TimedOut, Cancelled, Interrupted} }
