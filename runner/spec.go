// Package runner decides what may run: hooks with their allow-listed commands,
// typed parameters, and the single flight that lets one run at a time through.
// It knows nothing of HTTP, of who calls, or of processes.
package runner

import "time"

// HookSpec is a hook as the configuration file writes it.
type HookSpec struct {
	Path            string               `yaml:"path"`    // default /hooks/<name>
	Callers         []string             `yaml:"callers"` // who may start it
	Unauthenticated bool                 `yaml:"dangerously_unauthenticated"`
	Command         []string             `yaml:"command"` // argv; "{name}" is a hole, "{{" and "}}" are braces
	Params          map[string]ParamSpec `yaml:"params"`
	Flight          string               `yaml:"flight"`  // template; one run at a time for each value. Default: one for the hook
	Busy            string               `yaml:"busy"`    // reject (default)
	Timeout         time.Duration        `yaml:"timeout"` // default 1h
	Grace           time.Duration        `yaml:"grace"`   // between TERM and KILL; default 10s
	Dir             string               `yaml:"dir"`     // working directory, absolute; default the run's own folder
	Env             map[string]string    `yaml:"env"`     // values may have holes
	Stdin           string               `yaml:"stdin"`   // "body", or empty for /dev/null
	Body            BodySpec             `yaml:"body"`
	Output          OutputSpec           `yaml:"output"`
}

// BodySpec bounds what a sender may send.
type BodySpec struct {
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
