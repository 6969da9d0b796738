// Package hook decides which commands may run: it has hooks with their allow-listed commands and typed parameters.
//
// [Compile] checks the hooks of a configuration file and makes each [Spec] a [Hook], which never changes.
// [Hook.WhyIgnored] checks whether a delivery is meant for the hook. [Hook.Bind] takes the parameters from a delivery,
// and [Hook.Argv] and [Hook.Environ] put them into the command. A value stays within the one argument or variable of
// its hole, and a command always has as many arguments as in the file.
// [Hook.Digest] differs between two versions of a hook. The server and the supervisor each read the file, and so they
// start only hooks that both have in the same version.
//
// The package does not depend on HTTP, credentials, processes or the store.
package hook

import (
	"fmt"
	"strconv"
	"time"
)

// Spec is a hook as the configuration file writes it. Each key of a hook is one of its many fields.
type Spec struct {
	ServerURL       string               `yaml:"-"`       // of the server, for links to runs; or empty
	Path            string               `yaml:"path"`    // default /hooks/<name>
	Callers         []Grant              `yaml:"callers"` // the callers and their rights
	Unauthenticated bool                 `yaml:"dangerously_unauthenticated"`
	When            any                  `yaml:"when"`    // mapping of conditions that a delivery must fulfil, or CEL
	Command         []string             `yaml:"command"` // argv; "{name}" is a hole, "{{" and "}}" are braces
	Params          map[string]ParamSpec `yaml:"params"`
	Title           string               `yaml:"title"`          // template; how lists and logs call a run
	Wait            time.Duration        `yaml:"wait"`           // of an answer for the end of the run; default none
	Answer          AnswerSpec           `yaml:"answer"`         // to a sender that has waited for the end
	Flight          FlightSpec           `yaml:"flight"`         // what may run only once at a time; default the hook
	Busy            BusySpec             `yaml:"busy"`           // reject (default), queue: N, join, replace
	QueueTimeout    time.Duration        `yaml:"queue_timeout"`  // how long a run may be queued; default no limit
	OnInterrupted   string               `yaml:"on_interrupted"` // rerun (may run again if no end was seen); or empty
	Retry           RetrySpec            `yaml:"retry"`          // of a run that failed; default none
	Keep            KeepSpec             `yaml:"keep"`
	Timeout         time.Duration        `yaml:"timeout"` // default 1h
	Grace           time.Duration        `yaml:"grace"`   // between TERM and KILL; default 10s
	Dir             string               `yaml:"dir"`     // absolute; default the folder of the run, or the home of user
	Env             map[string]string    `yaml:"env"`     // values may have holes
	User            string               `yaml:"user"`    // as which the command runs; default that of the server
	Groups          []string             `yaml:"groups"`  // the supplementary groups of user; default all that it is in
	Umask           *Umask               `yaml:"umask"`   // of the command; default 022
	Stdin           string               `yaml:"stdin"`   // "body", or empty for /dev/null
	Body            BodySpec             `yaml:"body"`
	Output          OutputSpec           `yaml:"output"`
}

// Umask is the file mode bits that are cleared in each file that a command creates, as an octal number.
type Umask int

// DefaultUmask is the umask of most systems: other users may read the files that a command creates.
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

// Grant says what a caller may do with a hook and its runs. It is written as the name of the caller only, or as a
// mapping with may.
type Grant struct {
	Caller string `yaml:"caller"`
	// May contains start, read and cancel. read and cancel apply to all runs of the hook. A caller that may start
	// runs may always read and cancel its own. Default: start.
	May []string `yaml:"may"`
}

// UnmarshalYAML reads the form that is only the name of the caller.
func (g *Grant) UnmarshalYAML(decode func(any) error) error { return decode(&g.Caller) }

// FlightSpec says what may run only once at a time: the hook for each value of a template, or all hooks of a group. It
// is written as the template only, or as a mapping.
type FlightSpec struct {
	Group string `yaml:"group"` // shared by hooks
	Key   string `yaml:"key"`   // template; one run at a time per value
}

// UnmarshalYAML reads the form that is only a template.
func (f *FlightSpec) UnmarshalYAML(decode func(any) error) error { return decode(&f.Key) }

func (f FlightSpec) String() string {
	switch {
	case f.Group == "" && f.Key == "":
		return "one run at a time"
	case f.Group == "":
		return f.Key
	case f.Key == "":
		return "group " + f.Group
	}
	return "group " + f.Group + ", " + f.Key
}

// BusySpec says what happens to a delivery while a run of its flight is in progress: reject, join, replace, or the
// mapping {queue: N}.
type BusySpec struct {
	Kind  string `yaml:"-"`
	Queue int    `yaml:"queue"` // the most runs that are queued
}

// UnmarshalYAML reads the forms that are one word.
func (b *BusySpec) UnmarshalYAML(decode func(any) error) error { return decode(&b.Kind) }

func (b BusySpec) String() string {
	if b.Queue > 0 {
		return fmt.Sprintf("queue: %d", b.Queue)
	}
	return b.Kind
}

// Policy says what happens to a delivery while a run of its flight is in progress.
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

// RetrySpec says how often and when a run that failed is queued again. A run that failed without an exit code, by a
// signal, is one of those only without Codes.
type RetrySpec struct {
	Times int           `yaml:"times"` // the most attempts after the first
	After time.Duration `yaml:"after"` // between the end of an attempt and the next one; default 30s
	Codes []int         `yaml:"codes"` // exit codes; default all but 0
}

// AnswerSpec says how the answer tells the end of a run that it has waited for.
type AnswerSpec struct {
	Failed Status `yaml:"failed"` // for a run that did not succeed: 409, 422 or 500; default 200
	Output Size   `yaml:"output"` // most bytes of the end of the output; default none
}

// Status is a status of HTTP.
type Status int

// MaxWait is the most time that an answer waits for the end of a run.
const MaxWait = 300 * time.Second

// maxAnswerOutput is the most bytes of an output that the file may put into answers.
const maxAnswerOutput = 64 << 10

// KeepSpec says how long ended runs and their outputs are kept.
type KeepSpec struct {
	Age   time.Duration `yaml:"age"`   // since the end; default 30 days (720h)
	Count int           `yaml:"count"` // of the hook's runs; default 1000
}

// BodySpec says how a body is read, and limits its size and time.
type BodySpec struct {
	As      string        `yaml:"as"`      // json (default), form or payload, for any Content-Type
	Max     Size          `yaml:"max"`     // default 1MiB
	Timeout time.Duration `yaml:"timeout"` // to send all of it; default 10s
}

// OutputSpec limits how much of the output of a command is kept: the first Head and the last Tail bytes. The bytes
// between them are counted and dropped.
type OutputSpec struct {
	Head Size `yaml:"head"` // default 1MiB
	Tail Size `yaml:"tail"` // default 9MiB
}

// ParamSpec describes a parameter. Exactly one of Match, Enum and a Type other than string says which values are
// allowed.
type ParamSpec struct {
	From    From     `yaml:"from"`  // body.…, query.…, header.…, claim.…; or a list, where names have dots
	Expr    string   `yaml:"expr"`  // instead of from: CEL that computes the value
	Type    string   `yaml:"type"`  // string (default), int, number, bool; json: a part of the body as compact text
	Match   string   `yaml:"match"` // RE2, of the whole value
	Enum    []string `yaml:"enum"`
	Min     *int64   `yaml:"min"` // int and number only
	Max     *int64   `yaml:"max"` // int and number only
	Default *string  `yaml:"default"`
}
