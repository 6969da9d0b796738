// Package hook decides what may run: hooks with their allow-listed commands and typed parameters.
//
// [Compile] checks the hooks of a configuration file and makes each [Spec] a [Hook], which never changes. [Hook.Bind]
// takes the parameters from a delivery, and [Hook.Argv] and [Hook.Environ] put them into the command. A value stays
// within the one argument or variable that its hole stands in, and a command has as many arguments as it has in the
// file. [Hook.Digest] differs between two versions of a hook, so that the server and the supervisor, which read the
// file each for itself, start nothing that only one of them knows.
//
// The package knows nothing of HTTP, of credentials, of processes or of the store.
package hook

import (
	"fmt"
	"strconv"
	"time"
)

// Spec is a hook as the configuration file writes it.
type Spec struct {
	Path            string               `yaml:"path"`    // default /hooks/<name>
	Callers         []Grant              `yaml:"callers"` // who may do what with it
	Unauthenticated bool                 `yaml:"dangerously_unauthenticated"`
	Command         []string             `yaml:"command"` // argv; "{name}" is a hole, "{{" and "}}" are braces
	Params          map[string]ParamSpec `yaml:"params"`
	Flight          string               `yaml:"flight"`         // template; one run at a time for each value. Default: one for the hook
	Busy            BusySpec             `yaml:"busy"`           // reject (default), queue: N, join, replace
	QueueTimeout    time.Duration        `yaml:"queue_timeout"`  // how long a run may wait; default for ever
	OnInterrupted   string               `yaml:"on_interrupted"` // rerun, or empty: the command may be run again when its end was not seen
	Keep            KeepSpec             `yaml:"keep"`
	Timeout         time.Duration        `yaml:"timeout"` // default 1h
	Grace           time.Duration        `yaml:"grace"`   // between TERM and KILL; default 10s
	Dir             string               `yaml:"dir"`     // working directory, absolute; default the run's own folder
	Env             map[string]string    `yaml:"env"`     // values may have holes
	Umask           *Umask               `yaml:"umask"`   // of the command; default 022
	Stdin           string               `yaml:"stdin"`   // "body", or empty for /dev/null
	Body            BodySpec             `yaml:"body"`
	Output          OutputSpec           `yaml:"output"`
}

// Umask is what is taken from the mode of each file that a command makes, as an
// octal number.
type Umask int

// DefaultUmask is the one of most systems: what a command makes, others may read.
const DefaultUmask Umask = 0o022

// UnmarshalText reads an octal number, as the command umask prints it.
func (u *Umask) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 32)
	switch {
	case err != nil || len(text) < 3 || n > 0o777:
		return fmt.Errorf("%q is not a umask: write 022, 027 or 077", text)
	case n&0o700 != 0:
		return fmt.Errorf("%s takes rights from the owner of a file: write 022, 027 or 077", text)
	}
	*u = Umask(n)
	return nil
}

func (u Umask) String() string { return fmt.Sprintf("%03o", int(u)) }

// Grant says what a caller may do with a hook and its runs. It is written as the
// caller's name alone, or with may.
type Grant struct {
	Caller string `yaml:"caller"`
	// May is start, read and cancel. read and cancel are of all the hook's runs;
	// who may start may do both with its own in any case. Default: start.
	May []string `yaml:"may"`
}

// UnmarshalYAML reads the caller's name alone.
func (g *Grant) UnmarshalYAML(decode func(any) error) error { return decode(&g.Caller) }

// BusySpec is what happens to a delivery whose flight is in the air: reject,
// join, replace, or the mapping {queue: N}.
type BusySpec struct {
	Kind  string `yaml:"-"`
	Queue int    `yaml:"queue"` // how many may wait
}

// UnmarshalYAML reads the forms that are one word.
func (b *BusySpec) UnmarshalYAML(decode func(any) error) error { return decode(&b.Kind) }

func (b BusySpec) String() string {
	if b.Queue > 0 {
		return fmt.Sprintf("queue: %d", b.Queue)
	}
	return b.Kind
}

// Policy is what happens to a delivery while a run of its flight is in progress.
type Policy struct {
	Kind  PolicyKind
	Depth int // Queue: the most runs that are queued
}

// PolicyKind is a kind of [Policy].
type PolicyKind string

// The kinds.
const (
	Reject  PolicyKind = "reject"  // busy
	Queue   PolicyKind = "queue"   // start in order
	Join    PolicyKind = "join"    // one queued run for all deliveries, with the newest parameters
	Replace PolicyKind = "replace" // cancel the running run, and start the newest
)

// KeepSpec says how long ended runs and their outputs are kept.
type KeepSpec struct {
	Age   time.Duration `yaml:"age"`   // since the end; default 30 days (720h)
	Count int           `yaml:"count"` // of the hook's runs; default 1000
}

// BodySpec says how a body is read, and bounds what a sender may send.
type BodySpec struct {
	As      string        `yaml:"as"`      // json (default) or form: how parameters are taken from it, whatever its Content-Type
	Max     Size          `yaml:"max"`     // default 1MiB
	Timeout time.Duration `yaml:"timeout"` // to send it whole; default 10s
}

// OutputSpec bounds what is kept of a command's output: the first Head and the
// last Tail bytes. What lies between is counted and dropped.
type OutputSpec struct {
	Head Size `yaml:"head"` // default 1MiB
	Tail Size `yaml:"tail"` // default 9MiB
}

// ParamSpec is a named input. Exactly one of Match, Enum and a Type other than
// string says which values are allowed.
type ParamSpec struct {
	From    From     `yaml:"from"`  // body.…, query.…, header.…, claim.…; or a list, where names have dots
	Type    string   `yaml:"type"`  // string (default), int, bool
	Match   string   `yaml:"match"` // RE2, of the whole value
	Enum    []string `yaml:"enum"`
	Min     *int64   `yaml:"min"` // int only
	Max     *int64   `yaml:"max"` // int only
	Default *string  `yaml:"default"`
}
