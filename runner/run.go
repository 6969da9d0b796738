package runner

import (
	"errors"
	"time"

	"sallyport/runner/hook"
)

// State is the state of a run.
type State string

// The states. All except Queued and Running are final.
const (
	Queued      State = "queued"
	Running     State = "running"
	Succeeded   State = "succeeded"   // exit code 0
	Failed      State = "failed"      // any other exit code, a signal, or a command that could not start
	TimedOut    State = "timed_out"   // stopped because its timeout expired
	Cancelled   State = "cancelled"   // stopped on request
	Interrupted State = "interrupted" // its end was not observed; the exit code is unknown
)

// Ended reports whether the run has ended.
func (s State) Ended() bool { return s != Queued && s != Running }

// Rerun says whether an interrupted run is queued again without a request.
type Rerun string

// The rules of Rerun.
const (
	NoRerun     Rerun = ""
	AlwaysRerun Rerun = "always"
	NewestRerun Rerun = "newest" // only if no run is queued in its flight, because that one is newer
)

// MayStartAgain reports whether a delivery whose claim has UntilSuccess may start another run after r. It may not if r
// was cancelled on request or replaced: a person or a newer delivery has decided that.
func (r *Run) MayStartAgain() bool {
	if r.Wish != "" { // it may have ended by itself just before it was stopped
		return false
	}
	switch r.State {
	case Failed, TimedOut, Interrupted:
		return true
	case Cancelled: // at the end of a server, nobody requested it
		return !r.Started.IsZero()
	case Queued, Running, Succeeded:
	}
	return false
}

// Run is one execution of the command of a hook, as the store has it. It has many fields, because each is a column of
// the store or a member of the answers about runs.
type Run struct {
	ID      string            `json:"id"` // UUIDv7
	Hook    string            `json:"hook"`
	Caller  string            `json:"caller,omitempty"`
	Flight  string            `json:"flight"`
	Title   string            `json:"title,omitempty"` // Hook.Title of Params
	State   State             `json:"state"`
	Params  map[string]string `json:"params,omitempty"`
	Created time.Time         `json:"created"`
	Started time.Time         `json:"started,omitzero"`
	RerunOf string            `json:"rerun_of,omitempty"` // the run that this one repeats
	Attempt int               `json:"attempt,omitempty"`  // how often the server repeated it without a request
	// Again is the run by which the server repeats this one because it failed, or empty.
	Again string `json:"retried_as,omitempty"`
	// Due is when a queued run may start at the earliest, as it was expected when that was decided. The store measures it
	// with a clock that is never set.
	Due time.Time `json:"due,omitzero"`
	// Retries is how many attempts before this one failed. Attempt also counts those that were interrupted.
	Retries int `json:"-"`
	// Boot identifies the start of the machine during which the command was ordered. The command may have run since
	// then, even if its files are missing from the disk. It is empty until the command is ordered.
	Boot string `json:"-"`
	// OnInterrupted says whether the run is queued again if it is interrupted, as its hook had it when the run was
	// accepted.
	OnInterrupted Rerun `json:"-"`
	// Wish is the state in which the run was requested to end while it ran, or empty.
	Wish State `json:"-"`
	// StandsFor has the other callers that this queued run stands for: Join put their deliveries into this run before
	// that of Caller.
	StandsFor []string `json:"stands_for,omitempty"`
	// Cut has the names of the parameters with values that were shortened for a list.
	Cut []string `json:"cut,omitempty"`
	End
}

// End is how a run ended. Its fields are zero while the run is in progress.
type End struct {
	Ended    time.Time `json:"ended,omitzero"`
	ExitCode *int      `json:"exit_code,omitempty"` // absent if a signal ended it, or its end was not observed
	Signal   string    `json:"signal,omitempty"`    // SIGTERM
	Reason   State     `json:"-"`                   // TimedOut, Cancelled or Interrupted, if that is why it ended
	Error    string    `json:"error,omitempty"`     // why it could not start
	Detail   string    `json:"-"`                   // the same, with details that only a local administrator may read
	Output   Output    `json:"output,omitzero"`
	// LeftBehind is the number of processes that were still alive when the main process had ended, and that were then
	// killed.
	LeftBehind int `json:"left_behind,omitempty"`
}

// Output counts what the command wrote to stdout and stderr together.
type Output struct {
	Bytes   int64 `json:"bytes"`   // all of it
	Dropped int64 `json:"dropped"` // bytes of the middle that were not kept
}

// Order is the request to start the command of a run. It has no argv, so that even an attacker that controls the server
// can start only what the configuration file allows.
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

// Errors of Processes.Start that the runner distinguishes. After fs.ErrExist, the command was started by an earlier
// order. After every other error nothing was started, and the same order may be given again.
var (
	// ErrRefused means that the order can never be carried out, because of its content.
	ErrRefused = errors.New("the order is refused")
	// ErrFlight means that a process of the flight is alive, even if the store has no running run of it.
	ErrFlight = errors.New("a command of the same flight is still running")
	// ErrNotNow means that the supervisor is about to end, or cannot be reached.
	ErrNotNow = errors.New("commands cannot be started now")
	// ErrLeft means that this server gets no more answers, and that the next server learns the result.
	ErrLeft = errors.New("left to the next server")
)

// ErrFull is the error of Processes.Start without space for a run. No trace of the run is left, so that it may be
// started later.
var ErrFull = errors.New("no space for a run")

// Processes starts and follows commands. Errors of Start are for the operator.
type Processes interface {
	// Start returns nil once the command runs, or the reason why it does not run. It does not return while neither is
	// known.
	Start(Order) error
	// Known reports whether a run was given to Start before, even if its end was not observed.
	Known(run string) (bool, error)
	// Follow returns a channel that yields the end of a run once and is then closed. It is closed without an end if
	// the run is left to the next server. The error is ErrUnknown if no run with that id was started.
	Follow(run string) (<-chan End, error)
	// Stop ends all processes of a run: TERM, the grace, KILL. It returns at once. A negative grace means the grace
	// of the hook.
	Stop(run string, why State, grace time.Duration) error
	// Revoke ensures that the command of a run never starts, and that the run ends with the reason why. From then on
	// Start returns fs.ErrExist, and Follow yields that end. It reports false if the command was already started or
	// is being started. It does not wait for the supervisor.
	Revoke(run string, why State) (revoked bool, err error)
	// List returns the ids of the runs in progress.
	List() ([]string, error)
}

// Ends returns the final states.
func Ends() []State { return []State{Succeeded, Failed, TimedOut, Cancelled, Interrupted} }

// withTitle adds the title of a run, if it has one, to the attributes of a line of the log.
func withTitle(title string, attrs ...any) []any {
	if title == "" {
		return attrs
	}
	return append(attrs, "title", title)
}
