package runner

import "slices"

// phase is how far this server is with a run. Only the driver of the run changes it, in [tracker.movePhase]. The
// package comment says what a crash leaves in each phase.
type phase int

const (
	idle     phase = iota // not driven here: queued, ended, or unknown
	admitted              // recorded as running; its command is not ordered
	ordered               // its order is being sent, and the supervisor has not answered
	running               // its command was started, or found running
	ending                // its command has ended or never begins, and its end is being recorded
)

// String returns the name of a phase.
func (p phase) String() string {
	return [...]string{idle: "idle", admitted: "admitted", ordered: "ordered", running: "running", ending: "ending"}[p]
}

// mayBecome reports whether a run may go from one phase to another. A run that is left to the next server keeps its
// phase.
func (p phase) mayBecome(next phase) bool {
	return slices.Contains([...][]phase{
		idle:     {admitted},                       // by a delivery, by promotion, or recovered
		admitted: {ordered, running, ending, idle}, // running: it was found running; idle: it is queued again
		ordered:  {running, ending, idle},          // ending: its command cannot be started, or was revoked
		running:  {ending},
		ending:   {idle},
	}[p], next)
}
